"""G21 on the way back: what a broken or hostile upstream sends never reaches another request.

Each case answers one request in its own way. Then, on the caller's connection where that is still open, and from a second caller of the same workload, a plain request follows: it must be
answered by its own answer. Where the bytes left any doubt, it must have gone out on another upstream connection. Both
engines; where they differ, the case names a row of docs/reference/engines.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from tests.conftest import POLICY
from tests.harness.canaries import canary
from tests.harness.client import Raw, tunnel
from tests.harness.differences import BOTH, differences
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.upstream import Seen, Upstream, Wire

DIFFERENCES: Final = differences()
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EVIL: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"
CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PAUSE: Final = b""
"""Between two pieces: they arrive by themselves."""


@dataclass(frozen=True)
class Case:
    note: str
    pieces: tuple[bytes, ...]
    want: str
    """A status with the body behind it, the code of the refusal, `closed` or `cut`."""
    clean: bool = False
    """Whether the upstream connection may be used again."""
    ends: bool = False
    """Whether the upstream closes behind it."""
    method: str = "GET"


def head(*fields: bytes, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return status + b"\r\n" + b"".join(line + b"\r\n" for line in fields) + b"\r\n"


BAD: Final = "upstream_protocol"
LENGTH: Final = b"Content-Length: 2"
CASES: Final = (
    Case("a plain answer", (OK,), "200 ok", clean=True),
    Case("an answer in many pieces", (OK[:5], OK[5:20], OK[20:-1], OK[-1:]), "200 ok", clean=True),
    # surplus
    Case("surplus bytes behind an answer", (OK + b"surplus",), "200 ok"),
    Case("surplus bytes a moment later", (OK, PAUSE, b"surplus"), "200 ok"),
    Case("a second answer behind the first", (OK + EVIL,), "200 ok"),
    Case("a second answer a moment later", (OK, PAUSE, EVIL), "200 ok"),
    Case("half of a second answer", (OK + EVIL[:20],), "200 ok"),
    Case("a line end behind an answer", (OK + b"\r\n",), "200 ok"),
    Case("an interim answer behind an answer", (OK + head(status=b"HTTP/1.1 100 Continue"),), "200 ok"),
    Case("a body behind 204", (head(LENGTH, status=b"HTTP/1.1 204 No Content") + EVIL,), "204 "),
    Case("a body behind 304", (head(LENGTH, status=b"HTTP/1.1 304 Not Modified") + EVIL,), "304 "),
    Case("a body behind an answer to HEAD", (OK,), "200 ", method="HEAD"),
    Case("a later body behind an answer to HEAD", (head(LENGTH), PAUSE, EVIL), "200 ", method="HEAD"),
    Case("an answer to HEAD", (head(LENGTH),), "200 ", method="HEAD", clean=True),
    Case("surplus behind the last chunk", (CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + EVIL,), "200 ok"),
    Case("chunked", (CHUNKED + b"2\r\nok\r\n0\r\n\r\n",), "200 ok", clean=True),
    Case("surplus behind a body of no bytes", (head(b"Content-Length: 0") + EVIL,), "200 "),
    # lengths that lie
    Case("a body that is too short", (head(b"Content-Length: 9") + b"short",), "cut", ends=True),
    Case("a head whose body never comes", (head(b"Content-Length: 9"),), "cut", ends=True),
    Case("a chunked body without its end", (CHUNKED + b"2\r\nok\r\n",), "cut", ends=True),
    Case("a chunked body that ends inside a chunk", (CHUNKED + b"9\r\nok",), "cut", ends=True),
    Case("a body that ends with the connection", (head() + b"ok",), "200 ok", ends=True),
    Case("nothing at all", (), BAD, ends=True),
    Case("half a head", (OK[:20],), BAD, ends=True),
    Case("an interim answer and no more", (head(status=b"HTTP/1.1 103 Early Hints"),), BAD, ends=True),
    # framing
    Case("length and chunked", (head(LENGTH, b"Transfer-Encoding: chunked") + b"0\r\n\r\n",), BAD),
    Case("chunked and length", (head(b"Transfer-Encoding: chunked", LENGTH) + b"0\r\n\r\n",), BAD),
    Case("two lengths that agree", (head(LENGTH, LENGTH) + b"ok",), BAD),
    Case("two lengths that differ", (head(LENGTH, b"Content-Length: 4") + b"okok",), BAD),
    Case("a list of lengths", (head(b"Content-Length: 2, 2") + b"ok",), BAD),
    Case("a length with a plus", (head(b"Content-Length: +2") + b"ok",), BAD),
    Case("a negative length", (head(b"Content-Length: -2") + b"ok",), BAD),
    Case("a length with a leading zero", (head(b"Content-Length: 02") + b"ok",), BAD),
    Case("a hexadecimal length", (head(b"Content-Length: 0x2") + b"ok",), BAD),
    Case("an empty length", (head(b"Content-Length:") + b"ok",), BAD),
    Case("a length over 64 bits", (head(b"Content-Length: 99999999999999999999") + b"ok",), BAD),
    Case("gzip, chunked", (head(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",), BAD),
    Case("chunked twice", (head(b"Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",), BAD),
    Case("two fields of chunked", (head(*[b"Transfer-Encoding: chunked"] * 2) + b"0\r\n\r\n",), BAD),
    Case("identity", (head(b"Transfer-Encoding: identity") + b"ok",), BAD),
    Case("chunked in HTTP/1.0", (head(b"Transfer-Encoding: chunked", status=b"HTTP/1.0 200 OK") + b"0\r\n\r\n",), BAD),
    # heads
    Case("bare LFs", (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok\r\n\r\n",), BAD),
    Case("one bare LF", (head(b"X-A: 1\nX-B: 2", LENGTH) + b"ok",), BAD),
    Case("a bare CR", (head(b"X-A: 1\rX-B: 2", LENGTH) + b"ok",), BAD),
    Case("a folded field", (head(b"X-A: 1\r\n 2", LENGTH) + b"ok",), BAD),
    Case("a folded length", (head(b"Content-Length:\r\n 2") + b"ok",), BAD),
    Case("a NUL in a value", (head(b"X-A: \x00", LENGTH) + b"ok",), BAD),
    Case("a NUL in a name", (head(b"X\x00A: 1", LENGTH) + b"ok",), BAD),
    Case("a space before the colon", (head(b"Content-Length : 2") + b"ok",), BAD),
    Case("a field without a colon", (head(b"nonsense", LENGTH) + b"ok",), BAD),
    Case("a field without a name", (head(b": 1", LENGTH) + b"ok",), BAD),
    Case("a line end before the status line", (b"\r\n" + OK,), BAD),
    Case("a status of two digits", (head(LENGTH, status=b"HTTP/1.1 20 OK") + b"ok",), BAD),
    Case("a status of four digits", (head(LENGTH, status=b"HTTP/1.1 2000 OK") + b"ok",), BAD),
    Case("a status of letters", (head(LENGTH, status=b"HTTP/1.1 abc OK") + b"ok",), BAD),
    Case("a status that begins with zero", (head(LENGTH, status=b"HTTP/1.1 020 OK") + b"ok",), BAD),
    Case("two spaces before the status", (head(LENGTH, status=b"HTTP/1.1  200 OK") + b"ok",), BAD),
    Case("a NUL in the reason", (head(LENGTH, status=b"HTTP/1.1 200 \x00") + b"ok",), BAD),
    Case("no reason", (head(LENGTH, status=b"HTTP/1.1 200") + b"ok",), "200 ok", clean=True),
    Case("HTTP/0.9", (b"<html>" + b"x" * 100 + b"\r\n\r\n",), BAD),
    Case("HTTP/2 as text", (head(LENGTH, status=b"HTTP/2 200") + b"ok",), BAD),
    Case("HTTP/1.2", (head(LENGTH, status=b"HTTP/1.2 200 OK") + b"ok",), BAD),
    Case("another protocol", (head(LENGTH, status=b"ICY 200 OK") + b"ok",), BAD),
    Case("the frames of HTTP/2", (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" * 3 + b"\r\n\r\n",), BAD),
    Case("HTTP/1.0", (head(LENGTH, status=b"HTTP/1.0 200 OK") + b"ok",), "200 ok"),
    Case("Connection: close", (head(LENGTH, b"Connection: close") + b"ok",), "200 ok"),
    Case("a head of 200 KB", (head(b"X-A: " + b"v" * 200_000, LENGTH) + b"ok",), "200 ok", clean=True),
    Case("a head of 300 KB", (head(b"X-A: " + b"v" * 300_000, LENGTH) + b"ok",), BAD),
    Case("a head without an end", (b"HTTP/1.1 200 OK\r\nX-A: " + b"v" * 300_000,), BAD),
    # interim answers
    Case("an interim answer first", (head(status=b"HTTP/1.1 100 Continue") + OK,), "200 ok", clean=True),
    Case("sixteen interim answers", (head(status=b"HTTP/1.1 103 Early Hints") * 16 + OK,), "200 ok", clean=True),
    Case("seventeen interim answers", (head(status=b"HTTP/1.1 103 E") * 17 + OK,), "200 ok", clean=True),
    Case("two thousand interim answers", (head(status=b"HTTP/1.1 103 E") * 2000 + OK,), BAD),
    Case(
        "an interim answer with a length",
        (head(b"Content-Length: 9", status=b"HTTP/1.1 103 E") + OK,),
        "200 ok",
        clean=True,
    ),
    Case(
        "a switch that nobody asked for",
        (head(b"Upgrade: websocket", b"Connection: Upgrade", status=b"HTTP/1.1 101 S") + EVIL,),
        BAD,
    ),
    Case("a switch to h2c", (head(b"Upgrade: h2c", b"Connection: Upgrade", status=b"HTTP/1.1 101 S") + EVIL,), BAD),
    # chunks
    Case("a chunk that is no number", (CHUNKED + b"zz\r\nok\r\n0\r\n\r\n",), "cut"),
    Case("a chunk size over 64 bits", (CHUNKED + b"f" * 21 + b"\r\nok\r\n0\r\n\r\n",), "cut"),
    Case("a chunk size of 17 digits", (CHUNKED + b"0" * 16 + b"2\r\nok\r\n0\r\n\r\n",), "cut"),
    Case("a negative chunk size", (CHUNKED + b"-2\r\nok\r\n0\r\n\r\n",), "cut"),
    Case("a chunk size with a prefix", (CHUNKED + b"0x2\r\nok\r\n0\r\n\r\n",), "cut"),
    Case("a chunk line with a bare LF", (CHUNKED + b"2\nok\r\n0\r\n\r\n",), "cut"),
    Case("a chunk that is longer than its size", (CHUNKED + b"2\r\nokok\r\n0\r\n\r\n",), "cut"),
    Case("a chunk extension", (CHUNKED + b"2;a=b\r\nok\r\n0\r\n\r\n",), "200 ok", clean=True),
    Case("a space behind a chunk size", (CHUNKED + b"2 \r\nok\r\n0\r\n\r\n",), "cut"),
    Case("trailers", (CHUNKED + b"2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n",), "200 ok", clean=True),
    Case(
        "trailers that frame",
        (
            CHUNKED
            + b"2\r\nok\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: x\r\nSet-Cookie: a=b\r\nX-Ostiary-Error: x\r\n\r\n",
        ),
        "200 ok",
        clean=True,
    ),
    Case("a malformed trailer", (CHUNKED + b"2\r\nok\r\n0\r\nX Sum: 1\r\n\r\n",), "cut"),
)


@dataclass
class Hostile:
    """An upstream that answers `/case/N` as case N says, and everything else with the target it was asked for."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: list[tuple[str, Wire]] = field(default_factory=list)

    def __call__(self, seen: Seen, wire: Wire) -> None:
        with self.lock:
            self.seen.append((seen.target, wire))
        _, kind, *number = seen.target.split("/")
        if kind != "case":
            wire.answer(200, seen.target.encode())
            return
        case = CASES[int(number[0])]
        for piece in case.pieces:
            if piece == PAUSE:
                time.sleep(0.25)
            else:
                wire.send(piece)
                time.sleep(0.01 if len(case.pieces) > 1 else 0)
        if case.ends:
            wire.close()

    def wires_of(self, target: str) -> list[Wire]:
        """The connections on which it was asked for."""
        with self.lock:
            return [wire for asked, wire in self.seen if asked == target]


