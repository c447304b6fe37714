"""Hooks that wait: what comes from either side meanwhile is kept, and nothing overtakes anything. On both engines."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.e2e.test_websocket import HANDSHAKE, SWITCH
from tests.harness.canaries import canary
from tests.harness.client import Raw, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, Upstream, Wire

# Waits in the hooks that the path names.
WAITS = """
import asyncio, pathlib

class Waits:
    def __init__(self, file):
        self.file = pathlib.Path(file)

    async def _hook(self, name, flow):
        self._note(f"{name} {flow.request.path} begins")
        if name in flow.request.path.split("/"):
            await asyncio.sleep(0.2)
        self._note(f"{name} {flow.request.path} ends")

    def _note(self, line):
        with self.file.open("a") as out:
            out.write(line + "\\n")

    async def requestheaders(self, flow): await self._hook("requestheaders", flow)
    async def responseheaders(self, flow): await self._hook("responseheaders", flow)
    async def response(self, flow): await self._hook("response", flow)
"""
BODY = bytes(range(256)) * 400
LARGE_BYTES = 3_000_000


def get(path: str, *fields: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: api.test", *fields, "", "")).encode()


def noted(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def script(file: Callable[[], Path]) -> Callable[[Seen, Wire], None]:
    def until_judged(seen: Seen) -> None:
        """Until the hook waits that has been shown the head."""
        deadline = time.monotonic() + 10
        while f"responseheaders {seen.target} begins" not in noted(file()):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def answers(seen: Seen, wire: Wire) -> None:
        match seen.target.rpartition("/")[2]:
            case "together-close":
                wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + BODY)
                wire.close()
            case "later-close":
                wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                until_judged(seen)
                wire.send(BODY)
                wire.close()
            case "later-length":
                wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY))
                until_judged(seen)
                wire.send(BODY)
                wire.close()
            case "later-chunked":
                wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
                until_judged(seen)
                wire.chunk(BODY)
                wire.chunk(b"")
                wire.close()
            case "nothing-close":
                wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                until_judged(seen)
                wire.close()
            case "half":
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nhalf" % len(BODY))
                until_judged(seen)
                wire.reset()
            case "large":
                wire.answer(200, b"x" * LARGE_BYTES)
            case "ws":
                wire.send(SWITCH.encode() + b"\r\n\x81\x02hi")
                while data := wire.sock.recv(65536):
                    wire.send(data)
                wire.close()
            case _:
                wire.answer(200, seen.target.encode())

    return answers


def in_turn(lines: list[str]) -> bool:
    """Whether each hook ended before the next began."""
    begun = lines[::2]
    return all(line.endswith(" begins") for line in begun) and lines[1::2] == [
        line.replace(" begins", " ends") for line in begun
    ]


def test_hooks_that_wait(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], engine: str) -> None:
    proxy: Ostiary
    api = upstream(script(lambda: proxy.folder / "noted"))
    proxy = ostiary(
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/api": {"key": canary()}},
        settings="addons: {addon: ./my_addon.py:Waits, options: {file: noted}}\n",
        start=False,
    )
    (proxy.folder / "my_addon.py").write_text(WAITS)
    proxy.run()
    file = proxy.folder / "noted"

    @contextlib.contextmanager
    def inside() -> Iterator[Raw]:
        with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
            yield raw

    # An answer that comes, and ends, while its head is judged.
    for path in ("together-close", "later-close", "later-length", "later-chunked"):
        with inside() as raw:
            answer = raw.request(get(f"/responseheaders/{path}"))
            assert (answer.status, answer.body == BODY) == (200, True), (path, len(answer.body))
    with inside() as raw:
        answer = raw.request(get("/responseheaders/nothing-close"))
        assert (answer.status, answer.body) == (200, b"")
    # A part of one is not taken for the whole.
    with inside() as raw, contextlib.suppress(ConnectionError):
        assert raw.request(get("/responseheaders/half")).status == 502
    # Frames behind a handshake that is judged.
    for hook in ("responseheaders", "response"):
        with inside() as raw:
            raw.send(HANDSHAKE.replace("/live?x=1", f"/{hook}/ws").encode() + b"\r\n")
            assert raw.head().status == 101
            assert raw.read_exactly(4) == b"\x81\x02hi"
            raw.send(b"\x81\x06abcdef")
            assert raw.read_exactly(8) == b"\x81\x06abcdef"
    # A connection whose caller was slow to take the answer serves the next request, whosever it is.
    before = api.connections
    with inside() as raw:
        slow(raw)
        raw.send(get("/response/large") + get("/next"))
        time.sleep(0.2)
        assert len(raw.answer().body) == LARGE_BYTES
        assert raw.answer().body == b"/next"
    with inside() as raw:
        assert raw.request(get("/other")).body == b"/other"
    if engine == "fast":
        assert api.connections == before + 1
    # Requests that are sent ahead wait for the hooks of those before them.
    file.write_text("")
    paths = [f"/requestheaders/responseheaders/response/{number}" for number in range(3)]
    with inside() as raw:
        raw.send(b"".join(map(get, paths)))
        assert [raw.answer().body.decode() for _ in paths] == paths
        deadline = time.monotonic() + 10
        while len(lines := noted(file)) < 2 * 3 * len(paths) and time.monotonic() < deadline:
            time.sleep(0.02)  # the last body has passed before its hook has ended
    hooks = ("requestheaders", "responseheaders", "response")
    assert [line for line in lines if line.endswith("begins")] == [
        f"{hook} {path} begins" for path in paths for hook in hooks
    ]
    assert in_turn(lines), lines
    outcomes = [record["outcome"] for record in proxy.wait_audit("credential.closed", 14)]
    assert outcomes.count("ok") == 13, outcomes


def slow(raw: Raw) -> None:
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
