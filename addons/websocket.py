"""The opening handshake of WebSocket (RFC 6455 section 4), judged on both sides. The one upgrade that is let through.

An upgrade ends HTTP on a connection: what follows is bytes that no stage reads. So the caller's request must be a
handshake and nothing else, and the upstream's 101 must prove that it understood it; any other upgrade has been a way to
smuggle requests past proxies (h2c).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

from addons.head import Fields, RequestHead
from addons.names import ByName
from addons.refusal import Code, Refusal

UPGRADE_FIELDS: Final[Fields] = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
"""The hop's own fields: the caller's ended here, these go on."""
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION: Final = b"13"


class NotSwitched(ValueError):
    """An upstream's 101 does not answer the handshake."""


def _values(fields: Fields, name: bytes) -> tuple[bytes, ...]:
    return tuple(value for key, value in fields if key.lower() == name)


def _tokens(fields: Fields, name: bytes) -> set[bytes]:
    return {token.strip().lower() for value in _values(fields, name) for token in value.split(b",")}


def wants_websocket(fields: Fields) -> bool:
    """Whether the head asks for WebSocket. The edge has refused every other protocol."""
    if True not in [_upgrade[name] for name, _ in fields]:
        return False
    return any(name.lower() == b"upgrade" and value.lower() == b"websocket" for name, value in fields)


_upgrade: Final = ByName(lambda name: name.lower() == b"upgrade")


def judge_handshake(head: RequestHead) -> None:
    """Judges the head of a request that asks for WebSocket.

    Raises:
        Refusal: `bad_request`; something in it is no handshake of RFC 6455 section 4.1.
    """
    if head.http2 or head.method != "GET":
        raise _bad("a WebSocket handshake is a GET over HTTP/1.1")
    if _values(head.fields, b"content-length") not in {(), (b"0",)} or _values(head.fields, b"transfer-encoding"):
        raise _bad("a WebSocket handshake has no body")
    if b"upgrade" not in _tokens(head.fields, b"connection"):
        raise _bad("Upgrade without Connection: Upgrade")
    if _values(head.fields, b"sec-websocket-version") != (_VERSION,):
        raise _bad("Sec-WebSocket-Version must be 13")
    keys = _values(head.fields, b"sec-websocket-key")
    try:
        decoded = base64.b64decode(keys[0], validate=True) if len(keys) == 1 else b""
    except (binascii.Error, ValueError):
        decoded = b""
    if len(decoded) != 16:
        raise _bad("Sec-WebSocket-Key must be 16 bytes in base64")


def judge_switch(asked: Fields, answered: Fields) -> None:
    """Judges the head of a 101 against the handshake that was sent.

    Raises:
        NotSwitched: RFC 6455 section 4.1 wants the connection failed.
    """
    key = _values(asked, b"sec-websocket-key")
    if not wants_websocket(asked) or len(key) != 1:
        raise NotSwitched("nobody asked for it")
    if _tokens(answered, b"upgrade") != {b"websocket"} or b"upgrade" not in _tokens(answered, b"connection"):
        raise NotSwitched("it switches to another protocol")
    proof = base64.b64encode(hashlib.sha1(key[0] + _GUID, usedforsecurity=False).digest())
    if _values(answered, b"sec-websocket-accept") != (proof,):
        raise NotSwitched("Sec-WebSocket-Accept does not fit the key")
    if _values(answered, b"content-length") not in {(), (b"0",)} or _values(answered, b"transfer-encoding"):
        raise NotSwitched("it has a body")
    chosen = _values(answered, b"sec-websocket-protocol")
    if len(chosen) > 1 or (chosen and chosen[0].lower() not in _tokens(asked, b"sec-websocket-protocol")):
        raise NotSwitched("it chooses a subprotocol that was not offered")


def _bad(what: str) -> Refusal:
    return Refusal(Code.BAD_REQUEST, f"No WebSocket handshake: {what}.", close=True)
