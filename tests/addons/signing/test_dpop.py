"""DPoP proofs (RFC 9449), verified by the public key that stands in them."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from addons.refusal import Code, Refusal
from addons.signing.dpop import MOST_HOSTS, Nonces, sign_dpop, wants_nonce
from addons.signing.outgoing import Outgoing
from policies.sign import DpopSigner, ProofAlgorithm
from policies.template import parse_template
from tests.harness.signing import credential, outgoing

SIGNER = DpopSigner(parse_template("{secret.pem}"))
P256 = ec.generate_private_key(ec.SECP256R1())


def pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def raw(text: str) -> bytes:
    assert "=" not in text
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def proof(request: Outgoing) -> tuple[dict[str, Any], dict[str, Any]]:
    """Head and claims, verified by the public key that stands in the proof (RFC 7515 section 5.2)."""
    (value,) = request.values(b"dpop")
    first, second, third = value.decode().split(".")
    head, signature = json.loads(raw(first)), raw(third)
    jwk, text = head["jwk"], f"{first}.{second}".encode()
    if jwk["kty"] == "EC":
        assert (jwk["crv"], len(signature)) == ("P-256", 64)
        x, y = (int.from_bytes(raw(jwk[name]), "big") for name in ("x", "y"))
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        public.verify(encode_dss_signature(r, s), text, ec.ECDSA(hashes.SHA256()))
    else:
        assert (jwk["kty"], jwk["crv"]) == ("OKP", "Ed25519")
        ed25519.Ed25519PublicKey.from_public_bytes(raw(jwk["x"])).verify(signature, text)
    return head, json.loads(raw(second))


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
def test_a_proof(algorithm: ProofAlgorithm) -> None:
    key = P256 if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()
    fields = [(b"Authorization", b"DPoP Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU")]
    request = outgoing("POST", b"/protected?x=1", fields, None, host=b"Resource.Example.org")
    sign_dpop(DpopSigner(SIGNER.key, algorithm), request, credential({"pem": pem(key)}), 1_562_262_618.9)
    head, claims = proof(request)
    assert (head["typ"], head["alg"]) == ("dpop+jwt", algorithm)
    assert "d" not in head["jwk"]
    assert (claims["htm"], claims["htu"], claims["iat"]) == (
        "POST",
        "https://resource.example.org/protected",
        1_562_262_618,
    )
    # The token and the hash of RFC 9449 section 7.1, figure 12.
    assert claims["ath"] == "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"
    assert "nonce" not in claims


def test_each_proof_is_used_once_and_covers_no_token_that_is_not_sent() -> None:
    held, found = credential({"pem": pem(P256)}), []
    for fields in ([], [(b"Authorization", b"Bearer x")]):
        request = outgoing("GET", b"/", fields, None)
        sign_dpop(SIGNER, request, held, 1.0, b"n-0S6_WzA2Mj")
        _, claims = proof(request)
        assert "ath" not in claims
        assert claims["nonce"] == "n-0S6_WzA2Mj"
        found.append(claims["jti"])
    assert len(set(found)) == 2
    assert len(found[0]) >= 16


def test_what_cannot_be_proven() -> None:
    for text in ("x", pem(ec.generate_private_key(ec.SECP384R1())), pem(ed25519.Ed25519PrivateKey.generate())):
        with pytest.raises(Refusal) as refusal:
            sign_dpop(SIGNER, outgoing("GET", b"/"), credential({"pem": text}), 1.0)
        assert refusal.value.code == Code.SECRET_MALFORMED
    two = [(b"Authorization", b"DPoP a"), (b"Authorization", b"dpop b")]
    with pytest.raises(Refusal) as refusal:
        sign_dpop(SIGNER, outgoing("GET", b"/", two), credential({"pem": pem(P256)}), 1.0)
    assert refusal.value.code == Code.INTERNAL


def test_nonces_are_bounded_and_kept_by_host() -> None:
    nonces = Nonces()
    assert nonces.learn(b"API.test", [b"one"])
    assert not nonces.learn(b"api.test", [b"one"]), "it is known already: another try with it would not help"
    assert (nonces.of(b"Api.Test"), nonces.of(b"other.test")) == (b"one", None)
    for values in ([], [b"a", b"b"], [b""], [b"two words"], [b"x" * 513], [b"\xff"]):
        assert not nonces.learn(b"api.test", values)
    assert nonces.of(b"api.test") == b"one"
    for number in range(MOST_HOSTS):
        nonces.learn(b"%d.test" % number, [b"n"])
    assert nonces.of(b"api.test") is None


def test_only_a_challenge_of_its_own_asks_for_a_nonce() -> None:
    assert wants_nonce([b'Bearer realm="x"', b'DPoP error="use_dpop_nonce", error_description="x"'])
    assert not wants_nonce([b'DPoP error="invalid_token"'])
    assert not wants_nonce([b'Bearer error="use_dpop_nonce"'])
    assert not wants_nonce([])


def test_ath_is_the_hash_of_the_token() -> None:
    digest = hashlib.sha256(b"tok").digest()
    request = outgoing("GET", b"/", [(b"authorization", b"dpop  tok ")])
    sign_dpop(SIGNER, request, credential({"pem": pem(P256)}), 1.0)
    assert proof(request)[1]["ath"] == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
