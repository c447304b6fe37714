"""Keys of signers: from a secret to what computes with it.

What is made of a secret (a parsed key, a key of a day) is kept with the secret itself (`Secret.derive`), so that
it is gone when the secret is.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from addons.credentials import Credential
from addons.refusal import Code, Refusal
from policies.sign import KeyEncoding, MessageAlgorithm, TransitKey
from policies.template import FieldRef, Template
from vault.secret import Secret

type PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
type PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey

MIN_RSA_BITS: Final = 2048
_HEX: Final = re.compile(rb"(?:[0-9A-Fa-f]{2})+")
_SPLITS: Final = re.compile(rb"[\r\n\0]")


def malformed(reference: FieldRef, what: str) -> Refusal:
    name = f"{reference.entry}.{reference.field}" if reference.field else reference.entry
    return Refusal(Code.SECRET_MALFORMED, f"The secret behind {{{name}}} {what}.")


def the_secret(template: Template | TransitKey, credential: Credential) -> tuple[Secret, FieldRef]:
    """The one secret that key material names."""
    if isinstance(template, TransitKey):
        raise Refusal(Code.INTERNAL, "A key that stays in Vault was to be used here.")
    (reference,) = template.references
    return credential.value(reference), reference


def hmac_key(template: Template | TransitKey, encoding: KeyEncoding, credential: Credential) -> bytes:
    """The key of an HMAC, with the text around it, if the template has any.

    Raises:
        Refusal: `secret_malformed`; it is empty, holds a line end, or is not of its encoding.
    """
    secret, reference = the_secret(template, credential)
    raw = secret.reveal_bytes()
    if not raw:
        raise malformed(reference, "is empty")
    if _SPLITS.search(raw):
        raise malformed(reference, "holds a line end or NUL: a key is stored without them")
    if encoding == "hex":
        if not _HEX.fullmatch(raw):
            raise malformed(reference, "is not hexadecimal")
        raw = bytes.fromhex(raw.decode("ascii"))
    elif encoding == "base64":
        try:
            raw = base64.b64decode(raw, validate=True)
        except binascii.Error:
            raise malformed(reference, "is not base64") from None
        if not raw:
            raise malformed(reference, "is empty")
    if isinstance(template, TransitKey) or len(template.parts) == 1:
        return raw
    return b"".join(part.encode() if isinstance(part, str) else raw for part in template.parts)


def decoded_key(template: Template | TransitKey, encoding: KeyEncoding, credential: Credential) -> Secret:
    """The bytes of a key that is stored in hex or base64, as a secret of their own: an upstream knows them, and could show
    them in another spelling. Kept with the secret.

    Raises:
        Refusal: as `hmac_key` does.
    """
    secret, _ = the_secret(template, credential)
    return secret.derive(("decoded", encoding), lambda _: Secret(hmac_key(template, encoding, credential)))


def private_key(template: Template | TransitKey, algorithm: MessageAlgorithm, credential: Credential) -> PrivateKey:
    """A private key, PEM PKCS #8, of the kind that the algorithm wants.

    Raises:
        Refusal: `secret_malformed`.
    """
    secret, reference = the_secret(template, credential)

    def parse(raw: bytes) -> PrivateKey:
        try:
            key = load_pem_private_key(raw, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # The error of the library may show what it could not read.
            raise malformed(reference, "is no private key in PEM (PKCS #8, without a password)") from None
        match algorithm:
            case "ed25519" if isinstance(key, ed25519.Ed25519PrivateKey):
                return key
            case "ecdsa-p256-sha256" if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1":
                return key
            case "rsa-pss-sha512" if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS:
                return key
            case _:
                raise malformed(reference, f"is no key for {algorithm}")

    return secret.derive(("pem", algorithm), parse)


def public_key(template: Template, algorithm: MessageAlgorithm, credential: Credential) -> PublicKey:
    """A public key, PEM, of the kind that the algorithm wants.

    Raises:
        Refusal: `secret_malformed`.
    """
    secret, reference = the_secret(template, credential)

    def parse(raw: bytes) -> PublicKey:
        try:
            key = load_pem_public_key(raw)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise malformed(reference, "is no public key in PEM (BEGIN PUBLIC KEY)") from None
        match algorithm:
            case "ed25519" if isinstance(key, ed25519.Ed25519PublicKey):
                return key
            case "ecdsa-p256-sha256" if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1":
                return key
            case "rsa-pss-sha512" if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
                return key
            case _:
                raise malformed(reference, f"is no key for {algorithm}")

    return secret.derive(("public", algorithm), parse)
