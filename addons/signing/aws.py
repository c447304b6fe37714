"""AWS Signature Version 4 and 4A, in the header and in the query of a presigned URL
(https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).

Rules:
- Signed are `host`, every `x-amz-*` field, `content-type`, `content-md5`, and what the caller's SDK had signed and is
  still there; never what a hop may change.
- The path of S3 is encoded once, of every other service twice, without dot segments and empty segments.
- A body is hashed where the service computes the hash itself. S3 takes the hash from `x-amz-content-sha256` and compares
  it with what arrives, so a hash that the caller's SDK gave is signed as it is and the body streams behind it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from addons.credentials import Credential
from addons.head import RequestHead
from addons.injection.render import header_value
from addons.refusal import Code, Refusal
from addons.signing.aws_asymmetric import ASYMMETRIC
from addons.signing.aws_asymmetric import signature as asymmetric_signature
from addons.signing.aws_asymmetric import signing_key as asymmetric_key
from addons.signing.aws_chunks import CHUNKED, CHUNKED_TRAILER, ChunkSigner
from addons.signing.aws_scope import ALGORITHM, Scope
from addons.signing.hmac_lines import whole
from addons.signing.keys import malformed, the_secret
from addons.signing.outgoing import Outgoing
from policies.sign import AwsSigV4Signer

S3: Final = frozenset({"s3", "s3express", "s3-object-lambda", "s3-outposts"})
"""Services with the rules of S3."""
UNSIGNED: Final = b"UNSIGNED-PAYLOAD"
UNSIGNED_TRAILER: Final = b"STREAMING-UNSIGNED-PAYLOAD-TRAILER"
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest().encode("ascii")

_ALWAYS: Final = frozenset({b"content-type", b"content-md5"})
_NEVER: Final = frozenset({
    b"host", b"authorization", b"connection", b"expect", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"user-agent",
    b"x-amzn-trace-id", b"cookie",
})  # fmt: skip
"""Changed on the way, or no part of what a client means to sign. `host` is signed apart."""
_SHA256: Final = re.compile(rb"[0-9a-f]{64}")
_CANONICAL_QUERY: Final = re.compile(rb"(?:[A-Za-z0-9\-._~]*+(?:=[A-Za-z0-9\-._~]*+)?+(?:&|\Z))*+")
_CANONICAL_PATH: Final = re.compile(rb"[A-Za-z0-9\-._~/]*")

type PayloadWay = Literal["held", "given", "unsigned", "chunks"]


def payload_way(signer: AwsSigV4Signer, scope: Scope, head: RequestHead) -> PayloadWay:
    """What becomes of the body: `held` and hashed here, streamed with the hash that is `given` or `unsigned`, or signed
    anew in `chunks` as it passes.

    Raises:
        Refusal: `bad_request`; the way in which the caller sends its body cannot be signed.
    """
    claims = head.values(b"x-amz-content-sha256")
    claim = claims[0] if len(claims) == 1 else b""
    if len(claims) > 1:
        raise Refusal(Code.BAD_REQUEST, "The X-Amz-Content-Sha256 field stands twice.")
    if claim.startswith(b"STREAMING-"):
        return _streaming(signer, scope, claim)
    if scope.service not in S3:
        return "unsigned" if signer.payload == "unsigned" else "held"
    if scope.expires_s is not None or signer.payload == "unsigned":
        return "unsigned"
    if signer.payload == "signed":
        return "held"
    return "given" if _SHA256.fullmatch(claim) else "unsigned"


def _streaming(signer: AwsSigV4Signer, scope: Scope, claim: bytes) -> PayloadWay:
    if scope.service not in S3 or scope.expires_s is not None:
        raise Refusal(Code.BAD_REQUEST, "Only S3 takes a body in signed chunks.")
    if claim in {CHUNKED, CHUNKED_TRAILER} and not signer.asymmetric:
        return "chunks"
    if claim != UNSIGNED_TRAILER:
        raise Refusal(Code.BAD_REQUEST, "This way of signing a body in chunks is not built.")
    if signer.payload == "signed":
        raise Refusal(
            Code.BAD_REQUEST,
            "This route signs bodies, and this one is sent in unsigned chunks: turn the SDK's trailing checksum off (request_checksum_calculation: when_required).",
        )
    return "given"


def sign_aws(
    signer: AwsSigV4Signer,
    scope: Scope,
    way: PayloadWay,
    request: Outgoing,
    credential: Credential,
    now_s: float,
    *,
    chunk_bytes: int,
) -> ChunkSigner | None:
    """Signs; gives what signs the chunks of the body where it has some.

    Args:
        signer: of the route.
        scope: of this request (`scope_of`).
        way: of its body (`payload_way`).
        request: what leaves, without `Authorization` and what else the caller's own signature is made of.
        credential: opened for this request.
        now_s: wall-clock seconds.
        chunk_bytes: the most that one chunk may have.

    Raises:
        Refusal: `secret_malformed`, `secret_missing`, `bad_request`.
    """
    claims = request.caller.values(b"x-amz-content-sha256")
    if way == "given" and request.body is not None and UNSIGNED_TRAILER not in claims:
        # Held for another's sake, and perhaps not what the caller hashed any more.
        way = "held"
    stamp = _stamp(int(now_s))
    payload = _payload(way, request, claims)
    region, service = scope.region.encode("ascii"), scope.service.encode("ascii")
    key: bytes | EllipticCurvePrivateKey
    if signer.asymmetric:
        algorithm, place = ASYMMETRIC, b"%b/%b/aws4_request" % (stamp[:8], service)
        key = asymmetric_key(signer, credential)
    else:
        algorithm, place = ALGORITHM, b"%b/%b/%b/aws4_request" % (stamp[:8], region, service)
        key = _signing_key(signer, credential, stamp[:8], scope)
    access = header_value(signer.access_key_id, credential)
    token = header_value(signer.session_token, credential) if signer.session_token is not None else None
    if scope.expires_s is not None:
        fields = _canonical_fields(scope, request)
        names = b";".join([name for name, _ in fields])
        pairs = {
            "X-Amz-Algorithm": algorithm,
            "X-Amz-Credential": access + b"/" + place,
            "X-Amz-Date": stamp,
            "X-Amz-Expires": str(scope.expires_s).encode("ascii"),
            "X-Amz-SignedHeaders": names,
            **({"X-Amz-Security-Token": token} if token is not None else {}),
            **({"X-Amz-Region-Set": region} if signer.asymmetric else {}),
        }
        request.extend_query(
            "&".join([f"{name}={quote_from_bytes(value, safe='-_.~')}" for name, value in pairs.items()]).encode(
                "ascii"
            )
        )
        canonical, _ = canonical_request(scope, request, payload)
        request.put_parameter("X-Amz-Signature", _signature(key, stamp, place, canonical).decode("ascii"))
        return None
    request.put(b"X-Amz-Date", stamp)
    if token is not None:
        request.put(b"X-Amz-Security-Token", token)
    if signer.asymmetric:
        request.put(b"X-Amz-Region-Set", region)
    if scope.service in S3 or payload == UNSIGNED or claims:
        request.put(b"X-Amz-Content-Sha256", payload)
    canonical, names = canonical_request(scope, request, payload)
    signature = _signature(key, stamp, place, canonical)
    request.put(
        b"Authorization",
        b"%b Credential=%b/%b, SignedHeaders=%b, Signature=%b" % (algorithm, access, place, names, signature),
    )
    if way == "chunks" and isinstance(key, bytes):
        return ChunkSigner(key, stamp, place, signature, request.caller, chunk_bytes)
    return None


def _signature(key: bytes | EllipticCurvePrivateKey, stamp: bytes, place: bytes, canonical: bytes) -> bytes:
    algorithm = ALGORITHM if isinstance(key, bytes) else ASYMMETRIC
    text = b"\n".join((algorithm, stamp, place, hashlib.sha256(canonical).hexdigest().encode("ascii")))
    if not isinstance(key, bytes):
        return asymmetric_signature(key, text)
    return hmac.digest(key, text, "sha256").hex().encode("ascii")


def _payload(way: PayloadWay, request: Outgoing, claims: Sequence[bytes]) -> bytes:
    match way:
        case "held":
            body = whole(request)
            return hashlib.sha256(body).hexdigest().encode("ascii") if body else EMPTY_SHA256
        case "unsigned":
            return UNSIGNED
        case "given" | "chunks":
            return claims[0]


def canonical_request(scope: Scope, request: Outgoing, payload: bytes) -> tuple[bytes, bytes]:
    """The canonical request, and the names of the signed fields."""
    fields = _canonical_fields(scope, request)
    names = b";".join([name for name, _ in fields])
    path = canonical_path(request.path) if scope.service in S3 else _path_twice(request.path)
    lines = b"".join([b"%b:%b\n" % field for field in fields])
    method = request.method.encode("ascii")
    return b"\n".join((method, path, canonical_query(request.query), lines, names, payload)), names


def _canonical_fields(scope: Scope, request: Outgoing) -> list[tuple[bytes, bytes]]:
    """Sorted names with their values: outer blanks off, inner ones one, several values joined by a comma."""
    found: dict[bytes, bytes] = {b"host": request.host}
    signed = scope.signed
    for name, value in request.fields:
        key = name.lower()
        if key not in signed and not key.startswith(b"x-amz-") and key not in _ALWAYS:
            continue
        if key in _NEVER:
            continue
        text = b" ".join(value.split()) if b" " in value or b"\t" in value else value
        found[key] = found[key] + b"," + text if key in found else text
    return sorted(found.items())


def canonical_path(path: bytes) -> bytes:
    """A path encoded once, segment by segment."""
    if _CANONICAL_PATH.fullmatch(path):
        return path or b"/"
    # Segment by segment: an encoded slash is no border of segments.
    parts = [quote_from_bytes(unquote_to_bytes(part), safe="-_.~") for part in path.split(b"/")]
    return "/".join(parts).encode("ascii")


def _path_twice(path: bytes) -> bytes:
    if b"//" in path or b"/." in path:
        path = _without_dots(path)
    if _CANONICAL_PATH.fullmatch(path):
        return path or b"/"
    return quote_from_bytes(path, safe="/-_.~").encode("ascii")


def _without_dots(path: bytes) -> bytes:
    """RFC 3986 section 5.2.4, and without empty segments."""
    kept: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment not in {b"", b"."}:
            kept.append(segment)
    end = b"/" if path.endswith((b"/", b"/.", b"/..")) and kept else b""
    return b"/" + b"/".join(kept) + end


def canonical_query(query: bytes) -> bytes:
    """Parameters encoded alike, sorted by name and value; a plus sign is a space to AWS."""
    if not query:
        return b""
    pairs: list[tuple[str, str]] = []
    if _CANONICAL_QUERY.fullmatch(query):
        parts = [pair.partition(b"=") for pair in query.split(b"&") if pair]
        return b"&".join([b"%b=%b" % pair for pair in sorted([(name, value) for name, _, value in parts])])
    for pair in query.split(b"&"):
        if pair:
            name, _, value = pair.partition(b"=")
            pairs.append((_encoded(name), _encoded(value)))
    return "&".join([f"{name}={value}" for name, value in sorted(pairs)]).encode("ascii")


def _encoded(raw: bytes) -> str:
    return quote_from_bytes(unquote_to_bytes(raw.replace(b"+", b" ")), safe="-_.~")


@lru_cache(maxsize=4)
def _stamp(now_s: int) -> bytes:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s)).encode("ascii")


def _signing_key(signer: AwsSigV4Signer, credential: Credential, day: bytes, scope: Scope) -> bytes:
    """The key of one day, region and service; kept with the secret it is made of."""
    secret, reference = the_secret(signer.secret_access_key, credential)

    def make(raw: bytes) -> bytes:
        if not raw or any(byte <= 0x20 or byte >= 0x7F for byte in raw):
            raise malformed(reference, "is no AWS key: visible ASCII without spaces is")
        key = hmac.digest(b"AWS4" + raw, day, "sha256")
        for part in (scope.region, scope.service, "aws4_request"):
            key = hmac.digest(key, part.encode("ascii"), "sha256")
        return key

    return secret.derive(("aws4", day, scope.region, scope.service), make)