@dataclass
class Side:
    name: str
    proxy: Ostiary
    upstream: Hostile


@pytest.fixture(scope="module", params=BOTH)
def side(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Side]:
    hostile = Hostile()
    api = Upstream(pki.context("api.test"), hostile)
    proxy = Ostiary(
        tmp_path_factory.mktemp("hostile") / "o",
        POLICY,
        {"api.test:443": api.port},
        {"secret/egress/api": {"key": canary()}},
        pki.ca_file,
        engine=request.param,
        settings="limits: {first_byte_timeout: 8s, idle_timeout: 8s}\n",
    )
    yield Side(request.param, proxy.start(), hostile)
    leaks = proxy.leaks()
    assert proxy.stop() == 0
    api.stop()
    assert not leaks, leaks


def outcome(raw: Raw, method: str) -> str:
    """What the caller sees, and that it is framed as it says."""
    try:
        answer = raw.head()
    except OSError:
        return "closed"
    if answer.code is not None or answer.get("X-Ostiary-Error") is not None:
        raw.read_exactly(int(answer.get("Content-Length") or 0))
        return str(answer.get("X-Ostiary-Error"))
    try:
        if method == "HEAD" or answer.status in {204, 304}:
            return f"{answer.status} "
        if (answer.get("Transfer-Encoding") or "") == "chunked":
            body = b""
            while size := int(raw.read_until(b"\r\n"), 16):
                body += raw.read_exactly(size)
                assert raw.read_exactly(2) == b"\r\n"
            while (line := raw.read_until(b"\r\n")) != b"\r\n":
                assert line == b"X-Sum: 1\r\n"
        elif (length := answer.get("Content-Length")) is not None:
            body = raw.read_exactly(int(length))
        else:
            while raw._more():
                pass
            body, raw.buffer = raw.buffer, b""
    except OSError:
        return "cut"
    return f"{answer.status} {body.decode()}"


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.note for case in CASES])
def test_g21_an_answer_reaches_its_own_request_alone(side: Side, number: int) -> None:
    case = CASES[number]
    target = f"/case/{number}"
    answered = []
    with tunnel(side.proxy.address("sidecar"), side.proxy.ca) as raw:
        raw.send(f"{case.method} {target} HTTP/1.1\r\nHost: api.test\r\n\r\n".encode())
        assert outcome(raw, case.method) == case.want
        if PAUSE in case.pieces:
            time.sleep(0.4)
        # The caller's next request, if its connection is still open, and another caller's.
        try:
            raw.send(f"GET /next/{number} HTTP/1.1\r\nHost: api.test\r\n\r\n".encode())
            answer = raw.answer()
        except OSError:
            pass
        else:
            assert (answer.status, answer.body) == (200, f"/next/{number}".encode())
            answered.append(f"/next/{number}")
    with tunnel(side.proxy.address("sidecar"), side.proxy.ca) as other:
        answer = other.request(f"GET /other/{number} HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert (answer.status, answer.body) == (200, f"/other/{number}".encode())
        answered.append(f"/other/{number}")
    used = side.upstream.wires_of(target)
    # A second time only where not a byte came of the first.
    assert len(used) == 1 or (side.name == "fast" and not case.pieces and len(used) == 2)
    again = [wire in used for one in answered for wire in side.upstream.wires_of(one)]
    if case.clean:
        # mitmproxy's engine keeps connections for one caller.
        assert again[0] or (side.name == "mitmproxy" and len(answered) == 1)
    else:
        assert not any(again)


TWO: Final = """
workloads: {billing: {proofs: [{any: true}]}, reports: {proofs: [{any: true}]}}
routes:
  api: {match: {host: api.test}, allow: [billing, reports], secret: {path: secret/egress/api, field: key}, inject: {bearer: "{secret}"}}
"""


@pytest.mark.parametrize("engine", BOTH)
def test_g21_g58_an_upstream_one_answer_ahead_stays_within_a_workload(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], engine: str
) -> None:
    """An answer that comes as soon as the connection stands is taken for that of the first request: HTTP/1.1 has no
    numbers to tell. Then each answer on that connection is one request late, for whoever shares it; for nobody else.
    """
    whole = upstream(lambda seen, wire: wire.answer(200, seen.target.encode()))

    class Ahead(Upstream):
        def _serve_http1(self, tls: Any) -> None:
            tls.sendall(EVIL)
            time.sleep(0.2)
            super()._serve_http1(tls)

    ahead = Ahead(whole.context, whole.script)
    listen = ", ".join(f'{{name: {name}, bind: "127.0.0.1:0", workload: {name}}}' for name in ("billing", "reports"))
    mixed: dict[str, set[tuple[int, int]]] = {"caller": set(), "workload": set()}
    try:
        proxy = ostiary(
            TWO,
            upstreams={"api.test:443": ahead.port},
            secrets={"secret/egress/api": {"key": canary()}},
            listen=f"[{listen}]",
        )
        for number in range(4):
            for name in ("billing", "reports"):
                with tunnel(proxy.address(name), proxy.ca) as raw:
                    for step in range(2):
                        raw.send(f"GET /{name}/{number} HTTP/1.1\r\nHost: api.test\r\n\r\n".encode())
                        try:
                            answer = raw.answer()
                        except OSError:
                            break
                        if answer.code is not None or answer.body == b"EVIL":
                            continue
                        _, whose, which = answer.body.decode().split("/")
                        assert whose == name, "an answer of another workload"
                        if int(which) != number:
                            mixed["workload"].add((number, step))
    finally:
        ahead.stop()
    shared = DIFFERENCES["one_answer_ahead"].verdicts[engine]
    assert shared in {"caller", "workload"}
    assert bool(mixed["workload"]) <= (shared == "workload")
