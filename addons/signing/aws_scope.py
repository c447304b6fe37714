"""What a caller's own AWS signature says: which region and service it was made for, and in which form.

The signature itself is worth nothing here (it was made with placeholder keys) and is replaced. Both forms of Signature
Version 4 are read: the `Authorization` field and the query of a presigned URL
(https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from addons.head import RequestHead
from addons.refusal import Code, Refusal
from addons.signing.aws_asymmetric import ASYMMETRIC
from addons.signing.taken import AWS_PARAMETERS
from policies.sign import AwsSigV4Signer

ALGORITHM: Final = b"AWS4-HMAC-SHA256"

# Credential=ID/20260102/region/service/aws4_request, SignedHeaders=a;b, Signature=hex
_AUTHORIZATION: Final = re.compile(
    rb"(AWS4-HMAC-SHA256|AWS4-ECDSA-P256-SHA256) +Credential=([^ ,]+), *SignedHeaders=([^ ,]+), *Signature=[0-9a-fA-F]*"
)
_CREDENTIAL: Final = re.compile(rb"[^/]+/[0-9]{8}/([a-z0-9-]{1,63})/([a-z0-9-]{1,63})/aws4_request")
_CREDENTIAL_OF_SET: Final = re.compile(rb"[^/]+/[0-9]{8}/([a-z0-9-]{1,63})/aws4_request")
_SET: Final = re.compile(rb"(?:\*|[a-z0-9-]{1,63}\*?)(?: *, *(?:\*|[a-z0-9-]{1,63}\*?)){0,31}")
_SIGNED: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z;]{1,4096}")
_EXPIRES: Final = re.compile(rb"[1-9][0-9]{0,5}")
MAX_EXPIRES_S: Final = 604_800
"""A week, as AWS takes it."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What is signed for."""

    region: str
    """Of Version 4A: a set, joined by commas."""
    service: str
    signed: frozenset[bytes] = frozenset()
    """Lower-case names that the caller's SDK signed."""
    expires_s: int | None = None
    """Of a presigned URL; None: the signature goes into a header."""


def scope_of(signer: AwsSigV4Signer, head: RequestHead) -> Scope:
    """The scope of a request, checked against the route's.

    Args:
        signer: of the route.
        head: what the caller sent.

    Raises:
        Refusal: `access_denied` where the caller signs for a region or service that the route does not name; `bad_request`
            where what it signs cannot be read, or it signs nothing and the route names several.
    """
    found = _in_query(head, signer) or _in_header(head, signer)
    if found is None:
        if (len(signer.regions) > 1 and not signer.asymmetric) or len(signer.services) > 1:
            raise Refusal(
                Code.BAD_REQUEST,
                "This route signs for several AWS regions or services: sign the request with placeholder keys, so that it says for which.",
            )
        return Scope(",".join(signer.regions), signer.services[0])
    if found.service not in signer.services:
        raise Refusal(Code.ACCESS_DENIED, f"This route does not sign for the AWS service {found.service}.")
    for region in found.region.split(","):
        if not any(_covers(one, region) for one in signer.regions):
            raise Refusal(Code.ACCESS_DENIED, f"This route does not sign for the AWS region {region}.")
    return found


def _covers(listed: str, region: str) -> bool:
    """Whether a region, or a pattern of a set, lies within one that the route lists (`*` and `us-*` in a set alone)."""
    return listed == region or (listed.endswith("*") and region.startswith(listed[:-1]))


def _in_header(head: RequestHead, signer: AwsSigV4Signer) -> Scope | None:
    values = [value for value in head.values(b"authorization") if value.lstrip(b" ").startswith(b"AWS4-")]
    if not values:
        return None
    where = "the Authorization field"
    match = _AUTHORIZATION.fullmatch(values[0].strip(b" ")) if len(values) == 1 else None
    if match is None or (match[1] == ASYMMETRIC and not signer.asymmetric):
        raise _unreadable(where)
    sets = head.values(b"x-amz-region-set") if match[1] == ASYMMETRIC else None
    region, service = _credential(match[2], sets, signer, where)
    return Scope(region, service, _signed(match[3], where))


def _in_query(head: RequestHead, signer: AwsSigV4Signer) -> Scope | None:
    query = head.target.partition(b"?")[2]
    if b"X-Amz-" not in query:
        return None
    given: dict[bytes, bytes] = {}
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        key = unquote_to_bytes(name)
        if key in AWS_PARAMETERS:
            if key in given:
                raise _unreadable("the presigned query")
            given[key] = unquote_to_bytes(value)
    if b"X-Amz-Algorithm" not in given and b"X-Amz-Credential" not in given:
        return None
    known = {ALGORITHM, ASYMMETRIC} if signer.asymmetric else {ALGORITHM}
    if _in_header(head, signer) is not None or given.get(b"X-Amz-Algorithm") not in known:
        raise _unreadable("the presigned query")
    return _presigned(given, signer)


def _presigned(given: Mapping[bytes, bytes], signer: AwsSigV4Signer) -> Scope:
    expires = given.get(b"X-Amz-Expires", b"")
    if not _EXPIRES.fullmatch(expires) or int(expires) > MAX_EXPIRES_S:
        raise _unreadable("the presigned query")
    sets = [given.get(b"X-Amz-Region-Set", b"")] if given.get(b"X-Amz-Algorithm") == ASYMMETRIC else None
    region, service = _credential(given.get(b"X-Amz-Credential", b""), sets, signer, "the presigned query")
    signed = _signed(given.get(b"X-Amz-SignedHeaders", b""), "the presigned query")
    return Scope(region, service, signed, int(expires))


def _credential(raw: bytes, sets: Sequence[bytes] | None, signer: AwsSigV4Signer, where: str) -> tuple[str, str]:
    """Region, or set of regions, and service.

    Args:
        raw: the scope.
        sets: the values of a region set, where the caller signs with Version 4A.
        signer: of the route: with Version 4A it signs for all its regions, unless the caller names a set.
        where: it stands.
    """
    if sets is not None:
        match = _CREDENTIAL_OF_SET.fullmatch(raw)
        if match is None or len(sets) != 1 or not _SET.fullmatch(sets[0]):
            raise _unreadable(where)
        return sets[0].replace(b" ", b"").decode("ascii"), match[1].decode("ascii")
    match = _CREDENTIAL.fullmatch(raw)
    if match is None:
        raise _unreadable(where)
    return ",".join(signer.regions) if signer.asymmetric else match[1].decode("ascii"), match[2].decode("ascii")


def _signed(raw: bytes, where: str) -> frozenset[bytes]:
    if not _SIGNED.fullmatch(raw):
        raise _unreadable(where)
    return frozenset(raw.split(b";"))


def _unreadable(where: str) -> Refusal:
    return Refusal(
        Code.BAD_REQUEST,
        f"The AWS signature in {where} cannot be read: this proxy signs anew what an SDK signed with AWS4-HMAC-SHA256.",
    )
