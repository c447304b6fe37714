"""G48: what an HTTP/2 caller can pour into its connection is bounded, and others do not feel it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import h2.settings
import hpack
import pytest

from tests.harness.canaries import canary
from tests.harness.client import Raw, get, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.report import figure
from tests.harness.upstream import Seen, Upstream, Wire

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ENHANCE_YOUR_CALM: Final = 11
PROTOCOL_ERROR: Final = 1
GOOD_MOST_S: Final = 1.0
"""The slowest request of the good client, on two shared cores."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def block(*fields: tuple[bytes, bytes]) -> bytes:
    """Fields as literals that enter no table; names and values under 127 bytes."""
    return b"".join(b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields)


HEAD: Final = block((b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"api.test"), (b":path", b"/flood"))
POST: Final = HEAD.replace(b"\x03GET", b"\x04POST")


@dataclass
class Got:
    """What came back on a connection."""

    statuses: list[str] = field(default_factory=list)
    resets: list[int] = field(default_factory=list)
    goaway: int | None = None
    closed: bool = False


class Frames:
    """Counts what a client must know of answers."""

    def __init__(self) -> None:
        self.ended = self.data_bytes = 0
        self.decoder = hpack.Decoder()
        self._held = b""

    def take(self, data: bytes) -> None:
        assert data, "closed"
        self._held += data
        while len(self._held) >= 9 and len(self._held) >= 9 + (size := int.from_bytes(self._held[:3])):
            kind, flags, payload = self._held[3], self._held[4], self._held[9 : 9 + size]
            self._held = self._held[9 + size :]
            if kind == 1:
                self.decoder.decode(payload)
            assert kind != 7, "GOAWAY"
            self.ended += kind in {0, 1} and bool(flags & 1)
            self.data_bytes += size if kind == 0 else 0


def read(raw: Raw, wait_s: float) -> Got:
    """All frames until the proxy closes or is silent for that long."""
    got, held, decoder = Got(), b"", hpack.Decoder()
    raw.sock.settimeout(wait_s)
    while True:
        try:
            data = raw.sock.recv(65536)
        except TimeoutError:
            break
        except OSError:
            data = b""
        if not data:
            got.closed = True
            break
        held += data
        while len(held) >= 9 and len(held) >= 9 + (size := int.from_bytes(held[:3])):
            kind, payload, held = held[3], held[9 : 9 + size], held[9 + size :]
            if kind == 1:
                fields = {str(name): str(value) for name, value in decoder.decode(payload)}
                got.statuses.append(fields[":status"])
            elif kind == 3:
                got.resets.append(int.from_bytes(payload))
            elif kind == 7 and got.goaway is None:
                got.goaway = int.from_bytes(payload[4:8])
    return got


def rapid_reset() -> list[bytes]:
    pairs = [frame(1, 5, stream, HEAD) + frame(3, 0, stream, b"\0\0\0\x08") for stream in range(1, 8001, 2)]
    return [b"".join(pairs[at : at + 200]) for at in range(0, len(pairs), 200)]


def made_us_reset() -> list[bytes]:
    """CVE-2025-8671: a window that overflows makes us reset the stream."""
    wrong = [frame(1, 4, stream, POST) + frame(8, 0, stream, b"\x7f\xff\xff\xff") for stream in range(1, 4001, 2)]
    return [b"".join(wrong[at : at + 20]) for at in range(0, len(wrong), 20)]


FLOODS: Final[dict[str, Callable[[], list[bytes]]]] = {
    "rapid reset": rapid_reset,
    "resets made by us": made_us_reset,
    "SETTINGS": lambda: [frame(4, 0, 0, b"\0\x03\0\0\0\x64") * 100] * 50,
    "PING": lambda: [frame(6, 0, 0, b"pingpong") * 500] * 50,
    "PRIORITY": lambda: [b"".join(frame(2, 0, stream, b"\0\0\0\0\x10") for stream in range(1, 1001, 2))] * 50,
    "empty DATA": lambda: [frame(1, 4, 1, POST), *[frame(0, 0, 1) * 1000] * 50],
    "WINDOW_UPDATE": lambda: [frame(8, 0, 0, b"\0\0\0\x01") * 2000] * 50,
    "unknown frames": lambda: [frame(0xBB, 0, 0, b"x") * 500] * 50,
    "CONTINUATION": lambda: [frame(1, 0, 1, HEAD), *[frame(9, 0, 1, block((b"x", b"y" * 100)))] * 5000],
    "empty CONTINUATION": lambda: [frame(1, 0, 1, HEAD), *[frame(9, 0, 1) * 100] * 50],
    "a head of a megabyte": lambda: [
        frame(1, 0, 1, HEAD),
        *[frame(9, 0, 1, block((b"x", b"y" * 120)) * 120)] * 80,
    ],
    # One entry of the dynamic table, named again and again: 60 000 bytes that unfold to 240 MB.
    "HPACK bomb": lambda: [
        frame(1, 4, 1, HEAD + b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000 + b"\xbe" * 12_000)
        + frame(1, 5, 3, HEAD + b"\xbe" * 60_000)
    ],
    "too many streams": lambda: [b"".join(frame(1, 4, stream, POST) for stream in range(1, 4001, 2))],
}


def start(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], **given: object) -> Ostiary:
    def script(seen: Seen, wire: Wire) -> None:
        wire.answer(200, b"x" * (1 << 20) if seen.target == "/large" else b"hello")

    return ostiary(
        "workloads: {billing: {proofs: [{any: true}]}}\n"
        "routes:\n"
        "  api: {match: {host: api.test}, allow: billing, inject: {bearer: '{secret}'},\n"
        "    secret: {path: secret/egress/api, field: key, ttl: 1m}}\n",
        upstreams={"api.test:443": upstream(script).port},
        secrets={"secret/egress/api": {"key": canary()}},
        **given,
    )


