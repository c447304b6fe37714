"""WebSocket: the credential goes on the handshake and never comes back in a frame (G43), bytes pass untouched where a route
does not scrub, and nothing else is an upgrade (G49)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import time
from collections.abc import Callable

import pytest

from tests.conftest import POLICY
from tests.harness.canaries import canary
from tests.harness.client import Raw, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Script, Seen, Upstream, Wire

# The example of RFC 6455 section 1.3.
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
HANDSHAKE = (
    "GET /live?x=1 HTTP/1.1\r\nHost: api.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: chat, v2\r\n"
)
SWITCH = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n"


def switching(head: str = SWITCH, first: bytes = b"", then: Callable[[Wire], None] | None = None) -> Script:
    """Accepts the handshake with this head, and sends every byte back that it gets."""

    def script(seen: Seen, wire: Wire) -> None:
        wire.send(head.encode() + b"\r\n" + first)
        if then is not None:
            then(wire)
            return
        while data := wire.sock.recv(65536):
            wire.send(data)
        wire.close()

    return script


def start(
    ostiary: Callable[..., Ostiary], api: Upstream, limits: str = "", key: str | None = None, scrub: str = "none"
) -> Ostiary:
    secrets = {"secret/egress/api": {"key": key or canary()}}
    policy = POLICY + f"    reply: {{scrub: {scrub}}}\n"
    return ostiary(policy, upstreams={"api.test:443": api.port}, secrets=secrets, settings=limits)


def opened(raw: Raw, extra: str = "") -> None:
    raw.send((HANDSHAKE + extra + "\r\n").encode())
    answer = raw.head()
    assert answer.status == 101
    assert answer.all("Upgrade") == ["websocket"]
    assert [value.lower() for value in answer.all("Connection")] == ["upgrade"]
    assert answer.get("Sec-WebSocket-Accept") == ACCEPT


def test_the_credential_on_the_handshake_and_frames_untouched(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    # Bytes that look like line ends, a chunk, a request: nothing may be read into them.
    first = b"\x82\x04\r\n\r\n"
    api = upstream(switching(first=first))
    key = canary()
    proxy = start(ostiary, api, key=key)
    frames = [b"\x81\x85abcd\r\n\r\n0", b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n", bytes(range(256)) * 4096]
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        opened(raw, "Authorization: Bearer mine\r\nSec-WebSocket-Extensions: permessage-deflate\r\n")
        assert raw.read_exactly(len(first)) == first
        for frame in frames:
            raw.send(frame)
            assert raw.read_exactly(len(frame)) == frame
        assert not proxy.audit("credential.closed")
    (closed,) = proxy.wait_audit("credential.closed")
    sent = sum(map(len, frames))
    assert (closed["outcome"], closed["status"]) == ("ok", 101)
    assert (closed["bytes_in"], closed["bytes_out"]) == (sent, sent + len(first))
    assert closed["payload_sha256"] == hashlib.sha256(b"".join(frames)).hexdigest()
    (seen,) = api.requests
    assert seen.get("authorization") == f"Bearer {key}"
    assert (seen.get("upgrade"), seen.get("connection")) == ("websocket", "Upgrade")
    assert seen.get("sec-websocket-key") == KEY
    assert seen.get("sec-websocket-extensions") == "permessage-deflate"
    # Only the handshake went by as HTTP.
    assert len(proxy.audit("credential.opened")) == 1


@pytest.mark.parametrize("scrub", ["scrub", "block"])
def test_g43_u9_frames_show_no_credential(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], scrub: str
) -> None:
    """In text and binary, over fragments and reads, in a ping and in the reason of a close. No extension is offered."""
    key = canary()
    half, rest = key[:11].encode(), key[11:].encode()
    hidden = base64.b64encode(key.encode())
    sent = [
        b"\x82\x05hello",
        b"\x01%bx%b" % (bytes([1 + len(half)]), half),
        b"\x80%b%by" % (bytes([1 + len(rest)]), rest),
        b"\x81%b%b" % (bytes([len(hidden)]), hidden),
        b"\x89%b%b" % (bytes([len(key)]), key.encode()),
        b"\x88%b\x03\xe8%b" % (bytes([2 + len(key)]), key.encode()),
    ]

    def then(wire: Wire) -> None:
        for frame in sent:
            for at in range(0, len(frame), 7):
                wire.send(frame[at : at + 7])
        while wire.sock.recv(65536):
            pass

    api = upstream(switching(then=then))
    proxy = start(ostiary, api, key=key, scrub=scrub)
    proxy.canaries.append(key)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        opened(raw, "Sec-WebSocket-Extensions: permessage-deflate\r\n")
        if scrub == "scrub":
            got = raw.read_exactly(sum(map(len, sent)))
            stars = [b"*" * len(one) for one in (half, rest, hidden, key, key)]
            assert got == b"".join([
                sent[0], sent[1].replace(half, stars[0]), sent[2].replace(rest, stars[1]),
                sent[3].replace(hidden, stars[2]), sent[4].replace(key.encode(), stars[3]),
                sent[5].replace(key.encode(), stars[4]),
            ])  # fmt: skip
        else:
            # What came with the frame that shows it does not pass either.
            left = b""
            with contextlib.suppress(ConnectionError):
                while True:
                    left += raw.read_exactly(1)
            assert b"".join(sent[:2]).startswith(left)
    (seen,) = api.requests
    assert seen.get("sec-websocket-extensions") is None
    (closed,) = proxy.wait_audit("credential.closed")
    if scrub == "scrub":
        assert (closed["outcome"], closed["redactions"]) == ("ok", 4)
    else:
        assert (closed["code"], closed["redactions"]) == ("reply_blocked", 1)


@pytest.mark.parametrize(
    ("head", "first", "code"),
    [
        (SWITCH + "Sec-WebSocket-Extensions: permessage-deflate\r\n", b"", "reply_blocked"),
        (SWITCH, b"\xc1\x05hello", "upstream_protocol"),
        (SWITCH, b"\x81\x85abcdhello", "upstream_protocol"),
    ],
)
def test_g43_what_cannot_be_searched_ends(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], head: str, first: bytes, code: str
) -> None:
    proxy = start(ostiary, upstream(switching(head, first)), scrub="scrub")
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send((HANDSHAKE + "\r\n").encode())
        answer = raw.head()
        assert answer.status == (502 if code == "reply_blocked" else 101)
        if answer.status == 101:
            assert raw.closed()
    (closed,) = proxy.wait_audit("credential.closed")
    assert closed["code"] == code


def test_frames_sent_with_the_handshake_wait_for_the_answer(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    proxy = start(ostiary, upstream(switching()))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send((HANDSHAKE + "\r\n").encode() + b"\r\n-early")
        assert raw.head().status == 101
        assert raw.read_exactly(8) == b"\r\n-early"


def test_the_upstream_ends(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    proxy = start(ostiary, upstream(switching(first=b"\x88\x00", then=lambda wire: wire.close())))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        opened(raw)
        assert raw.read_exactly(2) == b"\x88\x00"
        assert raw.closed()
    (closed,) = proxy.wait_audit("credential.closed")
    assert (closed["outcome"], closed["bytes_out"]) == ("ok", 2)


def test_a_silent_websocket_ends_at_its_idle_deadline(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    proxy = start(ostiary, upstream(switching()), "limits: {idle_timeout: 500ms}\n")
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        opened(raw)
        for _ in range(4):  # frames keep it open
            time.sleep(0.25)
            raw.send(b"\x89\x80abcd")
            assert raw.read_exactly(6)
        assert raw.closed()
    (closed,) = proxy.wait_audit("credential.closed")
    assert closed["code"] == "upstream_timeout"


def test_an_upstream_that_declines(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    """A plain answer to the handshake passes, and the connection goes on."""

    def script(seen: Seen, wire: Wire) -> None:
        wire.answer(426 if seen.get("upgrade") else 200, b"no")

    proxy = start(ostiary, upstream(script))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request(HANDSHAKE + "\r\n").status == 426
        assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (ACCEPT, base64.b64encode(bytes(20)).decode()),
        ("Upgrade: websocket", "Upgrade: h2c"),
        ("Connection: Upgrade", "Connection: close"),
        ("Upgrade: websocket", "Upgrade: websocket\r\nContent-Length: 5"),
        ("Upgrade: websocket", "Upgrade: websocket\r\nSec-WebSocket-Protocol: other"),
    ],
)
def test_g49_a_101_that_does_not_answer_the_handshake(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], was: str, now: str
) -> None:
    assert was in SWITCH
    proxy = start(ostiary, upstream(switching(SWITCH.replace(was, now))))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        answer = raw.request(HANDSHAKE + "\r\n")
    assert (answer.status, answer.code) == (502, "upstream_protocol")
    (closed,) = proxy.wait_audit("credential.closed")
    assert (closed["outcome"], closed["code"]) == ("upstream_error", "upstream_protocol")


def test_g49_a_101_that_nobody_asked_for(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    proxy = start(ostiary, upstream(switching()))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        answer = raw.request(f"GET / HTTP/1.1\r\nHost: api.test\r\nSec-WebSocket-Key: {KEY}\r\n\r\n")
    assert (answer.status, answer.code) == (502, "upstream_protocol")


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("Upgrade: websocket", "Upgrade: h2c"),
        ("Upgrade: websocket", "Upgrade: websocket, h2c"),
        ("Upgrade: websocket", "Upgrade: websocket\r\nUpgrade: h2c"),
        ("Upgrade: websocket", "Upgrade: TLS/1.0"),
        ("GET", "POST"),
        ("HTTP/1.1", "HTTP/1.0"),
        ("keep-alive, Upgrade", "keep-alive"),
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"),
        (f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Key: short"),
        (f"Sec-WebSocket-Key: {KEY}", f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Key: {KEY}"),
        ("Upgrade: websocket", "Upgrade: websocket\r\nContent-Length: 4"),
        ("Upgrade: websocket", "Upgrade: websocket\r\nTransfer-Encoding: chunked"),
    ],
)
def test_g49_an_upgrade_that_is_no_websocket_handshake(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], was: str, now: str
) -> None:
    assert was in HANDSHAKE
    api = upstream(switching())
    proxy = start(ostiary, api)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        answer = raw.request(HANDSHAKE.replace(was, now, 1) + "\r\n")
    assert (answer.status, answer.code) == (400, "bad_request")
    assert api.connections == 0
    assert not proxy.audit("credential.opened")
