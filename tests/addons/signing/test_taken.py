"""What a caller's own signature becomes on a route that signs: gone, and told of only where a real key made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from addons.head import RequestHead
from addons.injection import brought, plan_for, reject_caller_credentials
from addons.injection.places import Plan
from addons.refusal import Code, Refusal
from policies import load_policy

SDK = b"AWS4-HMAC-SHA256 Credential=%b/20260102/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=00"
PRESIGNED = b"/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=%b%%2F20260102%%2Feu-west-1%%2Fs3%%2Faws4_request&X-Amz-Date=x"


@pytest.fixture
def plans(tmp_path: Path) -> dict[str, Plan]:
    path = tmp_path / "policy.yaml"
    path.write_text("""
workloads: {w: {proofs: {any: true}}}
routes:
  aws:
    match: {host: a.test}
    allow: w
    caller_credentials: reject
    secret: {path: secret/a}
    sign: {aws_sigv4: {access_key_id: "{secret.i}", secret_access_key: "{secret.k}", regions: r, services: s}}
  hmac:
    match: {host: b.test}
    allow: w
    secret: {path: secret/a, field: k}
    sign: [{hmac: {key: "{secret}", nonce: true, names: {signature: "query:sig", timestamp: X-Time}}}, {http_message: {key_id: a, algorithm: ed25519, key: "{secret.p}", components: content-digest}}]
""")
    return {name: plan_for(route) for name, route in load_policy([path]).routes.items()}


def head(target: bytes, *fields: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead("GET", target, fields, http2=False)


def test_what_an_sdk_signs_with_placeholders_is_no_credential(plans: dict[str, Plan]) -> None:
    signed = ((b"Authorization", SDK % b"AKIAOSTIARYPLACEHOLD"), (b"X-Amz-Date", b"x"), (b"X-Amz-Content-Sha256", b"x"))
    for one in (head(b"/k", *signed), head(PRESIGNED % b"AKIAOSTIARYPLACEHOLD")):
        reject_caller_credentials(plans["aws"], one)
        assert brought(plans["aws"], one) is None


def test_what_it_signs_with_a_key_is_one(plans: dict[str, Plan]) -> None:
    for one, where in (
        (head(b"/k", (b"Authorization", SDK % b"AKIAREAL")), "header:authorization"),
        (head(PRESIGNED % b"AKIAREAL"), "query:X-Amz-Credential"),
        (head(b"/k", (b"X-Amz-Security-Token", b"t")), "header:x-amz-security-token"),
    ):
        assert brought(plans["aws"], one) == where
        with pytest.raises(Refusal) as caught:
            reject_caller_credentials(plans["aws"], one)
        assert caught.value.code is Code.CALLER_CREDENTIALS
        assert "REAL" not in caught.value.message


def test_names_of_signatures_are_stripped_and_are_no_credentials(plans: dict[str, Plan]) -> None:
    plan = plans["hmac"]
    assert {b"x-time", b"x-nonce", b"signature", b"signature-input", b"content-digest"} <= plan.strip_headers
    assert b"sig" in plan.strip_parameters
    assert brought(plan, head(b"/?sig=1", (b"X-Time", b"1"), (b"Signature", b"sig1=:AA==:"))) is None
    assert {b"authorization", b"x-amz-date", b"x-amz-security-token"} <= plans["aws"].strip_headers
