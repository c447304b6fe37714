"""grpcio as it comes: every kind of call there is, over one channel. Prints what came of each, as JSON."""

import json
import queue
import time
from collections.abc import Callable

import grpc

AUTHORIZATION = [("authorization", "Bearer ostiary-placeholder")]
LARGE = b"x" * (8 << 20)
channel = grpc.secure_channel(
    "grpc.example.com:443",
    grpc.ssl_channel_credentials(),
    options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
)
kinds = {
    name: getattr(channel, kind)(f"/greet.Greeter/{name}")
    for name, kind in {
        "Say": "unary_unary", "Fail": "unary_unary", "Hidden": "unary_unary", "Count": "unary_stream",
        "Forever": "unary_stream", "Total": "stream_unary", "Echo": "stream_stream", "Stop": "stream_stream",
    }.items()
}  # fmt: skip
shown: dict[str, object] = {}


def status(call: Callable[[], object]) -> list[object]:
    """How a call ended that should not end well."""
    try:
        call()
    except grpc.RpcError as error:
        return [error.code().name, error.details(), [list(pair) for pair in error.trailing_metadata() or ()]]
    return ["OK"]


reply, call = kinds["Say"].with_call(b"hello", metadata=AUTHORIZATION, timeout=20)
texts = [
    [key, value if isinstance(value, str) else value.hex()]
    for key, value in (*call.initial_metadata(), *call.trailing_metadata())
]
shown["unary"] = [reply.decode(), call.code().name, texts]

arrived = [time.monotonic() for _ in kinds["Count"](b"4", metadata=AUTHORIZATION, timeout=20)]
shown["server stream"] = [len(arrived), round(arrived[-1] - arrived[0], 2)]

# Each message is sent only once the one before has come back: something that waits for more would wait for ever.
said: queue.Queue[bytes | None] = queue.Queue()
answers = kinds["Echo"](iter(said.get, None), metadata=AUTHORIZATION, timeout=20)
told = []
for number in range(5):
    said.put(str(number).encode())
    told.append(next(answers).decode())
said.put(None)
shown["both streams"] = [told, list(answers), answers.code().name]

shown["client stream"] = kinds["Total"](iter([LARGE] * 3), metadata=AUTHORIZATION, timeout=30).decode()
shown["large"] = kinds["Say"](LARGE, metadata=AUTHORIZATION, timeout=30) == LARGE
shown["failed"] = status(lambda: kinds["Fail"](b"", metadata=AUTHORIZATION, timeout=20))

# The server ends with the caller still sending.
open_end: queue.Queue[bytes | None] = queue.Queue()
open_end.put(b"one")
stopped = kinds["Stop"](iter(open_end.get, None), metadata=AUTHORIZATION, timeout=20)
shown["stopped"] = [next(stopped).decode(), *status(lambda: next(stopped))[:2]]
open_end.put(None)

futures = [kinds["Say"].future(str(number).encode(), metadata=AUTHORIZATION, timeout=30) for number in range(200)]
shown["side by side"] = [future.result() for future in futures] == [str(number).encode() for number in range(200)]

shown["deadline"] = status(lambda: list(kinds["Forever"](b"x", metadata=AUTHORIZATION, timeout=0.5)))[:2]
endless = kinds["Forever"](b"x", metadata=AUTHORIZATION, timeout=20)
next(endless)
endless.cancel()
shown["cancelled"] = status(lambda: list(endless))[0]
shown["refused"] = status(lambda: kinds["Hidden"](b"", metadata=AUTHORIZATION, timeout=20))
shown["still works"] = kinds["Say"](b"again", metadata=AUTHORIZATION, timeout=20).decode()
print(json.dumps(shown))
