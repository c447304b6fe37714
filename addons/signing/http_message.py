"""HTTP message signatures (RFC 9421) of requests, with the content digest of RFC 9530.

Signed are the components in the order of the policy. A component that the request does not have, has twice where it may
not, or whose value is no text, cannot be signed: the request is refused, since a signature that covers less than the
policy says would be taken for one that covers it.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from addons.credentials import Credential
from addons.injection.render import header_value
from addons.refusal import Code, Refusal
from addons.signing.hmac_lines import whole
from addons.signing.keys import PrivateKey, hmac_key, private_key
from addons.signing.outgoing import Outgoing
from policies.sign import Component, HttpMessageSigner

_ASCII: Final = re.compile(rb"[\x20-\x7e\t]*")
_SIGNATURE: Final = b"Signature"
_INPUT: Final = b"Signature-Input"
_DIGEST: Final = b"Content-Digest"

type Parameter = tuple[str, str | int]


def sign_message(signer: HttpMessageSigner, request: Outgoing, credential: Credential, now_s: float) -> None:
    """Puts `Signature-Input` and `Signature`, and `Content-Digest` where it is a component.

    Args:
        signer: of the route.
        request: what leaves, without signatures of the caller.
        credential: opened for this request.
        now_s: wall-clock seconds.

    Raises:
        Refusal: `bad_request` where a component is not there; `secret_malformed`, `secret_missing`.
    """
    base, params = message_base(signer, request, credential, now_s)
    put_message(signer, request, params, _signature(signer, base, credential))


def message_base(
    signer: HttpMessageSigner, request: Outgoing, credential: Credential, now_s: float
) -> tuple[bytes, bytes]:
    """Puts the digest, and gives the signature base with the parameters that stand in it. Raises as `sign_message` does."""
    if signer.digests:
        request.put(_DIGEST, content_digest(whole(request)))
    return signature_base(request, signer.components, _parameters(signer, credential, int(now_s)))


def put_message(signer: HttpMessageSigner, request: Outgoing, params: bytes, signature: bytes) -> None:
    """Puts the signature, and what it covers.

    Args:
        signer: of the route.
        request: what leaves.
        params: as they stand in the base (`message_base`).
        signature: over the base.
    """
    label = signer.label.encode("ascii")
    value = b":" + binascii.b2a_base64(signature, newline=False) + b":"
    request.put(_INPUT, _member(request, b"signature-input", label + b"=" + params))
    request.put(_SIGNATURE, _member(request, b"signature", label + b"=" + value))


def content_digest(body: bytes) -> bytes:
    """The Content-Digest of a body (RFC 9530 section 2)."""
    return b"sha-256=:" + binascii.b2a_base64(hashlib.sha256(body).digest(), newline=False) + b":"


def signature_base(
    request: Outgoing, components: Sequence[Component], parameters: Sequence[Parameter]
) -> tuple[bytes, bytes]:
    """The signature base (RFC 9421 section 2.5), and the value of the signature's member of `Signature-Input`.

    Raises:
        Refusal: `bad_request`; a component has no value that can be signed.
    """
    lines = [(_identifier(component), _value(request, component)) for component in components]
    inner = b" ".join([identifier for identifier, _ in lines])
    params = b"(" + inner + b")" + b"".join([_parameter(name, value) for name, value in parameters])
    base = b"".join([b"%b: %b\n" % line for line in lines]) + b'"@signature-params": ' + params
    return base, params


def _parameters(signer: HttpMessageSigner, credential: Credential, now_s: int) -> list[Parameter]:
    found: list[Parameter] = [("created", now_s)]
    if signer.expires_s is not None:
        found.append(("expires", now_s + signer.expires_s))
    if signer.nonce:
        found.append(("nonce", secrets.token_urlsafe(16)))
    found.append(("alg", signer.algorithm))
    found.append(("keyid", header_value(signer.key_id, credential).decode("ascii")))
    if signer.tag is not None:
        found.append(("tag", signer.tag))
    return found


def _parameter(name: str, value: str | int) -> bytes:
    text = str(value) if isinstance(value, int) else _string(value)
    return f";{name}={text}".encode("ascii")


def _string(text: str) -> str:
    """A structured string (RFC 8941 section 3.3.3)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _identifier(component: Component) -> bytes:
    text = _string(component.name)
    if component.parameter is not None:
        text += f";name={_string(component.parameter)}"
    if component.bytes_form:
        text += ";bs"
    return text.encode("ascii")


