"""AWS Signature Version 4A against the vectors of its own test suite, and against the public keys in it."""

from __future__ import annotations

import calendar
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from addons.refusal import Code, Refusal
from addons.signing import aws_asymmetric
from addons.signing.apply import Signing
from addons.signing.aws import canonical_request, payload_way, sign_aws
from addons.signing.aws_asymmetric import derived, signing_key
from addons.signing.aws_scope import Scope, scope_of
from policies.sign import AwsSigV4Signer
from policies.template import parse_template
from tests.addons.signing.test_aws import LEFT_OUT, parsed
from tests.harness.signing import credential, outgoing

VECTORS = {
    name: case
    for name, case in json.loads((Path(__file__).parent / "vectors" / "aws-sigv4a.json").read_text()).items()
    if "public-key.json" in case and name not in LEFT_OUT
}
SECRET = {"id": "AKIDEXAMPLE", "key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}


def signer(
    *regions: str, token: bool = False, services: tuple[str, ...] = ("service",), asymmetric: bool = True
) -> AwsSigV4Signer:
    return AwsSigV4Signer(
        parse_template("{secret.id}"),
        parse_template("{secret.key}"),
        regions,
        services,
        parse_template("{secret.token}") if token else None,
        "auto",
        asymmetric,
    )


def public(case: dict[str, Any]) -> ec.EllipticCurvePublicKey:
    numbers = json.loads(case["public-key.json"])
    return ec.EllipticCurvePublicNumbers(int(numbers["X"], 16), int(numbers["Y"], 16), ec.SECP256R1()).public_key()


def test_the_key_is_that_of_aws() -> None:
    # tests/key_derivation_tests.c of aws-c-auth: "derived in synchronicity with Golang and IAM implementations".
    number = derived(b"q+jcrXGc+0zWN6uzclKVhvMmUsIfRPa4rlRandom", b"AKISORANDOMAASORANDOM", 1)
    assert number == 0x7FD3BD010C0D9C292141C2B77BFBDE1042C92E6836FFF749D1269EC890FCA1BD


@pytest.mark.parametrize("name", sorted(VECTORS))
@pytest.mark.parametrize("form", ["header", "query"])
def test_the_suite(name: str, form: str) -> None:
    case = VECTORS[name]
    context = json.loads(case["context.json"])
    method, target, fields, body = parsed(case["request.txt"])
    held = {**SECRET, **({"token": context["credentials"]["token"]} if "token" in context["credentials"] else {})}
    now_s = float(calendar.timegm(time.strptime(context["timestamp"], "%Y-%m-%dT%H:%M:%SZ")))
    host = next(value for key, value in fields if key.lower() == b"host")
    kept = [field for field in fields if field[0].lower() != b"host"]
    claim = [(b"X-Amz-Content-Sha256", b"x")] if context["sign_body"] else []
    request = outgoing(method, target, kept, body, host=host, caller=[*kept, *claim])
    expires_s = context["expiration_in_seconds"] if form == "query" else None
    scope = Scope("us-east-1", "service", frozenset(key.lower() for key, _ in fields), expires_s)
    one = signer("us-east-1", token="token" in held)
    way = payload_way(one, scope, request.caller)
    assert sign_aws(one, scope, way, request, credential(held), now_s, chunk_bytes=1) is None
    if form == "header":
        (authorization,) = request.values(b"authorization")
        found, unsigned = authorization.rpartition(b"Signature=")[2], request
    else:
        found = request.query.rpartition(b"X-Amz-Signature=")[2]
        unsigned = outgoing(method, request.target.rpartition(b"&X-Amz-Signature=")[0], request.fields, body, host=host)
    wanted = case[f"{form}-canonical-request.txt"]
    assert canonical_request(scope, unsigned, wanted.rpartition("\n")[2].encode())[0].decode() == wanted
    # Signatures are random: ours, and the one of the suite, by its public key over its text.
    text = case[f"{form}-string-to-sign.txt"].encode()
    for signature in (found.decode(), case[f"{form}-signature.txt"].strip()):
        public(case).verify(bytes.fromhex(signature), text, ec.ECDSA(hashes.SHA256()))


def test_there_are_enough() -> None:
    assert len(VECTORS) > 25


def test_a_number_over_the_order_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def scarce(secret: bytes, access: bytes, counter: int) -> int | None:
        asked.append(counter)
        return derived(secret, access, counter) if counter == 3 else None

    monkeypatch.setattr(aws_asymmetric, "derived", scarce)
    held = credential(SECRET)
    key = signing_key(signer("*"), held)
    assert asked == [1, 2, 3]
    assert signing_key(signer("*"), held) is key, "it is kept with its secret"
    monkeypatch.setattr(aws_asymmetric, "derived", lambda *_: None)
    with pytest.raises(Refusal) as refusal:
        signing_key(signer("*"), credential(SECRET))
    assert refusal.value.code == Code.SECRET_MALFORMED


ASYMMETRIC = (
    b"AWS4-ECDSA-P256-SHA256 Credential=PLACEHOLDER/20260102/s3/aws4_request, SignedHeaders=host, Signature=00ff"
)
PLAIN = (
    b"AWS4-HMAC-SHA256 Credential=PLACEHOLDER/20260102/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=00ff"
)


def scope(one: AwsSigV4Signer, *caller: tuple[bytes, bytes], target: bytes = b"/") -> str:
    return scope_of(one, outgoing("GET", b"/", caller=caller, caller_target=target).caller).region


@pytest.mark.parametrize(
    ("regions", "told", "wanted"),
    [
        (("*",), b"*", "*"),
        (("*",), b"us-east-1, eu-*", "us-east-1,eu-*"),
        (("us-*", "eu-west-1"), b"us-east-1,eu-west-1", "us-east-1,eu-west-1"),
        (("us-*",), b"us-gov-*", "us-gov-*"),
        (("us-east-1",), b"us-*", None),
        (("us-*",), b"*", None),
        (("us-*",), b"u*", None),
        (("us-east-1",), b"us-east-1,eu-west-1", None),
    ],
)
def test_the_set_of_the_caller_lies_within_that_of_the_route(
    regions: tuple[str, ...], told: bytes, wanted: str | None
) -> None:
    one = signer(*regions, services=("s3",))
    query = (
        b"/?X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256&X-Amz-Credential=P%2F20260102%2Fs3%2Faws4_request&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Region-Set="
        + told.replace(b", ", b"%2C").replace(b"*", b"%2A")
    )
    ways: list[tuple[list[tuple[bytes, bytes]], bytes]] = [
        ([(b"Authorization", ASYMMETRIC), (b"X-Amz-Region-Set", told)], b"/"),
        ([], query),
    ]
    for caller, target in ways:
        if wanted is not None:
            assert scope(one, *caller, target=target) == wanted
            continue
        with pytest.raises(Refusal) as refusal:
            scope(one, *caller, target=target)
        assert refusal.value.code == Code.ACCESS_DENIED


def test_a_caller_that_names_no_set_is_signed_for_those_of_the_route() -> None:
    one = signer("us-*", "eu-west-1", services=("s3",))
    assert scope(one, (b"Authorization", PLAIN)) == "us-*,eu-west-1"
    assert scope(one) == "us-*,eu-west-1"


@pytest.mark.parametrize(
    ("one", "caller"),
    [
        (signer("us-east-1", services=("s3",)), [(b"Authorization", ASYMMETRIC)]),
        (signer("*", services=("s3",)), [(b"Authorization", ASYMMETRIC), (b"X-Amz-Region-Set", b"a,,b")]),
        (signer("*", services=("s3",)), [(b"Authorization", ASYMMETRIC), (b"X-Amz-Region-Set", b"a\tb")]),
        (signer("*", services=("s3",)), [(b"Authorization", ASYMMETRIC), *[(b"X-Amz-Region-Set", b"a")] * 2]),
        (
            signer("us-east-1", services=("s3",), asymmetric=False),
            [(b"Authorization", ASYMMETRIC), (b"X-Amz-Region-Set", b"us-east-1")],
        ),
    ],
)
def test_what_cannot_be_read(one: AwsSigV4Signer, caller: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Refusal) as refusal:
        scope(one, *caller)
    assert refusal.value.code == Code.BAD_REQUEST


def test_chunks_are_not_signed_so() -> None:
    signing = Signing([signer("*", services=("s3",))], 1 << 20)
    for claim in (b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD", b"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"):
        caller = [(b"Authorization", PLAIN), (b"X-Amz-Content-Sha256", claim), (b"X-Amz-Decoded-Content-Length", b"1")]
        with pytest.raises(Refusal) as refusal:
            signing.judge(outgoing("PUT", b"/k", caller=caller).caller)
        assert refusal.value.code == Code.BAD_REQUEST
