"""Signs JSON Web Tokens in their compact form (RFC 7515, RFC 7518, RFC 8037).

A parsed key is kept with the secret it was made of (`Secret.derive`), so that it is gone when the secret is.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any, Final, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from addons.refusal import Code, Refusal
from policies.derive import JwtAlgorithm
from vault.secret import Secret

type Key = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

MIN_RSA_BITS: Final = 2048
MIN_HMAC_BYTES: Final = 32
"""RFC 7518 section 3.2: a key of the size of the hash, at least."""
ASSERTION_S: Final = 180.0
"""The life of an assertion that is sent at once. Salesforce takes some minutes, Google an hour."""
SKEW_S: Final = 30.0
"""Assertions are dated back: a clock of theirs may be behind ours."""


def encoded(raw: bytes) -> bytes:
    """base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def signed(
    claims: Mapping[str, Any],
    algorithm: JwtAlgorithm,
    key: Secret,
    what: str,
    *,
    key_id: str | None = None,
    extra: Mapping[str, str] | None = None,
) -> str:
    """A signed JWT.

    Args:
        claims: in order.
        algorithm: the `alg` of its header.
        key: PEM, or bytes for HS256.
        what: names the key in a refusal.
        key_id: the `kid`.
        extra: more header parameters.

    Raises:
        Refusal: `secret_malformed`; the key is none for this algorithm.
    """
    header: dict[str, str] = {"alg": algorithm, "typ": "JWT"}
    if key_id is not None:
        header["kid"] = key_id
    header |= extra or {}
    parts = [json.dumps(part, separators=(",", ":")).encode() for part in (header, claims)]
    text = b".".join(map(encoded, parts))
    return (text + b"." + encoded(_signature(text, algorithm, key, what))).decode("ascii")


def assertion(issuer: str, subject: str, audience: str, now_s: float) -> dict[str, Any]:
    """Claims of an assertion (RFC 7523 section 3): used once, at once."""
    issued = int(now_s)
    return {
        "iss": issuer,
        "sub": subject,
        "aud": audience,
        "iat": issued - int(SKEW_S),
        "exp": issued + int(ASSERTION_S),
        "jti": secrets.token_urlsafe(24),
    }


def _signature(text: bytes, algorithm: JwtAlgorithm, key: Secret, what: str) -> bytes:
    if algorithm == "HS256":
        raw = key.reveal_bytes()
        if len(raw) < MIN_HMAC_BYTES:
            raise _malformed(what, f"is shorter than {MIN_HMAC_BYTES} bytes, which HS256 asks for")
        return hmac.digest(raw, text, "sha256")
    private = key.derive(("jws", algorithm), lambda raw: parsed(raw, algorithm, what))
    match algorithm:
        case "EdDSA":
            return cast("ed25519.Ed25519PrivateKey", private).sign(text)
        case "ES256":
            signature = cast("ec.EllipticCurvePrivateKey", private).sign(text, ec.ECDSA(hashes.SHA256()))
            # RFC 7518 section 3.4: both numbers as they are, not as DER.
            return b"".join(number.to_bytes(32) for number in decode_dss_signature(signature))
        case "PS256":
            salted = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256().digest_size)
            return cast("rsa.RSAPrivateKey", private).sign(text, salted, hashes.SHA256())
        case "RS256":
            return cast("rsa.RSAPrivateKey", private).sign(text, padding.PKCS1v15(), hashes.SHA256())


def parsed(raw: bytes, algorithm: JwtAlgorithm, what: str) -> Key:
    """The private key of an algorithm, from PEM (PKCS #8, or the older forms of one kind)."""
    try:
        key = load_pem_private_key(raw, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The error of the library may show what it could not read.
        raise _malformed(what, "is no private key in PEM without a password") from None
    match algorithm:
        case "EdDSA" if isinstance(key, ed25519.Ed25519PrivateKey):
            return key
        case "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1":
            return key
        case "RS256" | "PS256" if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS:
            return key
        case _:
            raise _malformed(what, f"is no key for {algorithm}")


def _malformed(what: str, why: str) -> Refusal:
    return Refusal(Code.SECRET_MALFORMED, f"The key {what} {why}.")
