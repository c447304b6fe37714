"""What of the caller's request makes room for a route's signers: signatures of its own, and what ours are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from policies.sign import (
    Acs3Signer,
    AwsSigV4Signer,
    DpopSigner,
    EdgeGridSigner,
    HmacSigner,
    HttpMessageSigner,
    Signer,
    Tc3Signer,
)

AWS_HEADERS: Final = frozenset({
    b"authorization", b"x-amz-date", b"x-amz-security-token", b"x-amz-content-sha256", b"x-amz-region-set",
})  # fmt: skip
EDGEGRID_HEADERS: Final = frozenset({b"authorization"})
ACS3_HEADERS: Final = frozenset({
    b"authorization", b"x-acs-date", b"x-acs-signature-nonce", b"x-acs-content-sha256", b"x-acs-security-token",
    b"x-acs-accesskey-id", b"x-acs-credentials-provider", b"x-acs-signature-type",
})  # fmt: skip
TC3_HEADERS: Final = frozenset({b"authorization", b"x-tc-timestamp", b"x-tc-token", b"x-tc-content-sha256"})
AWS_PARAMETERS: Final = frozenset({
    b"X-Amz-Algorithm", b"X-Amz-Credential", b"X-Amz-Date", b"X-Amz-Expires", b"X-Amz-SignedHeaders",
    b"X-Amz-Signature", b"X-Amz-Security-Token", b"X-Amz-Content-Sha256", b"X-Amz-Region-Set",
})  # fmt: skip
"""Parameters of a presigned URL."""
AWS_CREDENTIAL: Final = b"X-Amz-Credential"


def taken_headers(signers: Sequence[Signer]) -> frozenset[bytes]:
    """Lower-case names of fields that the caller's request loses: signatures of its own, and what ours are made of."""
    found: set[bytes] = set()
    for signer in signers:
        match signer:
            case HmacSigner(signature=signature, timestamp=timestamp, nonce=nonce):
                found.update(
                    one.name.lower().encode("ascii")
                    for one in (signature, timestamp, nonce)
                    if one is not None and one.place == "header"
                )
            case AwsSigV4Signer():
                found |= AWS_HEADERS
            case HttpMessageSigner(digests=digests):
                found |= {b"signature", b"signature-input"} | ({b"content-digest"} if digests else set())
            case EdgeGridSigner():
                found |= EDGEGRID_HEADERS
            case Acs3Signer():
                found |= ACS3_HEADERS
            case Tc3Signer():
                found |= TC3_HEADERS
            case DpopSigner():
                found.add(b"dpop")
    return frozenset(found)


def taken_parameters(signers: Sequence[Signer]) -> frozenset[bytes]:
    """Names of query parameters that the caller's request loses."""
    found: set[bytes] = set()
    for signer in signers:
        match signer:
            case HmacSigner(signature=signature, timestamp=timestamp, nonce=nonce):
                found.update(
                    one.name.encode("ascii")
                    for one in (signature, timestamp, nonce)
                    if one is not None and one.place == "query"
                )
            case AwsSigV4Signer():
                found |= AWS_PARAMETERS
            case _:
                pass  # they put nothing there
    return frozenset(found)
