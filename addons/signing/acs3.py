"""Alibaba Cloud, signature version 3: ACS3-HMAC-SHA256
(https://www.alibabacloud.com/help/en/sdk/product-overview/v3-request-structure-and-signature).

Signed are `host`, `content-type` and every `x-acs-*` field. Date, nonce and the hash of the body are made here.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from typing import Final

from addons.credentials import Credential
from addons.injection.render import header_value
from addons.signing.aws import canonical_path, canonical_query
from addons.signing.hmac_lines import whole
from addons.signing.keys import malformed, the_secret
from addons.signing.outgoing import Outgoing
from policies.sign import Acs3Signer

ALGORITHM: Final = b"ACS3-HMAC-SHA256"


def sign_acs3(
    signer: Acs3Signer, request: Outgoing, credential: Credential, now_s: float, nonce: str | None = None
) -> None:
    """Puts `Authorization`, `x-acs-date`, `x-acs-signature-nonce` and `x-acs-content-sha256`.

    Args:
        signer: of the route.
        request: what leaves, without what the caller's SDK had signed with.
        credential: opened for this request.
        now_s: wall-clock seconds.
        nonce: a new one unless given.

    Raises:
        Refusal: `secret_malformed`, `secret_missing`.
    """
    payload = hashlib.sha256(whole(request)).hexdigest().encode("ascii")
    request.put(b"x-acs-date", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(now_s))).encode("ascii"))
    request.put(b"x-acs-signature-nonce", (nonce or secrets.token_hex(16)).encode("ascii"))
    request.put(b"x-acs-content-sha256", payload)
    if signer.security_token is not None:
        request.put(b"x-acs-security-token", header_value(signer.security_token, credential))
    fields = _signed(request)
    names = b";".join([name for name, _ in fields])
    lines = b"".join([b"%b:%b\n" % field for field in fields])
    canonical = b"\n".join((
        request.method.encode("ascii"), canonical_path(request.path), canonical_query(request.query), lines, names, payload,
    ))  # fmt: skip
    secret, reference = the_secret(signer.access_key_secret, credential)
    raw = secret.reveal_bytes()
    if not raw or any(byte <= 0x20 or byte >= 0x7F for byte in raw):
        raise malformed(reference, "is no AccessKey secret: visible ASCII without spaces is")
    text = ALGORITHM + b"\n" + hashlib.sha256(canonical).hexdigest().encode("ascii")
    request.put(
        b"Authorization",
        b"%b Credential=%b,SignedHeaders=%b,Signature=%b"
        % (
            ALGORITHM,
            header_value(signer.access_key_id, credential),
            names,
            hmac.digest(raw, text, "sha256").hex().encode("ascii"),
        ),
    )


def _signed(request: Outgoing) -> list[tuple[bytes, bytes]]:
    found: dict[bytes, list[bytes]] = {b"host": [request.host]}
    for name, value in request.fields:
        key = name.lower()
        if key == b"content-type" or key.startswith(b"x-acs-"):
            found.setdefault(key, []).append(value.strip(b" \t"))
    return sorted((name, b",".join(sorted(values))) for name, values in found.items())
