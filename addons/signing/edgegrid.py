"""Akamai EdgeGrid, EG1-HMAC-SHA256
(https://techdocs.akamai.com/developer/docs/authenticate-with-edgegrid; vectors of Akamai's own client in tests).

The signature covers the body of a POST alone, and of that the first `max_body` bytes: so Akamai computes it too.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
import uuid
from typing import Final

from addons.credentials import Credential
from addons.injection.render import header_value
from addons.signing.hmac_lines import whole
from addons.signing.keys import malformed, the_secret
from addons.signing.outgoing import Outgoing
from policies.sign import EdgeGridSigner

METHOD: Final = "POST"
"""Whose bodies are signed."""


def sign_edgegrid(
    signer: EdgeGridSigner, request: Outgoing, credential: Credential, now_s: float, nonce: str | None = None
) -> None:
    """Puts `Authorization`.

    Args:
        signer: of the route.
        request: what leaves; its body is whole where it is a POST.
        credential: opened for this request.
        now_s: wall-clock seconds.
        nonce: a new one unless given.

    Raises:
        Refusal: `secret_malformed`, `secret_missing`.
    """
    stamp = time.strftime("%Y%m%dT%H:%M:%S+0000", time.gmtime(int(now_s))).encode("ascii")
    head = b"EG1-HMAC-SHA256 client_token=%b;access_token=%b;timestamp=%b;nonce=%b;" % (
        header_value(signer.client_token, credential),
        header_value(signer.access_token, credential),
        stamp,
        (nonce or str(uuid.uuid4())).encode("ascii"),
    )
    secret, reference = the_secret(signer.client_secret, credential)
    raw = secret.reveal_bytes()
    if not raw or any(byte <= 0x20 or byte >= 0x7F for byte in raw):
        raise malformed(reference, "is no client secret: visible ASCII without spaces is")
    text = b"\t".join((
        request.method.encode("ascii"), request.scheme.encode("ascii"), request.host, request.target,
        _fields(signer, request), _content(signer, request), head,
    ))  # fmt: skip
    key = base64.b64encode(hmac.digest(raw, stamp, "sha256"))
    request.put(b"Authorization", head + b"signature=" + base64.b64encode(hmac.digest(key, text, "sha256")))


def _fields(signer: EdgeGridSigner, request: Outgoing) -> bytes:
    """The signed fields that are there: outer blanks off, inner ones one."""
    found: list[bytes] = []
    for name in signer.headers:
        raw = name.encode("ascii")
        if values := request.values(raw) if raw != b"host" else [request.host]:
            found.append(raw + b":" + b" ".join(b",".join(values).split()))
    return b"\t".join(found)


def _content(signer: EdgeGridSigner, request: Outgoing) -> bytes:
    if request.method != METHOD or not (body := whole(request)):
        return b""
    return base64.b64encode(hashlib.sha256(memoryview(body)[: signer.max_body_bytes]).digest())
