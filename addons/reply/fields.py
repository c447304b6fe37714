"""Strips an upstream's answer of fields that speak for this proxy or that end at it.

`X-Ostiary-*` would let an upstream imitate our refusals; `Proxy-Authenticate` would ask the workload for its proof;
`Alt-Svc` would move the client to a protocol that passes by this proxy (G44, RFC 7838).
"""

from __future__ import annotations

from typing import Final

from addons.head import Fields
from addons.names import ByName

_DROPPED: Final = frozenset(
    {b"keep-alive", b"proxy-authenticate", b"proxy-authentication-info", b"proxy-connection", b"alt-svc", b"alt-used"}
)


def _does_not_pass(name: bytes) -> bool:
    key = name.lower()
    return key in _DROPPED or key == b"connection" or key.startswith(b"x-ostiary-")


_touched: Final = ByName(_does_not_pass)
"""Whether a field of this name does not simply pass."""


def kept_reply_fields(fields: Fields) -> Fields:
    """The fields that reach the caller, in order; `Connection: close` stays, since the engine reads it."""
    touched = [_touched[name] for name, _ in fields]
    if True not in touched:
        return fields
    at = touched.index(True)
    name, value = fields[at]
    if value == b"keep-alive" and name.lower() == b"connection" and True not in touched[at + 1 :]:
        return (*fields[:at], *fields[at + 1 :])
    kept: list[tuple[bytes, bytes]] = []
    nominated = {
        token.strip().lower() for name, value in fields if name.lower() == b"connection" for token in value.split(b",")
    }
    # Framing and our own reading of close must survive a hostile Connection list.
    nominated -= {b"close", b"content-length", b"transfer-encoding", b"connection"}
    for name, value in fields:
        key = name.lower()
        if key == b"connection":
            if b"close" in value.lower():
                kept.append((name, b"close"))
            continue
        if key not in _DROPPED and key not in nominated and not key.startswith(b"x-ostiary-"):
            kept.append((name, value))
    return tuple(kept)
