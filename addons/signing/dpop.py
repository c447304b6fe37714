"""Proofs of possession (RFC 9449): a JWT beside an access token that is bound to a key.

The proof names the method and the URI without query and fragment (section 4.2). Where the request carries a token of the
scheme DPoP, the proof covers it (`ath`). A nonce that an upstream gave (section 8) is remembered for its host and sent in
the proofs that follow; how many are remembered is bounded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from addons.credentials import Credential
from addons.refusal import Code, Refusal
from addons.signing.http_message import signed_by
from addons.signing.keys import PrivateKey, private_key
from addons.signing.outgoing import Outgoing
from policies.sign import DpopSigner, MessageAlgorithm

MAX_NONCE_BYTES: Final = 512
MOST_HOSTS: Final = 256
_KINDS: Final[dict[str, MessageAlgorithm]] = {"ES256": "ecdsa-p256-sha256", "EdDSA": "ed25519"}


@final
class Nonces:
    """The newest nonce of each host."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, bytes] = OrderedDict()

    def of(self, host: bytes) -> bytes | None:
        return self._known.get(host.lower())

    def learn(self, host: bytes, values: Sequence[bytes]) -> bool:
        """Takes the `DPoP-Nonce` of an answer; whether it is one that was not known."""
        if len(values) != 1 or not 0 < len(values[0]) <= MAX_NONCE_BYTES or not _visible(values[0]):
            return False
        key = host.lower()
        if self._known.get(key) == values[0]:
            return False
        self._known[key] = values[0]
        self._known.move_to_end(key)
        while len(self._known) > MOST_HOSTS:
            self._known.popitem(last=False)
        return True


def sign_dpop(
    signer: DpopSigner, request: Outgoing, credential: Credential, now_s: float, nonce: bytes | None = None
) -> None:
    """Puts `DPoP`.

    Args:
        signer: of the route.
        request: what leaves, its token included.
        credential: opened for this request.
        now_s: wall-clock seconds.
        nonce: that the upstream wants, if it has said so.

    Raises:
        Refusal: `secret_malformed`, `secret_missing`; `internal` where two tokens would leave.
    """
    key = private_key(signer.key, _KINDS[signer.algorithm], credential)
    claims: dict[str, str | int] = {
        "jti": secrets.token_urlsafe(16),
        "htm": request.method,
        "htu": f"{request.scheme}://{request.host.decode('ascii').lower()}{request.path.decode('ascii')}",
        "iat": int(now_s),
    }
    tokens = [value for value in request.values(b"authorization") if value[:5].lower() == b"dpop "]
    if len(tokens) > 1:
        raise Refusal(Code.INTERNAL, "Two tokens were about to leave with one proof.")
    if tokens:
        claims["ath"] = _coded(hashlib.sha256(tokens[0][5:].strip(b" ")).digest())
    if nonce is not None:
        claims["nonce"] = nonce.decode("ascii")
    head = {"typ": "dpop+jwt", "alg": signer.algorithm, "jwk": _public(key)}
    text = f"{_coded(_json(head))}.{_coded(_json(claims))}"
    request.put(b"DPoP", f"{text}.{_coded(signed_by(key, text.encode('ascii')))}".encode("ascii"))


def wants_nonce(challenges: Sequence[bytes]) -> bool:
    """Whether a 401 says that the nonce was missing or old (section 9)."""
    return any(b"use_dpop_nonce" in value and value[:4].lower() == b"dpop" for value in challenges)


def _public(key: PrivateKey) -> dict[str, str]:
    """The public key as a JWK (RFC 7517)."""
    match key:
        case ec.EllipticCurvePrivateKey():
            numbers = key.public_key().public_numbers()
            return {
                "kty": "EC",
                "crv": "P-256",
                "x": _coded(numbers.x.to_bytes(32, "big")),
                "y": _coded(numbers.y.to_bytes(32, "big")),
            }
        case ed25519.Ed25519PrivateKey():
            return {"kty": "OKP", "crv": "Ed25519", "x": _coded(key.public_key().public_bytes_raw())}
        case _:
            raise Refusal(Code.INTERNAL, "A proof was to be made with a key of another kind.")


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _coded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _visible(raw: bytes) -> bool:
    return all(0x21 <= byte < 0x7F for byte in raw)
