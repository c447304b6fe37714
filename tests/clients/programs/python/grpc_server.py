"""A gRPC server with no generated code: messages are bytes. Notes what it sees in a file, a line an event."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

certificate, log = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
writing = threading.Lock()


def note(event: str, context: grpc.ServicerContext) -> None:
    line = json.dumps(
        {"event": event, "metadata": [list(pair) for pair in context.invocation_metadata() if isinstance(pair[1], str)]}
    )
    with writing, log.open("a") as file:
        file.write(line + "\n")


def say(message: bytes, context: grpc.ServicerContext) -> bytes:
    note("say", context)
    context.send_initial_metadata([("x-first", "1")])
    context.set_trailing_metadata([("x-last", "2"), ("x-last-bin", b"\x00\xff")])
    return message


def count(message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    note("count", context)
    for number in range(int(message)):
        yield str(number).encode()
        time.sleep(0.2)


def echo(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    note("echo", context)
    yield from messages


def total(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
    note("total", context)
    return str(sum(len(message) for message in messages)).encode()


def fail(message: bytes, context: grpc.ServicerContext) -> bytes:
    note("fail", context)
    context.set_trailing_metadata([("x-why", "gone")])
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: ü")


def stop(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    """Answers the first message and ends, whatever is still to come."""
    yield next(messages)
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")


def forever(message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    note("forever", context)
    context.add_callback(lambda: note("ended", context))
    while context.is_active():
        yield message
        time.sleep(0.05)


METHODS = {
    "Say": grpc.unary_unary_rpc_method_handler(say),
    "Hidden": grpc.unary_unary_rpc_method_handler(say),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Forever": grpc.unary_stream_rpc_method_handler(forever),
    "Total": grpc.stream_unary_rpc_method_handler(total),
    "Echo": grpc.stream_stream_rpc_method_handler(echo),
    "Stop": grpc.stream_stream_rpc_method_handler(stop),
}
server = grpc.server(
    ThreadPoolExecutor(64), options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
)
server.add_registered_method_handlers("greet.Greeter", METHODS)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("greet.Greeter", METHODS),))
port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(certificate, certificate)]))
server.start()
print(port, flush=True)
sys.stdin.read()
server.stop(0)
