"""Where the network cuts a stream of bytes changes nothing: not what the upstream sees, nor what the caller sees."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from tests.harness.canaries import canary
from tests.harness.client import Raw, tunnel
from tests.harness.differences import BOTH
from tests.harness.memory_tls import MemoryTls
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.upstream import Seen, Upstream, Wire

POLICY: Final = """
workloads: {billing: {proofs: [{any: true}]}}
routes:
  api: {match: {host: api.test}, allow: billing, secret: {path: secret/egress/api, field: key}, inject: {bearer: "{secret}"}}
"""
GAP_S: Final = 0.001
"""Between two pieces, so that they are read one by one."""
HOST: Final = b"Host: api.test\r\n"


@dataclass
class Scripted:
    """Answers `/answer/NAME/CUT` with that answer, cut there; anything else with what arrived."""

    answers: dict[str, bytes]
    ending: frozenset[str] = field(default_factory=frozenset)

    def __call__(self, seen: Seen, wire: Wire) -> None:
        _, kind, *rest = seen.target.split("/")
        if kind != "answer":
            body = f"{seen.method} {seen.target} {seen.body_bytes} {seen.body_sha256[:16]}".encode()
            wire.answer(200, body, head_only=seen.method == "HEAD")
            return
        name, cut = rest[0], int(rest[1])
        for piece in pieces(self.answers[name], cut):
            wire.send(piece)
            time.sleep(GAP_S)
        if name in self.ending:
            wire.close()


ANSWERS: Final = {
    "length": b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 5\r\n\r\nhello",
    "none": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "close": b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\nhello, all of it",
    "http10": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
}
SCRIPT: Final = Scripted(ANSWERS, frozenset({"close", "http10"}))


def pieces(raw: bytes, cut: int) -> list[bytes]:
    """Two pieces; -1: every byte by itself; 0: whole."""
    if cut < 0:
        return [raw[at : at + 1] for at in range(len(raw))]
    return [piece for piece in (raw[:cut], raw[cut:]) if piece]


def cuts(raw: bytes, step: int) -> list[int]:
    """Byte by byte, about each line end, and evenly between."""
    around = {at + shift for at in range(len(raw)) if raw[at : at + 2] == b"\r\n" for shift in (0, 1, 2)}
    return [-1, *sorted((around | set(range(1, len(raw), step))) & set(range(1, len(raw))))]


@dataclass
class Side:
    name: str
    proxy: Ostiary
    api: Upstream

    @property
    def address(self) -> str:
        return self.proxy.address("sidecar")


@pytest.fixture(scope="module", params=BOTH)
def side(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Side]:
    api = Upstream(pki.context("api.test"), SCRIPT)
    proxy = Ostiary(
        tmp_path_factory.mktemp("cut") / "o",
        POLICY,
        {"api.test:443": api.port},
        {"secret/egress/api": {"key": canary()}},
        pki.ca_file,
        engine=request.param,
    )
    yield Side(request.param, proxy.start(), api)
    leaks = proxy.leaks()
    assert proxy.stop() == 0
    api.stop()
    assert not leaks, leaks


def send(raw: Raw, data: list[bytes]) -> None:
    raw.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in data:
        raw.send(piece)
        time.sleep(GAP_S)


REQUESTS: Final = {
    # name: the bytes, and the methods whose answers are expected
    "get": (b"GET /a?b=c HTTP/1.1\r\n" + HOST + b"X-A: 1\r\n\r\n", ("GET",)),
    "head": (b"HEAD /a HTTP/1.1\r\n" + HOST + b"\r\n", ("HEAD",)),
    "leading line end": (b"\r\nGET /a HTTP/1.1\r\n" + HOST + b"\r\n", ("GET",)),
    "length": (b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 12\r\n\r\nhello, world", ("POST",)),
    "chunked": (
        b"POST /a HTTP/1.1\r\n"
        + HOST
        + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7;a=b\r\n, world\r\n0\r\n\r\n",
        ("POST",),
    ),
    "expect": (
        b"POST /a HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        ("POST",),
    ),
    "two": (b"GET /1 HTTP/1.1\r\n" + HOST + b"\r\nHEAD /2 HTTP/1.1\r\n" + HOST + b"\r\n", ("GET", "HEAD")),
    "body and next": (
        b"POST /1 HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhelloGET /2 HTTP/1.1\r\n" + HOST + b"\r\n",
        ("POST", "GET"),
    ),
    "chunks and next": (
        b"POST /1 HTTP/1.1\r\n"
        + HOST
        + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /2 HTTP/1.1\r\n"
        + HOST
        + b"\r\n",
        ("POST", "GET"),
    ),
}

type Seens = list[tuple[str, str, tuple[tuple[str, str], ...], bytes]]


def exchange(side: Side, raw: Raw, data: list[bytes], methods: tuple[str, ...]) -> tuple[list[Any], Seens]:
    """What the caller and the upstream see."""
    before = len(side.api.requests)
    send(raw, data)
    answers: list[Any] = []
    for method in methods:
        try:
            answer = raw.answer(method=method)
        except ConnectionError:
            answers.append("closed")
            break
        answers.append((answer.status, answer.headers, answer.body))
    seen = [(one.method, one.target, tuple(one.headers), one.body) for one in side.api.requests[before:]]
    return answers, seen


SINGLE: Final = [name for name, (_, methods) in REQUESTS.items() if len(methods) == 1]


@pytest.mark.parametrize("name", SINGLE)
def test_requests_cut_anywhere(side: Side, name: str) -> None:
    data, methods = REQUESTS[name]
    with tunnel(side.address, side.proxy.ca) as raw:
        whole = exchange(side, raw, [data], methods)
        assert whole[0][0][0] == 200
        assert len(whole[1]) == 1
        for cut in cuts(data, 9):
            assert exchange(side, raw, pieces(data, cut), methods) == whole, cut


@pytest.mark.parametrize("name", sorted(set(REQUESTS) - set(SINGLE)))
def test_two_requests_cut_anywhere(side: Side, name: str) -> None:
    """Each is answered by its own answer."""
    data, methods = REQUESTS[name]
    for cut in [0, *cuts(data, 40)]:
        with tunnel(side.address, side.proxy.ca) as raw:
            (first, second), seen = exchange(side, raw, pieces(data, cut), methods)
        assert first[0] == 200
        assert first[2].startswith(f"{methods[0]} /1 ".encode())
        assert [target for _, target, _, _ in seen] == ["/1", "/2"]
        assert second[0] == 200
        assert methods[1] == "HEAD" or second[2].startswith(f"{methods[1]} /2 ".encode())


@pytest.mark.parametrize("name", ["length", "none", "chunked", "204", "304", "interim"])
def test_answers_cut_anywhere(side: Side, name: str) -> None:
    with tunnel(side.address, side.proxy.ca) as raw:

        def ask(cut: int, method: str = "GET") -> tuple[object, ...]:
            answer = raw.request(f"{method} /answer/{name}/{cut} HTTP/1.1\r\nHost: api.test\r\n\r\n", method=method)
            return answer.status, answer.headers, answer.body

        whole = ask(0)
        for cut in cuts(ANSWERS[name], 6):
            assert ask(cut) == whole, cut


@pytest.mark.parametrize("name", ["close", "http10"])
def test_answers_that_end_with_their_connection(side: Side, name: str) -> None:
    def ask(cut: int) -> tuple[Any, ...]:
        with tunnel(side.address, side.proxy.ca) as raw:
            answer = raw.request(f"GET /answer/{name}/{cut} HTTP/1.1\r\nHost: api.test\r\n\r\n")
            assert "close" not in name or raw.closed()
            return answer.status, answer.headers, answer.body

    whole = ask(0)
    assert whole[2] == ANSWERS[name].partition(b"\r\n\r\n")[2]
    for cut in cuts(ANSWERS[name], 20):
        assert ask(cut) == whole, cut


@pytest.mark.parametrize(
    "data",
    [
        b"GET /a HTTP/1.0\r\n" + HOST + b"\r\n",
        b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
        b"POST /a HTTP/1.1\r\n" + HOST + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /answer/chunked/20 HTTP/1.0\r\n" + HOST + b"\r\n",
    ],
)
def test_callers_that_keep_no_connection(side: Side, data: bytes) -> None:
    method = data.split(b" ")[0].decode()

    def ask(cut: int) -> tuple[Any, ...]:
        with tunnel(side.address, side.proxy.ca) as raw:
            found = exchange(side, raw, pieces(data, cut) if cut else [data], (method,))
            assert raw.closed()
            return found

    whole = ask(0)
    if b"chunked" in data:
        assert whole[0][0][2] == b"hello world"
    for cut in cuts(data, 25):
        assert ask(cut) == whole, cut


CONNECT: Final = b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n"
GET: Final = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"


def served(memory: MemoryTls) -> None:
    """Ends the handshake, and is answered."""
    memory.raw.send(memory.finish() + memory.encrypt(GET))
    assert b"GET /a 0" in memory.read_until(b"GET /a 0")


def test_connect_cut_anywhere(side: Side) -> None:
    for cut in cuts(CONNECT, 8):
        with Raw(side.address) as raw:
            send(raw, pieces(CONNECT, cut))
            assert raw.answer(method="CONNECT").status == 200
            if cut % 20 == 1:
                memory = MemoryTls(raw)
                raw.send(memory.hello())
                served(memory)


@pytest.mark.parametrize("between", [b"", b"\r\n"])
def test_connect_and_client_hello_together(side: Side, between: bytes) -> None:
    for split in (0, 1, 2, 3, 5, 6, 60):
        with Raw(side.address) as raw:
            memory = MemoryTls(raw)
            hello = memory.hello()
            send(raw, [CONNECT + between + hello[:split], hello[split:]] if split else [CONNECT + between + hello])
            assert raw.answer(method="CONNECT").status == 200
            served(memory)


def test_client_hello_byte_by_byte(side: Side) -> None:
    with Raw(side.address) as raw:
        assert raw.connect("api.test:443").status == 200
        memory = MemoryTls(raw)
        send(raw, pieces(memory.hello(), -1))
        flight = memory.finish()
        send(raw, pieces(flight + memory.encrypt(GET), -1))
        assert b"GET /a 0" in memory.read_until(b"GET /a 0")


def test_a_client_hello_over_many_segments(side: Side) -> None:
    """With what makes it large: many protocols to choose from."""
    names = tuple(f"proto-{number:03d}-{'x' * 40}" for number in range(300))
    with Raw(side.address) as raw:
        assert raw.connect("api.test:443").status == 200
        memory = MemoryTls(raw, alpn=(*names, "http/1.1"))
        hello = memory.hello()
        assert len(hello) > 14_000
        send(raw, [hello[at : at + 1000] for at in range(0, len(hello), 1000)])
        served(memory)


def test_a_request_with_the_last_flight(side: Side) -> None:
    for cut in (0, 1, 30, 80, 100):
        with Raw(side.address) as raw:
            assert raw.connect("api.test:443").status == 200
            memory = MemoryTls(raw)
            raw.send(memory.hello())
            data = memory.finish() + memory.encrypt(GET)
            send(raw, pieces(data, cut) if cut else [data])
            assert b"GET /a 0" in memory.read_until(b"GET /a 0")
