"""Signatures of appendix B of RFC 9421, read and judged from the fields in which they are sent."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from addons.refusal import Code, Refusal
from addons.signing.outgoing import Outgoing
from addons.verifying.claim import Claim
from addons.verifying.http_message import claim_message, verified_by
from policies.sign import Component, MessageAlgorithm
from policies.template import parse_template
from policies.verify import MessageVerifier
from tests.addons.signing.test_http_message import ALGORITHMS, CASES, NOW_S, VECTORS, request_of
from tests.harness.signing import credential, outgoing

METHOD = Component("@method")


def verifier(key: str, components: tuple[Component, ...] = (), **given: object) -> MessageVerifier:
    algorithm: MessageAlgorithm = ALGORITHMS[key]
    found = MessageVerifier(
        ((key, parse_template("{secret.key}")),), algorithm, components, key_encoding="base64", nonce=False
    )
    return replace(found, **given)  # type: ignore[arg-type]  # by name


def sent(label: str, *, body: bytes | None = None, input_: str = "", signature: str = "") -> Outgoing:
    case = CASES[label]
    plain = request_of(VECTORS["requests"][case["request"]])
    params = case["base"].splitlines()[-1].partition(": ")[2]
    fields = [
        *plain.fields,
        (b"Signature-Input", (input_ or f"{label}={params}").encode()),
        (b"Signature", (signature or f"{label}=:{case['signature']}:").encode()),
    ]
    return outgoing(plain.method, plain.target, fields, plain.body if body is None else body, host=plain.host)


def secret(key: str) -> dict[str, str]:
    held = VECTORS["keys"][key]
    return {"key": held.get("public") or held["base64"]}


def refused(own: MessageVerifier, request: Outgoing, now_s: float = NOW_S) -> str:
    with pytest.raises(Refusal) as refusal:
        claim_message(own, request, now_s)
    assert refusal.value.code is Code.SIGNATURE_INVALID
    return refusal.value.message


def claimed(label: str = "sig-b23", **given: object) -> Claim:
    key = CASES[label]["key"]
    return claim_message(verifier(key, **given), sent(label), NOW_S)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("label", [name for name, case in CASES.items() if case["key"] != "test-shared-secret"])
def test_every_signature_of_the_appendix(label: str) -> None:
    case = CASES[label]
    public = load_pem_public_key(VECTORS["keys"][case["key"]]["public"].encode())
    signature = base64.b64decode(case["signature"])
    assert verified_by(public, signature, case["base"].encode())  # type: ignore[arg-type]  # of one of the three kinds
    assert not verified_by(public, signature, case["base"].encode() + b" ")  # type: ignore[arg-type]  # as above
    assert not verified_by(public, signature[:-1], case["base"].encode())  # type: ignore[arg-type]  # as above


def test_one_that_covers_all_of_the_request_holds() -> None:
    wanted = (METHOD, Component("@path"), Component("@query"), Component("content-digest"))
    claim = claimed(components=wanted)
    assert claim.holds(credential(secret("test-key-rsa-pss")))
    assert claim.single is None
    with pytest.raises(Refusal) as refusal:
        claim.holds(credential(secret("test-key-ed25519")))
    assert refusal.value.code is Code.SECRET_MALFORMED
    assert "digest of the body" in refused(verifier("test-key-rsa-pss"), sent("sig-b23", body=b'{"hello": "world!"}'))


def test_what_is_there_and_not_covered_is_refused() -> None:
    assert "query" in refused(verifier("test-key-rsa-pss"), sent("sig-b22"))
    assert "query" in refused(verifier("test-shared-secret"), sent("sig-b25"))
    assert "digest of it" in refused(verifier("test-key-ecc-p256"), sent("ttrp"))
    assert "@scheme" in refused(verifier("test-key-rsa-pss", (Component("@scheme"),)), sent("sig-b23"))


def test_what_the_policy_wants_and_the_signature_does_not_have() -> None:
    own = verifier("test-key-rsa-pss")
    assert "no nonce" in refused(replace(own, nonce=True), sent("sig-b23"))
    assert "tag" in refused(replace(own, tag="pay"), sent("sig-b23"))
    assert "label" in refused(replace(own, label="sig1"), sent("sig-b23"))
    assert "key id" in refused(replace(own, keys=(("other", own.keys[0][1]),)), sent("sig-b23"))
    assert "older" in refused(own, sent("sig-b23"), NOW_S + 301)
    assert "ahead" in refused(own, sent("sig-b23"), NOW_S - 302)


@pytest.mark.parametrize(
    "input_",
    [
        "sig-b23",
        "sig-b23=?1",
        "sig-b23=()",
        'sig-b23=("@method");created=1618884473',
        'sig-b23=("@method" "@path" "@query" "content-digest" "@method");created=1618884473;keyid="test-key-rsa-pss"',
        'sig-b23=("@method" "@path";req "@query" "content-digest");created=1618884473;keyid="test-key-rsa-pss"',
        'sig-b23=("@method" "@path" "@query" "Content-Digest");created=1618884473;keyid="test-key-rsa-pss"',
        'sig-b23=("@method" "@path" "@query" "content-digest" "x-none");created=1618884473;keyid="test-key-rsa-pss"',
        'sig-b23=("@method" "@path" "@query" "content-digest" "@status");created=1618884473;keyid="test-key-rsa-pss"',
        'sig-b23=("@method" "@path" "@query" "content-digest" "@signature-params");created=1618884473;keyid="test-key-rsa-pss"',
        'sig-b23=("@method" "@path" "@query" "content-digest" "@query-param");created=1618884473;keyid="test-key-rsa-pss"',
        'sig-b23=("@method" "@path" "@query" "content-digest");created="1618884473";keyid="test-key-rsa-pss"',
        'sig-b23=("@method" "@path" "@query" "content-digest");created=1618884473;keyid=test',
        'sig-b23=("@method" "@path" "@query" "content-digest");created=1618884473;keyid="test-key-rsa-pss";x=1',
        'sig-b23=("@method" "@path" "@query" "content-digest");created=1618884473;keyid="test-key-rsa-pss";alg="hmac-sha256"',
        'sig-b23=("@method" "@path" "@query" "content-digest");created=1618884473;expires=1618884472;keyid="test-key-rsa-pss"',
        'sig-b23=(@method @path @query content-digest);created=1618884473;keyid="test-key-rsa-pss"',
        'a=("@method");created=1, sig-b23=("@method");created=1618884473;keyid="test-key-rsa-pss"',
    ],
)
def test_what_is_no_signature_that_is_taken(input_: str) -> None:
    refused(verifier("test-key-rsa-pss"), sent("sig-b23", input_=input_))


def test_a_shared_key_and_a_nonce() -> None:
    # HMAC over the base of the appendix would not cover the query: another base, signed by hand.
    import hashlib
    import hmac

    params = '("@method" "@target-uri" "content-digest");created=1618884473;nonce="n-1";keyid="test-shared-secret"'
    plain = request_of(VECTORS["requests"]["test-request"])
    base = (
        f'"@method": POST\n"@target-uri": https://example.com{plain.target.decode()}\n'
        f'"content-digest": {plain.values(b"content-digest")[0].decode()}\n"@signature-params": {params}'
    )
    key = base64.b64decode(VECTORS["keys"]["test-shared-secret"]["base64"])
    made = base64.b64encode(hmac.new(key, base.encode(), hashlib.sha256).digest()).decode()
    request = sent("sig-b23", input_=f"one={params}", signature=f"one=:{made}:")
    claim = claim_message(verifier("test-shared-secret", (METHOD,), nonce=True), request, NOW_S)
    assert claim.holds(credential(secret("test-shared-secret")))
    assert not claim.holds(credential({"key": base64.b64encode(b"another").decode()}))
    assert claim.single is not None
    assert (claim.single.nonce, round(claim.single.ttl_s)) == ("test-shared-secret\0n-1", 299)
