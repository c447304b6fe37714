"""Tencent Cloud, signature version 3: TC3-HMAC-SHA256
(https://www.tencentcloud.com/document/product/213/33224).

The service comes from what the caller's SDK signed with placeholder keys, and must stand in the route; a caller that
signs nothing is signed for the route's one service.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from typing import Final

from addons.credentials import Credential
from addons.head import RequestHead
from addons.injection.render import header_value
from addons.refusal import Code, Refusal
from addons.signing.hmac_lines import field_value, whole
from addons.signing.keys import malformed, the_secret
from addons.signing.outgoing import Outgoing
from policies.sign import Tc3Signer

ALGORITHM: Final = b"TC3-HMAC-SHA256"
_AUTHORIZATION: Final = re.compile(
    rb"TC3-HMAC-SHA256 +Credential=[^ ,/]+/[0-9-]{10}/([a-z][a-z0-9-]{0,62})/tc3_request, *SignedHeaders=[^ ,]+, *Signature=[0-9a-fA-F]*"
)


def service_of(signer: Tc3Signer, head: RequestHead) -> str:
    """The service that a request is for, checked against the route's.

    Raises:
        Refusal: `access_denied`, or `bad_request` where it cannot be told.
    """
    values = [value for value in head.values(b"authorization") if value.startswith(b"TC3-")]
    if not values:
        if len(signer.services) > 1:
            raise Refusal(
                Code.BAD_REQUEST,
                "This route signs for several Tencent Cloud services: sign the request with placeholder keys, so that it says for which.",
            )
        return signer.services[0]
    match = _AUTHORIZATION.fullmatch(values[0].strip()) if len(values) == 1 else None
    if match is None:
        raise Refusal(Code.BAD_REQUEST, "The signature in the Authorization field is no TC3-HMAC-SHA256 of an SDK.")
    service = match[1].decode("ascii")
    if service not in signer.services:
        raise Refusal(Code.ACCESS_DENIED, f"This route does not sign for the Tencent Cloud service {service}.")
    return service


def sign_tc3(signer: Tc3Signer, service: str, request: Outgoing, credential: Credential, now_s: float) -> None:
    """Puts `Authorization` and `X-TC-Timestamp`, and `X-TC-Token` for temporary keys.

    Args:
        signer: of the route.
        service: as `service_of` tells it.
        request: what leaves.
        credential: opened for this request.
        now_s: wall-clock seconds.

    Raises:
        Refusal: `bad_request` without a Content-Type, which this API has signed always; `secret_malformed`,
            `secret_missing`.
    """
    stamp, day = str(int(now_s)).encode("ascii"), time.strftime("%Y-%m-%d", time.gmtime(int(now_s))).encode("ascii")
    request.put(b"X-TC-Timestamp", stamp)
    if signer.token is not None:
        request.put(b"X-TC-Token", header_value(signer.token, credential))
    fields = [(name, field_value(request, name).lower()) for name in (b"content-type", b"host", b"x-tc-action")]
    if not fields[0][1]:
        raise Refusal(Code.BAD_REQUEST, "This route signs the field content-type, which the request does not have.")
    fields = [field for field in fields if field[1]]
    names = b";".join([name for name, _ in fields])
    lines = b"".join([b"%b:%b\n" % field for field in fields])
    payload = hashlib.sha256(whole(request)).hexdigest().encode("ascii")
    canonical = b"\n".join((request.method.encode("ascii"), request.path or b"/", request.query, lines, names, payload))
    place = b"%b/%b/tc3_request" % (day, service.encode("ascii"))
    text = b"\n".join((ALGORITHM, stamp, place, hashlib.sha256(canonical).hexdigest().encode("ascii")))
    signature = hmac.digest(_key(signer, service, day, credential), text, "sha256").hex().encode("ascii")
    access = header_value(signer.secret_id, credential)
    request.put(
        b"Authorization",
        b"%b Credential=%b/%b, SignedHeaders=%b, Signature=%b" % (ALGORITHM, access, place, names, signature),
    )


def _key(signer: Tc3Signer, service: str, day: bytes, credential: Credential) -> bytes:
    """The key of one day and service; kept with the secret it is made of."""
    secret, reference = the_secret(signer.secret_key, credential)

    def make(raw: bytes) -> bytes:
        if not raw or any(byte <= 0x20 or byte >= 0x7F for byte in raw):
            raise malformed(reference, "is no SecretKey: visible ASCII without spaces is")
        key = hmac.digest(b"TC3" + raw, day, "sha256")
        return hmac.digest(hmac.digest(key, service.encode("ascii"), "sha256"), b"tc3_request", "sha256")

    return secret.derive(("tc3", day, service), make)
