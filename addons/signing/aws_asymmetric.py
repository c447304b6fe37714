"""AWS Signature Version 4A: ECDSA over P-256, by a key that is derived from the secret access key, good for a set of
regions instead of one (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html, "How SigV4a works").

The key is made by the counter mode of NIST SP 800-108 with HMAC-SHA256, over the name of the algorithm and the id of the
access key, as AWS's own library does (awslabs/aws-c-auth, vectors in tests).
"""

from __future__ import annotations

import hmac
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from addons.credentials import Credential
from addons.injection.render import header_value
from addons.signing.keys import malformed, the_secret
from policies.sign import AwsSigV4Signer

ASYMMETRIC: Final = b"AWS4-ECDSA-P256-SHA256"
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the group of P-256 (FIPS 186-4 D.1.2.3)."""


def signing_key(signer: AwsSigV4Signer, credential: Credential) -> ec.EllipticCurvePrivateKey:
    """The private key of an access key; kept with the secret it is made of.

    Raises:
        Refusal: `secret_malformed`, `secret_missing`.
    """
    secret, reference = the_secret(signer.secret_access_key, credential)
    access = header_value(signer.access_key_id, credential)

    def make(raw: bytes) -> ec.EllipticCurvePrivateKey:
        if not raw or any(byte <= 0x20 or byte >= 0x7F for byte in raw):
            raise malformed(reference, "is no AWS key: visible ASCII without spaces is")
        for counter in range(1, 255):
            number = derived(raw, access, counter)
            # One in 2^32 is over the order: then the next counter is taken.
            if number is not None:
                return ec.derive_private_key(number, ec.SECP256R1())
        raise malformed(reference, "gives no key for AWS Signature Version 4A")

    return secret.derive(("aws4a", access), make)


def derived(secret: bytes, access: bytes, counter: int) -> int | None:
    """The private number for a counter; None where it is none."""
    label = ASYMMETRIC + b"\x00" + access + bytes([counter])
    made = hmac.digest(b"AWS4A" + secret, b"\x00\x00\x00\x01" + label + b"\x00\x00\x01\x00", "sha256")
    number = int.from_bytes(made, "big")
    return None if number > _ORDER - 2 else number + 1


def signature(key: ec.EllipticCurvePrivateKey, text: bytes) -> bytes:
    """Lower-case hex of the ASN.1 signature."""
    return key.sign(text, ec.ECDSA(hashes.SHA256())).hex().encode("ascii")
