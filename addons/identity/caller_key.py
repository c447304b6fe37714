"""Caller keys: `ost_…` tokens that a workload presents in `Proxy-Authorization`, on reverse listeners in
`X-Ostiary-Authorization`, of which Ostiary knows only the SHA-256.

A key is 256 random bits, so a plain SHA-256 is enough: there is nothing to guess and nothing to salt. It travels as
Bearer (RFC 6750 section 2.1) or as the Basic password (RFC 7617); the Basic user name is ignored, and a password may
contain colons.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

from addons.head import RequestHead
from addons.refusal import Code, Refusal

MAX_KEY_BYTES: Final = 4096
PROXY_FIELD: Final = "Proxy-Authorization"
REVERSE_FIELD: Final = "X-Ostiary-Authorization"
"""`Authorization` itself belongs to the upstream, and `Proxy-Authorization` no client sends to a server."""


def presented_key(head: RequestHead, field: str = PROXY_FIELD) -> str | None:
    """SHA-256 (hex) of the key in this field, or None where the caller presents nothing.

    Raises:
        Refusal: `proof_invalid`; the field is there and is neither Basic nor Bearer, or stands twice.
    """
    values = head.values(field.lower().encode())
    if not values:
        return None
    if len(values) > 1:
        raise Refusal(Code.PROOF_INVALID, f"{field} stands twice.")
    scheme, _, rest = values[0].partition(b" ")
    rest = rest.strip(b" ")
    if len(rest) > MAX_KEY_BYTES:
        raise Refusal(Code.PROOF_INVALID, f"{field} is too long.")
    match scheme.lower():
        case b"bearer":
            key = rest
        case b"basic":
            try:
                _, colon, key = base64.b64decode(rest, validate=True).partition(b":")
            except binascii.Error:
                raise Refusal(Code.PROOF_INVALID, f"{field} is no valid Basic credential.") from None
            if not colon:
                raise Refusal(Code.PROOF_INVALID, f"{field} is no valid Basic credential.")
        case _:
            raise Refusal(Code.PROOF_INVALID, f"{field} must be Basic or Bearer.")
    if not key:
        # `http://user@proxy` sends an empty password: the caller has no key, rather than a wrong one.
        return None
    return hashlib.sha256(key).hexdigest()
