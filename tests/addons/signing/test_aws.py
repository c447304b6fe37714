"""AWS Signature Version 4 against the vectors of its own test suite (vectors/README.md)."""

from __future__ import annotations

import calendar
import hashlib
import json
import re
import time
from pathlib import Path

import pytest

from addons.credentials import Credential
from addons.refusal import Code, Refusal
from addons.signing.aws import EMPTY_SHA256, canonical_query, canonical_request, payload_way, sign_aws
from addons.signing.aws_chunks import ChunkSigner
from addons.signing.aws_scope import Scope, scope_of
from addons.signing.outgoing import Outgoing
from policies.sign import AwsSigV4Signer, Payload
from policies.template import parse_template
from tests.harness.signing import credential, outgoing

VECTORS = json.loads((Path(__file__).parent / "vectors" / "aws-sigv4.json").read_text())
LEFT_OUT = {
    "get-header-value-multiline": "the edge refuses folded lines",
    "post-sts-header-after": "a session token that is not signed is for one service that is not S3, STS or any common one",
} | {
    name: "only S3 takes paths as they are, and its suite is botocore"
    for name in VECTORS
    if name.endswith("-unnormalized") and name != "get-space-unnormalized"
}
SECRET = {"id": "AKIDEXAMPLE", "key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
NOW_S = 1_440_938_160.0


def signed_aws(
    signer: AwsSigV4Signer, scope: Scope, request: Outgoing, held: Credential, now_s: float, *, chunk_bytes: int
) -> tuple[Outgoing, ChunkSigner | None]:
    way = payload_way(signer, scope, request.caller)
    return request, sign_aws(signer, scope, way, request, held, now_s, chunk_bytes=chunk_bytes)


def signer(
    *,
    token: bool = False,
    regions: tuple[str, ...] = ("us-east-1",),
    services: tuple[str, ...] = ("service",),
    payload: Payload = "auto",
) -> AwsSigV4Signer:
    return AwsSigV4Signer(
        parse_template("{secret.id}"),
        parse_template("{secret.key}"),
        regions,
        services,
        parse_template("{secret.token}") if token else None,
        payload,
    )


def parsed(text: str) -> tuple[str, bytes, list[tuple[bytes, bytes]], bytes]:
    head, _, body = text.partition("\n\n")
    line, *lines = head.splitlines()
    method, target = line.removesuffix(" HTTP/1.1").split(" ", 1)
    fields = [(name.encode(), value.encode()) for name, _, value in (one.partition(":") for one in lines)]
    return method, target.encode(), fields, body.encode()


@pytest.mark.parametrize("name", sorted(set(VECTORS) - set(LEFT_OUT)))
@pytest.mark.parametrize("form", ["header", "query"])
def test_the_suite(name: str, form: str) -> None:
    case = VECTORS[name]
    context = json.loads(case["context.json"])
    method, target, fields, body = parsed(case["request.txt"])
    given = {**SECRET, **({"token": context["credentials"]["token"]} if "token" in context["credentials"] else {})}
    now_s = calendar.timegm(time.strptime(context["timestamp"], "%Y-%m-%dT%H:%M:%SZ"))
    host = next(value for key, value in fields if key.lower() == b"host")
    kept = [field for field in fields if field[0].lower() != b"host"]
    signed = frozenset(key.lower() for key, _ in fields)
    claim = [(b"X-Amz-Content-Sha256", b"x")] if context["sign_body"] else []
    request = outgoing(method, target, kept, body, host=host, caller=[*kept, *claim])
    scope = Scope("us-east-1", "service", signed, context["expiration_in_seconds"] if form == "query" else None)
    made, chunks = signed_aws(signer(token="token" in given), scope, request, credential(given), now_s, chunk_bytes=1)
    assert chunks is None
    wanted = case[f"{form}-signature.txt"].strip()
    if form == "header":
        (authorization,) = made.values(b"authorization")
        found = authorization.decode().rpartition("Signature=")[2]
        creq = case["header-canonical-request.txt"]
        unsigned = made
    else:
        found = made.query.decode().rpartition("X-Amz-Signature=")[2]
        creq = case["query-canonical-request.txt"]
        unsigned = outgoing(method, made.target.rpartition(b"&X-Amz-Signature=")[0], made.fields, body, host=host)
    payload = creq.rpartition("\n")[2].encode()
    assert canonical_request(scope, unsigned, payload)[0].decode() == creq
    assert found == wanted


def test_what_is_left_out_is_there() -> None:
    assert set(LEFT_OUT) <= set(VECTORS)
    assert len(VECTORS) - len(LEFT_OUT) > 25


AUTHORIZATION = (
    b"AWS4-HMAC-SHA256 Credential=AKIAOSTIARYPLACEHOLD/20260102/eu-west-1/s3/aws4_request, "
    b"SignedHeaders=host;range;x-amz-date, Signature=" + b"0" * 64
)
CHUNKED = b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD"


def asked(
    *fields: tuple[bytes, bytes], target: bytes = b"/key", service: bytes = b"s3", body: bytes | None = None
) -> Outgoing:
    authorization = (b"Authorization", AUTHORIZATION.replace(b"/s3/", b"/" + service + b"/"))
    return outgoing("PUT", target, (), body, caller=[authorization, *fields])


S3 = signer(regions=("eu-west-1", "us-east-1"), services=("s3", "sqs", "vpc-lattice-svcs"))


def test_the_scope_is_the_callers_and_must_be_the_routes() -> None:
    scope = scope_of(S3, asked().caller)
    assert (scope.region, scope.service) == ("eu-west-1", "s3")
    assert scope.signed == frozenset({b"host", b"range", b"x-amz-date"})
    for other in (b"Credential=A/20260102/eu-west-2/s3/", b"Credential=A/20260102/eu-west-1/sts/"):
        caller = outgoing(
            "GET", b"/", caller=[(b"Authorization", re.sub(rb"Credential=[^,]*s3/", other, AUTHORIZATION))]
        )
        with pytest.raises(Refusal) as caught:
            scope_of(S3, caller.caller)
        assert caught.value.code is Code.ACCESS_DENIED
    with pytest.raises(Refusal) as caught:
        scope_of(S3, outgoing("GET", b"/").caller)
    assert caught.value.code is Code.BAD_REQUEST
    assert scope_of(signer(), outgoing("GET", b"/").caller) == Scope("us-east-1", "service")


@pytest.mark.parametrize(
    "fields",
    [
        [AUTHORIZATION + b", X=1"],
        [AUTHORIZATION, AUTHORIZATION],
        [AUTHORIZATION.replace(b"AWS4-HMAC-SHA256", b"AWS4-ECDSA-P256-SHA256")],
        [AUTHORIZATION.replace(b"20260102", b"2026")],
        [AUTHORIZATION.replace(b"aws4_request", b"aws4")],
        [AUTHORIZATION.replace(b"eu-west-1", b"eu west")],
        [AUTHORIZATION.replace(b"host;range", b"HOST")],
        [b"AWS4-HMAC-SHA256"],
    ],
)
def test_a_signature_that_cannot_be_read_is_refused(fields: list[bytes]) -> None:
    with pytest.raises(Refusal) as caught:
        scope_of(S3, outgoing("GET", b"/", caller=[(b"Authorization", value) for value in fields]).caller)
    assert caught.value.code is Code.BAD_REQUEST
    assert "AKIA" not in caught.value.message


PRESIGNED = (
    b"/key?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=A%2F20260102%2Feu-west-1%2Fs3%2Faws4_request"
    b"&X-Amz-Date=20260102T030405Z&X-Amz-Expires=600&X-Amz-SignedHeaders=host&X-Amz-Signature=00&versionId=3"
)


@pytest.mark.parametrize(
    "target",
    [
        PRESIGNED.replace(b"600", b"604801"),
        PRESIGNED.replace(b"600", b"0"),
        PRESIGNED.replace(b"X-Amz-Expires=600&", b""),
        PRESIGNED + b"&X-Amz-Expires=600",
        PRESIGNED.replace(b"AWS4-HMAC-SHA256", b"AWS4-ECDSA-P256-SHA256"),
        PRESIGNED.replace(b"X-Amz-Credential", b"X-Amz-Nothing"),
        PRESIGNED.replace(b"SignedHeaders=host", b"SignedHeaders="),
    ],
)
def test_a_presigned_query_that_cannot_be_read_is_refused(target: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        scope_of(S3, outgoing("GET", target).caller)
    assert caught.value.code is Code.BAD_REQUEST


def test_a_presigned_query_has_a_scope_and_excludes_a_signed_header() -> None:
    scope = scope_of(S3, outgoing("GET", PRESIGNED).caller)
    assert (scope.region, scope.service, scope.expires_s) == ("eu-west-1", "s3", 600)
    with pytest.raises(Refusal):
        scope_of(S3, outgoing("GET", PRESIGNED, caller=[(b"Authorization", AUTHORIZATION)]).caller)


@pytest.mark.parametrize(
    ("payload", "service", "claim", "way"),
    [
        ("auto", b"s3", None, "unsigned"),
        ("auto", b"s3", b"UNSIGNED-PAYLOAD", "unsigned"),
        ("auto", b"s3", b"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "given"),
        ("auto", b"s3", EMPTY_SHA256, "given"),
        ("auto", b"s3", b"nonsense", "unsigned"),
        ("auto", b"s3", CHUNKED, "chunks"),
        ("auto", b"s3", CHUNKED + b"-TRAILER", "chunks"),
        ("auto", b"s3", b"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", None),
        ("auto", b"sqs", None, "held"),
        ("auto", b"sqs", EMPTY_SHA256, "held"),
        ("auto", b"sqs", b"UNSIGNED-PAYLOAD", "held"),
        ("auto", b"sqs", CHUNKED, None),
        ("signed", b"s3", EMPTY_SHA256, "held"),
        ("signed", b"s3", None, "held"),
        ("signed", b"s3", CHUNKED, "chunks"),
        ("signed", b"s3", b"STREAMING-UNSIGNED-PAYLOAD-TRAILER", None),
        ("unsigned", b"s3", EMPTY_SHA256, "unsigned"),
        ("unsigned", b"vpc-lattice-svcs", None, "unsigned"),
    ],
)
def test_what_becomes_of_the_body(payload: Payload, service: bytes, claim: bytes | None, way: str | None) -> None:
    one = signer(regions=S3.regions, services=S3.services, payload=payload)
    request = asked(*([(b"x-amz-content-sha256", claim)] if claim else []), service=service)
    scope = scope_of(one, request.caller)
    if way is None:
        with pytest.raises(Refusal) as caught:
            payload_way(one, scope, request.caller)
        assert caught.value.code is Code.BAD_REQUEST
    else:
        assert payload_way(one, scope, request.caller) == way


def test_a_hash_that_the_caller_gave_is_not_believed_of_a_body_that_was_held() -> None:
    request = asked((b"x-amz-content-sha256", EMPTY_SHA256), body=b"changed")
    made, _ = signed_aws(S3, scope_of(S3, request.caller), request, credential(SECRET), NOW_S, chunk_bytes=1)
    assert made.values(b"x-amz-content-sha256") != [EMPTY_SHA256]


def test_a_body_that_streams_is_never_signed_as_empty() -> None:
    request = asked(service=b"sqs", body=None)
    with pytest.raises(Refusal) as caught:
        signed_aws(S3, scope_of(S3, request.caller), request, credential(SECRET), NOW_S, chunk_bytes=1)
    assert caught.value.code is Code.INTERNAL


@pytest.mark.parametrize("key", ["", "a b", "a\n", "\xe9"])
def test_a_key_that_is_none_is_malformed(key: str) -> None:
    request = asked(body=b"")
    with pytest.raises(Refusal) as caught:
        signed_aws(S3, scope_of(S3, request.caller), request, credential({"id": "A", "key": key}), NOW_S, chunk_bytes=1)
    assert caught.value.code is Code.SECRET_MALFORMED


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        (b"b=2&a=1", b"a=1&b=2"),
        (b"a=2&a=1&a", b"a=&a=1&a=2"),
        (b"a-b=1&a=2", b"a=2&a-b=1"),
        (b"x=a+b&y=%2f&z=%7E", b"x=a%20b&y=%2F&z=~"),
        (b"x=a/b:c*", b"x=a%2Fb%3Ac%2A"),
        (b"&&a=1&", b"a=1"),
        # A further equals sign belongs to the value, and is encoded as any other byte of it.
        (b"t=YQ==&a=b=c", b"a=b%3Dc&t=YQ%3D%3D"),
        (b"t=YQ==&x=%20", b"t=YQ%3D%3D&x=%20"),
    ],
)
def test_queries_are_read_as_aws_reads_them(raw: bytes, canonical: bytes) -> None:
    assert canonical_query(raw) == canonical


def test_the_vectors_are_those_that_are_written_down() -> None:
    folder = Path(__file__).parent / "vectors"
    text = (folder / "README.md").read_text()
    files = sorted(folder.glob("*.json"))
    assert len(files) == 4
    for path in files:
        assert f"| `{path.name}` |" in text
        assert hashlib.sha256(path.read_bytes()).hexdigest() in text
