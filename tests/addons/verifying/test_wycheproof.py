"""Project Wycheproof against what signs and verifies here (vectors/README.md): every vector, through the code that a
request passes. A verdict of `acceptable` says that a library may differ: what is asked of ours stands with the test.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from addons.deriving.jws import _signature
from addons.refusal import Code, Refusal
from addons.signing.hmac_lines import sign_hmac
from addons.signing.keys import public_key
from addons.verifying.hmac_lines import claim_hmac
from addons.verifying.http_message import verified_by
from addons.verifying.sns import made_by
from addons.verifying.webhooks import _standard_fits
from policies.sign import Digest, HmacSigner, MessageAlgorithm, SentName
from policies.template import parse_template
from policies.verify import HmacVerifier
from tests.harness.signing import credential, outgoing
from vault.secret import Secret

FILE = Path(__file__).parent / "vectors" / "wycheproof.json"
VECTORS: Mapping[str, list[dict[str, Any]]] = json.loads(FILE.read_text())
KEY = parse_template("{secret.key}")
NOW_S = 1_790_000_000.0


def each(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Group and test of a file, each of which must be there."""
    groups = VECTORS[name]
    assert groups
    for group in groups:
        assert group["tests"]
        yield from ((group, test) for test in group["tests"])


def raw(test: Mapping[str, Any], name: str) -> bytes:
    return bytes.fromhex(test[name])


def test_the_vectors_are_those_that_the_readme_names() -> None:
    sha256 = hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert sha256 in (FILE.parent / "README.md").read_text()


@pytest.mark.parametrize("digest", ["sha1", "sha256", "sha384", "sha512"])
def test_hmac(digest: Digest) -> None:
    """Our tag is theirs; a tag that is cut short, which Wycheproof calls valid, is none here."""
    form = HmacSigner(
        KEY, SentName("header", "X-Signature"), SentName("header", "X-Timestamp"), None,
        key_encoding="hex", algorithm=digest, prefix="", template=parse_template("{body}"),
    )  # fmt: skip
    verifier = HmacVerifier((KEY,), form)
    judged = {True: 0, False: 0}
    for _, test in each(f"hmac_{digest}_test.json"):
        held = credential({"key": test["key"]})
        made = outgoing("POST", b"/", body=raw(test, "msg"))
        sign_hmac(form, made, held, NOW_S)
        (tag,) = made.values(b"x-signature")
        given = test["tag"]
        assert tag.decode().startswith(given) is (test["result"] == "valid"), test
        fields = [(b"X-Signature", given.encode()), (b"X-Timestamp", b"1790000000")]
        verdict = claim_hmac(verifier, outgoing("POST", b"/", fields, raw(test, "msg")), NOW_S).holds(held)
        assert verdict is (test["result"] == "valid" and len(raw(test, "tag")) == hashlib.new(digest).digest_size), test
        judged[verdict] += 1
    assert min(judged.values()) > 30


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("ed25519_test.json", "ed25519"),
        ("ecdsa_secp256r1_sha256_p1363_test.json", "ecdsa-p256-sha256"),
        ("rsa_pss_4096_sha512_mgf1_64_test.json", "rsa-pss-sha512"),
    ],
)
def test_signatures_of_http_messages(name: str, algorithm: MessageAlgorithm) -> None:
    judged = {True: 0, False: 0}
    for group, test in each(name):
        key = public_key(KEY, algorithm, credential({"key": group["publicKeyPem"]}))
        verdict = verified_by(key, raw(test, "sig"), raw(test, "msg"))
        assert verdict is (test["result"] == "valid"), test
        judged[verdict] += 1
    assert min(judged.values()) > 30


def test_a_salt_or_hash_of_another_size_is_no_signature_of_rfc_9421() -> None:
    """Section 3.3.1 has SHA-512 and a salt of 64 bytes; valid signatures with SHA-256 and 32 are not taken for one."""
    refused = 0
    for group, test in each("rsa_pss_2048_sha256_mgf1_32_test.json"):
        key = public_key(KEY, "rsa-pss-sha512", credential({"key": group["publicKeyPem"]}))
        assert not verified_by(key, raw(test, "sig"), raw(test, "msg"))
        refused += test["result"] == "valid"
    assert refused > 30


def test_keys_of_one_kind_are_not_taken_for_another() -> None:
    for name in ("ed25519_test.json", "rsa_pss_4096_sha512_mgf1_64_test.json"):
        with pytest.raises(Refusal) as told:
            public_key(KEY, "ecdsa-p256-sha256", credential({"key": VECTORS[name][0]["publicKeyPem"]}))
        assert told.value.code is Code.SECRET_MALFORMED


def test_webhooks_signed_with_ed25519() -> None:
    """Standard Webhooks, v1a. The text has id and time in front of the body; asked is the verdict over each of theirs."""
    judged = {True: 0, False: 0}
    for group, test in each("ed25519_test.json"):
        point = load_pem_public_key(group["publicKeyPem"].encode()).public_bytes(Encoding.Raw, PublicFormat.Raw)
        held = credential({"key": b"whpk_" + base64.b64encode(point)})
        verdict = _standard_fits(KEY, held, raw(test, "msg"), [], [raw(test, "sig")])
        assert verdict is (test["result"] == "valid"), test
        # Nor is one taken for an HMAC with the public key, which everybody has.
        assert not _standard_fits(KEY, held, raw(test, "msg"), [raw(test, "sig")], [])
        judged[verdict] += 1
    assert min(judged.values()) > 30


def test_messages_of_sns() -> None:
    """SignatureVersion 2. Without the NULL of the digest's algorithm, which Wycheproof leaves open, it is none."""
    judged = {True: 0, False: 0}
    for group, test in each("rsa_signature_2048_sha256_test.json"):
        key = cast("rsa.RSAPublicKey", load_pem_public_key(group["publicKeyPem"].encode()))
        verdict = made_by(key, raw(test, "sig"), raw(test, "msg"), "2")
        assert verdict is (test["result"] == "valid"), test
        assert not (verdict and made_by(key, raw(test, "sig"), raw(test, "msg"), "1"))
        judged[verdict] += 1
    assert judged[True] > 8
    assert judged[False] > 200


def test_rs256_signs_as_they_do() -> None:
    """The text of a token is `header.claims`; asked is the signature alone. Keys with a small public exponent, which
    Wycheproof leaves open, sign the same."""
    judged = 0
    for group, test in each("rsa_pkcs1_2048_sig_gen_test.json"):
        assert _signature(raw(test, "msg"), "RS256", Secret(group["privateKeyPem"]), "key") == raw(test, "sig"), test
        judged += 1
    assert judged == 10