def _value(request: Outgoing, component: Component) -> bytes:
    """The value of a component (sections 2.1 and 2.2)."""
    match component.name:
        case "@method":
            return request.method.encode("ascii")
        case "@target-uri":
            return request.scheme.encode("ascii") + b"://" + request.host + _origin(request.target)
        case "@authority" | "host":
            return request.host
        case "@scheme":
            return request.scheme.encode("ascii")
        case "@request-target":
            return request.target
        case "@path":
            return _origin(request.path) or b"/"
        case "@query":
            return b"?" + request.query
        case "@query-param":
            return _query_parameter(request, component.parameter or "")
        case name:
            return _field(request, name, bytes_form=component.bytes_form)


def _origin(target: bytes) -> bytes:
    """`*` stands for the origin itself, which has no path (RFC 9110 section 7.1)."""
    return b"" if target == b"*" else target


def _query_parameter(request: Outgoing, name: str) -> bytes:
    """The one parameter of this name, encoded anew (section 2.2.8)."""
    found: list[bytes] = []
    for pair in request.query.split(b"&"):
        key, _, value = pair.partition(b"=")
        if quote_from_bytes(_decoded(key), safe="*-._") == name:
            found.append(_decoded(value))
    if len(found) != 1:
        raise _missing(f"the query parameter {name}" + (" once" if found else ""))
    return quote_from_bytes(found[0], safe="*-._").encode("ascii")


def _decoded(raw: bytes) -> bytes:
    return unquote_to_bytes(raw.replace(b"+", b" "))


def _field(request: Outgoing, name: str, *, bytes_form: bool) -> bytes:
    values = [value.strip(b" \t") for value in request.values(name.encode("ascii"))]
    if not values:
        raise _missing(f"the field {name}")
    if bytes_form:
        return b", ".join([b":" + binascii.b2a_base64(value, newline=False) + b":" for value in values])
    joined = b", ".join(values)
    if not _ASCII.fullmatch(joined):
        raise Refusal(Code.BAD_REQUEST, f"This route signs the field {name}, and its value is not ASCII.")
    return joined


def _missing(what: str) -> Refusal:
    return Refusal(Code.BAD_REQUEST, f"This route signs {what}, which the request does not have.")


def _member(request: Outgoing, name: bytes, member: bytes) -> bytes:
    """A dictionary with one more member: those of signers before this one stay."""
    return b", ".join([*request.values(name), member])


def _signature(signer: HttpMessageSigner, base: bytes, credential: Credential) -> bytes:
    if signer.algorithm == "hmac-sha256":
        return hmac.digest(hmac_key(signer.key, signer.key_encoding, credential), base, "sha256")
    return signed_by(private_key(signer.key, signer.algorithm, credential), base)


def signed_by(key: PrivateKey, base: bytes) -> bytes:
    """The signature of a private key (sections 3.3.1, 3.3.4 and 3.3.6)."""
    match key:
        case ed25519.Ed25519PrivateKey():
            return key.sign(base)
        case ec.EllipticCurvePrivateKey():
            # r and s, 32 bytes each, not the ASN.1 around them.
            r, s = decode_dss_signature(key.sign(base, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        case rsa.RSAPrivateKey():
            return key.sign(base, padding.PSS(padding.MGF1(hashes.SHA512()), 64), hashes.SHA512())
