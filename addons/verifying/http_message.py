"""HTTP message signatures (RFC 9421) of callers, with the digests of RFC 9530.

What the algorithm is, and what must be covered, the policy says; of the message it is only compared. A signature covers
the method and the target; a query only counts as covered where a component holds it, a body where `content-digest` is one
and is the digest of what came. What is not covered and is there anyway is refused: it could have been put there by
anybody.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from addons.credentials import Credential
from addons.refusal import Code, Refusal
from addons.signing.hmac_lines import whole
from addons.signing.http_message import Parameter, signature_base
from addons.signing.keys import PublicKey, hmac_key, public_key
from addons.signing.outgoing import Outgoing
from addons.verifying.claim import (
    MAX_NONCE_BYTES,
    MAX_SIGNATURE_BYTES,
    Claim,
    Single,
    invalid,
    judge_signed,
    judge_time,
)
from addons.verifying.structured import InnerList, Item, Malformed, Member, read_dictionary
from policies.sign import Component
from policies.verify import MessageVerifier

_TEXTS: Final = frozenset({"nonce", "alg", "keyid", "tag"})
_NUMBERS: Final = frozenset({"created", "expires"})
_QUERY: Final = frozenset({"@target-uri", "@request-target", "@query"})
_DIGESTS: Final = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
"""Of RFC 9530; those that it calls insecure are not taken."""
_P256_BYTES: Final = 32


def claim_message(verifier: MessageVerifier, request: Outgoing, now_s: float) -> Claim:
    """Reads the signature and judges what it covers and when.

    Args:
        verifier: of the route.
        request: as it came, body included.
        now_s: wall-clock seconds.

    Raises:
        Refusal: `signature_invalid`.
    """
    covered, signature = _chosen(verifier, request)
    components = tuple([_component(item) for item in covered.items])
    if len(set(components)) != len(components):
        raise invalid("The signature covers a component twice.")
    for wanted in verifier.components:
        if wanted not in components:
            raise invalid(f"The signature does not cover {wanted.name}, which this route wants covered.")
    _judge_cover(components, request)
    judge_signed(request.caller, [one.name for one in components if not one.name.startswith("@")])
    parameters = _parameters(covered)
    single = _judge(verifier, dict(parameters), now_s)
    key = next((key for key_id, key in verifier.keys if key_id == dict(parameters).get("keyid")), None)
    if key is None:
        raise invalid("The signature names a key id that this route does not have.")
    try:
        base, _ = signature_base(request, components, parameters)
    except Refusal as refusal:
        if refusal.code is not Code.BAD_REQUEST:
            raise
        raise invalid("The signature covers a component that the request does not have, or has twice.") from None

    def holds(credential: Credential) -> bool:
        if verifier.algorithm == "hmac-sha256":
            made = hmac.digest(hmac_key(key, verifier.key_encoding, credential), base, "sha256")
            return hmac.compare_digest(made, signature)
        return verified_by(public_key(key, verifier.algorithm, credential), signature, base)

    return Claim(key.references, key.references, holds, single)


def _dictionary(request: Outgoing, name: str) -> dict[str, Member]:
    values = request.caller.values(name.lower().encode())
    if not values:
        raise invalid(f"The request has no {name} field.")
    if sum(len(value) for value in values) > MAX_SIGNATURE_BYTES:
        raise invalid(f"The {name} field is too long.")
    try:
        return read_dictionary(values)
    except Malformed:
        raise invalid(f"The {name} field is no dictionary (RFC 8941), or says one thing twice.") from None


def _chosen(verifier: MessageVerifier, request: Outgoing) -> tuple[InnerList, bytes]:
    """What the one signature covers, and its bytes."""
    inputs, signatures = _dictionary(request, "Signature-Input"), _dictionary(request, "Signature")
    label = verifier.label
    if label is None:
        if len(inputs) != 1:
            raise invalid("The request has several signatures, and this route does not say which counts.")
        label = next(iter(inputs))
    covered, signature = inputs.get(label), signatures.get(label)
    if not isinstance(covered, InnerList) or not isinstance(signature, Item) or not isinstance(signature.value, bytes):
        raise invalid("The request has no signature of the label that this route wants.")
    return covered, signature.value


def _component(item: Item) -> Component:
    name, parameters = item.value, dict(item.parameters)
    if not isinstance(name, str) or not name or name != name.lower():
        raise invalid("The signature covers something that is no component.")
    if name == "@query-param":
        wanted = parameters.pop("name", None)
        if isinstance(wanted, str) and not parameters:
            return Component(name, wanted)
    elif not parameters and name != "@signature-params":
        return Component(name)
    elif parameters == {"bs": True} and not name.startswith("@"):
        return Component(name, None, bytes_form=True)
    raise invalid("The signature covers a component in a form that is not taken here.")


def _judge_cover(components: tuple[Component, ...], request: Outgoing) -> None:
    """Whether what is there is covered: query, and body."""
    names = {component.name for component in components}
    if request.query and not names & _QUERY:
        raise invalid("The request has a query, and its signature does not cover it.")
    body = whole(request)
    if "content-digest" not in names:
        if body:
            raise invalid("The request has a body, and its signature does not cover a digest of it.")
        return
    found = [(name, item) for name, item in _dictionary(request, "Content-Digest").items() if name in _DIGESTS]
    if not found:
        raise invalid("The Content-Digest field has no SHA-256 or SHA-512.")
    for name, item in found:
        value = item.value if isinstance(item, Item) else None
        if not isinstance(value, bytes) or not hmac.compare_digest(_DIGESTS[name](body).digest(), value):
            raise invalid("The Content-Digest field is not the digest of the body.")


def _parameters(covered: InnerList) -> list[Parameter]:
    """Parameters as they were signed, in their order."""
    found: list[Parameter] = []
    for name, value in covered.parameters:
        if (name in _NUMBERS and isinstance(value, int) and not isinstance(value, bool)) or (
            name in _TEXTS and isinstance(value, str)
        ):
            found.append((name, value))
        else:
            raise invalid("The signature has a parameter that is not taken here.")
    return found


def _judge(verifier: MessageVerifier, given: dict[str, str | int], now_s: float) -> Single | None:
    """Times, algorithm, tag and nonce."""
    created, expires, nonce = given.get("created"), given.get("expires"), given.get("nonce")
    if not isinstance(created, int):
        raise invalid("The signature does not say when it was created.")
    judge_time(created, now_s, past_s=verifier.max_skew_s, future_s=verifier.max_skew_s)
    if isinstance(expires, int) and expires < now_s:
        raise invalid("The signature has expired.")
    if given.get("alg", verifier.algorithm) != verifier.algorithm:
        raise invalid("The signature names another algorithm than this route takes.")
    if verifier.tag is not None and given.get("tag") != verifier.tag:
        raise invalid("The signature has not the tag that this route wants.")
    if not nonce:
        if verifier.nonce:
            raise invalid("The signature has no nonce.")
        return None
    text = str(nonce)
    if len(text) > MAX_NONCE_BYTES:
        raise invalid(f"The nonce is longer than {MAX_NONCE_BYTES} bytes.")
    return Single(f"{given.get('keyid')}\0{text}", created + verifier.max_skew_s - now_s)


def verified_by(key: PublicKey, signature: bytes, base: bytes) -> bool:
    """Whether a private key made this signature (sections 3.3.1, 3.3.4 and 3.3.6)."""
    try:
        match key:
            case ed25519.Ed25519PublicKey():
                key.verify(signature, base)
            case ec.EllipticCurvePublicKey():
                if len(signature) != 2 * _P256_BYTES:
                    return False
                r, s = signature[:_P256_BYTES], signature[_P256_BYTES:]
                encoded = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
                key.verify(encoded, base, ec.ECDSA(hashes.SHA256()))
            case rsa.RSAPublicKey():
                key.verify(signature, base, padding.PSS(padding.MGF1(hashes.SHA512()), 64), hashes.SHA512())
    except InvalidSignature:
        return False
    return True