@pytest.mark.parametrize("kind", FLOODS)
def test_g48_a_flood_ends_its_own_connection(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], kind: str
) -> None:
    proxy = start(ostiary, upstream)
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    before, pieces = proxy.rss_bytes(), FLOODS[kind]()
    taken: list[float] = []
    got = Got()

    def flood() -> None:
        nonlocal got
        with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
            with contextlib.suppress(OSError):
                raw.send(PREFACE + frame(4, 0, 0))
                for piece in pieces:
                    raw.send(piece)
            got = read(raw, 10)

    flooding = threading.Thread(target=flood)
    flooding.start()
    while flooding.is_alive() or len(taken) < 5:
        began = time.monotonic()
        assert get(proxy.address("sidecar"), proxy.ca).status == 200
        taken.append(time.monotonic() - began)
    flooding.join()
    # A connection that is closed while the flood still comes may be reset before GOAWAY is read.
    assert got.closed
    assert got.goaway in {ENHANCE_YOUR_CALM, PROTOCOL_ERROR, None}
    assert max(taken) < GOOD_MOST_S, taken
    assert proxy.rss_bytes() - before < 24 << 20
    refused = proxy.wait_audit("request.refused")
    assert {record["code"] for record in refused} & {"overloaded", "bad_request"}
    uses = [record for record in proxy.audit("credential.opened") if record["path"] == "/flood"]
    # What a flood costs is bounded: by the budget of resets, or by the streams that may be open.
    assert len(uses) <= 401, len(uses)
    assert b"Traceback" not in bytes(proxy.stderr)
    figure(f"good client beside an HTTP/2 flood ({kind})", f"every request answered within {GOOD_MOST_S:g} s")


def test_g48_a_header_block_that_does_not_end(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """Slow-loris of HTTP/2: the block grows by a byte now and then, and each would reset an inactivity timer."""
    proxy = start(ostiary, upstream, settings="limits: {header_timeout: 1s}\n")
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        raw.send(PREFACE + frame(4, 0, 0) + frame(1, 0, 1, HEAD))
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(12):
                time.sleep(0.2)
                raw.send(frame(9, 0, 1, b"\x00\x01x\x01y"))
        got = read(raw, 5)
        assert got.closed
        assert time.monotonic() - began < 4
    assert proxy.wait_audit("request.refused")[0]["code"] == "request_timeout"
    assert not proxy.audit("credential.opened")


@pytest.mark.parametrize("protocol", [None, b"", b"websocket", b"connect-udp"])
def test_g48_connect_inside_a_tunnel(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], protocol: bytes | None
) -> None:
    """RFC 9113 section 8.5 and RFC 8441: another tunnel, in which no stage would read."""
    api = upstream(names=("api.test", "other.test"))
    proxy = ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}})
    fields = [(b":method", b"CONNECT"), (b":authority", b"other.test:443")]
    if protocol is not None:
        fields += [(b":protocol", protocol)] if protocol else []
        fields += [(b":scheme", b"https"), (b":path", b"/")]
    follows = block((b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"other.test"), (b":path", b"/"))
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        raw.send(PREFACE + frame(4, 0, 0) + frame(1, 4, 1, block(*fields)) + frame(1, 5, 3, follows))
        got = read(raw, 3)
    assert (got.goaway, got.closed, got.statuses) == (PROTOCOL_ERROR, True, [])
    assert api.connections == 0
    assert proxy.wait_audit("request.refused")[0]["code"] == "bad_request"


def test_g48_a_table_of_the_callers_choosing(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """Each answer holds an id of its own. In a table of 4 GiB all would stay, and all be looked through for each field."""
    proxy = start(ostiary, upstream)
    table = frame(4, 0, 0, h2.settings.SettingCodes.HEADER_TABLE_SIZE.to_bytes(2) + b"\xff\xff\xff\xff")
    other = HEAD.replace(b"\x08api.test", b"\x09evil.test")
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        raw.send(PREFACE + table + frame(8, 0, 0, b"\x3f\xff\0\0"))
        raw.sock.settimeout(10)
        stream, got = 1, Frames()
        got.decoder.max_allowed_table_size = 1 << 32
        for _ in range(20):
            raw.send(b"".join(frame(1, 5, stream + 2 * at, other) for at in range(50)))
            stream += 100
            until = got.ended + 50
            while got.ended < until:
                got.take(raw.sock.recv(65536))
    # What the proxy told of its table (RFC 7541 section 6.3), as the decoder of a caller has it.
    assert got.decoder.header_table_size <= 4096


def test_g48_a_reader_may_open_its_window_as_it_reads(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """What looks like a flood and is none: a window update for each kilobyte of 24 MiB, and pings beside it."""
    proxy = start(ostiary, upstream)
    small = frame(4, 0, 0, b"\0\x05\0\0\x40\0")
    large = HEAD.replace(b"\x06/flood", b"\x06/large")
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        raw.send(PREFACE + small)
        raw.sock.settimeout(10)
        got = Frames()
        for stream in range(1, 49, 2):
            raw.send(frame(1, 5, stream, large) + frame(6, 0, 0, b"pingpong"))
            got.ended = got.data_bytes = updates = 0
            while not got.ended:
                got.take(raw.sock.recv(65536))
                pieces = got.data_bytes // 1024 - updates
                updates += pieces
                # For a stream that has ended an update is legal too (RFC 9113 section 6.9).
                raw.send((frame(8, 0, 0, b"\0\0\x04\0") + frame(8, 0, stream, b"\0\0\x04\0")) * pieces)
            assert got.data_bytes == 1 << 20
