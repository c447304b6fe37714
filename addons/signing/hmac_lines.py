"""HMAC signatures: the profile of lines, and templates for the APIs that differ (docs/reference/signing.md).

The profile's text is `METHOD`, the request target as it leaves, `host:<value>` where it is asked for, a `name:value`
line for each signed header, `x-timestamp:<value>`, `x-nonce:<value>` where there is one, and the lower-case hexadecimal
SHA-256 of the body, joined by line feeds. What is sent may be called otherwise: lines keep their names.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Final

from addons.credentials import Credential
from addons.refusal import Code, Refusal
from addons.signing.keys import hmac_key, malformed
from addons.signing.outgoing import Outgoing
from policies.sign import REQUEST_PARTS, Encoding, HmacSigner, SentName, TimestampForm
from policies.template import FieldRef

NONCE_BYTES: Final = 16


def sign_hmac(signer: HmacSigner, request: Outgoing, credential: Credential, now_s: float) -> None:
    """Puts timestamp, nonce and signature.

    Args:
        signer: of the route, whose key is a secret.
        request: what leaves, without what the caller sent under these names.
        credential: opened for this request.
        now_s: wall-clock seconds.

    Raises:
        Refusal: `secret_malformed`, `secret_missing`; `internal` where the body that is signed is not there.
    """
    text = hmac_text(signer, request, credential, now_s)
    put_hmac(
        signer, request, hmac.digest(hmac_key(signer.key, signer.key_encoding, credential), text, signer.algorithm)
    )


def hmac_text(signer: HmacSigner, request: Outgoing, credential: Credential, now_s: float) -> bytes:
    """Puts timestamp and nonce, and gives the text that is signed. Raises as `sign_hmac` does."""
    timestamp = timestamp_text(signer.timestamp_form, now_s)
    nonce = ""
    if signer.timestamp is not None:
        _put(request, signer.timestamp, timestamp)
    if signer.nonce is not None:
        nonce = secrets.token_hex(NONCE_BYTES)
        _put(request, signer.nonce, nonce)
    return signed_text(signer, request, credential, timestamp, nonce)


def put_hmac(signer: HmacSigner, request: Outgoing, digest: bytes) -> None:
    """Puts the signature."""
    _put(request, signer.signature, signer.prefix + encoded(digest, signer.encoding))


def signed_text(signer: HmacSigner, request: Outgoing, credential: Credential, timestamp: str, nonce: str) -> bytes:
    """What is signed: of the profile, or of the template.

    Raises:
        Refusal: `secret_malformed`, `secret_missing`; `internal` where the body that is signed is not there.
    """
    if signer.template is None:
        return profile_text(request, timestamp, nonce, signer.headers, host=signer.host)
    return _template_text(signer, request, credential, timestamp, nonce)


def profile_text(request: Outgoing, timestamp: str, nonce: str, headers: tuple[str, ...], *, host: bool) -> bytes:
    """The canonical text of the profile.

    Args:
        request: what leaves, without the signature itself.
        timestamp: as it is sent.
        nonce: as it is sent; empty where there is none.
        headers: lower-case names, in the order of their lines.
        host: whether the host has a line.
    """
    lines = [request.method.encode("ascii"), request.target]
    if host:
        lines.append(b"host:" + request.host)
    for name in headers:
        raw = name.encode("ascii")
        lines.append(raw + b":" + field_value(request, raw))
    lines.append(b"x-timestamp:" + timestamp.encode("ascii"))
    if nonce:
        lines.append(b"x-nonce:" + nonce.encode("ascii"))
    lines.append(hashlib.sha256(whole(request)).hexdigest().encode("ascii"))
    return b"\n".join(lines)


def field_value(request: Outgoing, name: bytes) -> bytes:
    """The value of a signed header: trimmed, several joined by a comma, empty where there is none."""
    if name == b"host":
        return request.host
    return b",".join([value.strip(b" \t") for value in request.values(name)])


def whole(request: Outgoing) -> bytes:
    """The body.

    Raises:
        Refusal: `internal`; it streams, so nothing that covers it can be signed.
    """
    if request.body is None:
        raise Refusal(Code.INTERNAL, "A body was to be signed and was not held.")
    return request.body


def timestamp_text(form: TimestampForm, now_s: float) -> str:
    match form:
        case "seconds":
            return str(int(now_s))
        case "milliseconds":
            return str(int(now_s * 1000))
        case "rfc3339":
            return dt.datetime.fromtimestamp(int(now_s), dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def encoded(digest: bytes, encoding: Encoding) -> str:
    match encoding:
        case "hex":
            return digest.hex()
        case "base64":
            return binascii.b2a_base64(digest, newline=False).decode("ascii")
        case "base64url":
            return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def _put(request: Outgoing, name: SentName, value: str) -> None:
    if name.place == "query":
        request.put_parameter(name.name, value)
    else:
        request.put(name.name.encode("ascii"), value.encode("ascii"))


def _template_text(signer: HmacSigner, request: Outgoing, credential: Credential, timestamp: str, nonce: str) -> bytes:
    template = signer.template
    if template is None:
        return b""
    known: Mapping[str, bytes] = {"timestamp": timestamp.encode("ascii"), "nonce": nonce.encode("ascii")}
    return b"".join(
        [part.encode() if isinstance(part, str) else _part(part, request, credential, known) for part in template.parts]
    )


def _part(reference: FieldRef, request: Outgoing, credential: Credential, known: Mapping[str, bytes]) -> bytes:
    if reference.entry not in REQUEST_PARTS:
        raw = credential.value(reference).reveal_bytes()
        if not raw:
            raise malformed(reference, "is empty")
        return raw
    match reference.entry:
        case "method":
            return request.method.encode("ascii")
        case "target":
            return request.target
        case "path":
            return request.path
        case "query":
            return request.query
        case "host":
            return request.host
        case "header":
            return field_value(request, (reference.field or "").lower().encode("ascii"))
        case "body":
            return whole(request)
        case "body_sha256":
            return hashlib.sha256(whole(request)).hexdigest().encode("ascii")
        case other:
            return known[other]
