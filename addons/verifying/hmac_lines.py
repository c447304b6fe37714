"""The HMAC profile and its templates, on the way in: the text of `addons/signing/hmac_lines.py`, over what came."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import replace
from typing import Final

from addons.credentials import Credential
from addons.injection.places import parameter_name, parameter_value
from addons.refusal import Refusal
from addons.signing.hmac_lines import signed_text, whole
from addons.signing.keys import hmac_key
from addons.signing.outgoing import Outgoing
from addons.verifying.claim import (
    MAX_NONCE_BYTES,
    Claim,
    Remote,
    Single,
    any_matches,
    invalid,
    judge_signed,
    judge_time,
    only,
    present,
    read_time,
    visible,
)
from policies.sign import REQUEST_PARTS, Encoding, SentName, transit_use
from policies.template import Template
from policies.verify import HmacVerifier, references_of_verifier

_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+={0,2}")


def claim_hmac(verifier: HmacVerifier, request: Outgoing, now_s: float) -> Claim:
    """Reads signature, timestamp and nonce.

    Args:
        verifier: of the route.
        request: as it came, body included.
        now_s: wall-clock seconds.

    Raises:
        Refusal: `signature_invalid`.
    """
    form = verifier.form
    if form.timestamp is None:
        raise invalid("This route wants a timestamp signed.")
    signature = _signature(_value(request, form.signature, "signature"), form.prefix, form.encoding)
    timestamp = _value(request, form.timestamp, "timestamp")
    at_s = read_time(form.timestamp_form, timestamp)
    judge_time(at_s, now_s, past_s=verifier.max_skew_s, future_s=verifier.max_skew_s)
    nonce = ""
    if form.nonce is not None:
        nonce = _value(request, form.nonce, "nonce")
        if len(nonce) > MAX_NONCE_BYTES:
            raise invalid(f"The nonce is longer than {MAX_NONCE_BYTES} bytes.")
    signed = request
    if form.signature.place == "query":
        signed = _without(request, form.signature.name)
    if form.template is None:
        judge_signed(request.caller, form.headers)
    else:
        parts = form.template.references
        judge_signed(request.caller, [one.field for one in parts if one.entry == "header" and one.field is not None])
        _judge_cover({one.entry for one in parts}, signed)

    def holds(credential: Credential) -> bool:
        def made(key: Template) -> bytes:
            text = signed_text(replace(form, key=key), signed, credential, timestamp, nonce)
            return hmac.digest(hmac_key(key, form.key_encoding, credential), text, form.algorithm)

        return any_matches([signature], present(verifier.keys, made))

    use = transit_use(form)
    remote = None
    if use is not None:
        if len(signature) != hashlib.new(form.algorithm).digest_size:
            # Vault need not be asked what it is not.
            raise invalid("The signature is not as long as this route wants it.")
        remote = Remote(use, lambda credential: signed_text(form, signed, credential, timestamp, nonce), signature)
    others = () if form.template is None else form.template.references
    secrets = tuple(one for one in others if one.entry not in REQUEST_PARTS)
    needed = (*(verifier.keys[0].references if verifier.keys else ()), *secrets)
    single = Single(nonce, at_s + verifier.max_skew_s - now_s) if nonce else None
    return Claim(references_of_verifier(verifier), needed, holds, single, remote)


def _judge_cover(used: set[str], signed: Outgoing) -> None:
    """Whether what is there is in the text of the template: it could have been put there by anybody."""
    if signed.query and not used & {"query", "target"}:
        raise invalid("The request has a query, and what this route has signed does not cover it.")
    if whole(signed) and not used & {"body", "body_sha256"}:
        raise invalid("The request has a body, and what this route has signed does not cover it.")


def _value(request: Outgoing, name: SentName, what: str) -> str:
    """What was sent under a name, which must stand there once."""
    if name.place == "header":
        return visible(only(request.caller, name.name), what)
    wanted = name.name.encode("ascii")
    pairs = [pair for pair in request.query.split(b"&") if parameter_name(pair) == wanted]
    if len(pairs) != 1:
        raise invalid(f"The query must have {name.name} once, and has it {'several times' if pairs else 'not'}.")
    return visible(parameter_value(pairs[0]).encode(), what)


def _without(request: Outgoing, name: str) -> Outgoing:
    """The request as it was before its signature was put behind the query."""
    path, _, query = request.target.partition(b"?")
    kept = b"&".join([pair for pair in query.split(b"&") if parameter_name(pair) != name.encode("ascii")])
    target = path + b"?" + kept if kept else path
    return Outgoing(
        request.method,
        request.scheme,
        request.host,
        target,
        request.fields,
        request.body,
        request.caller,
        http2=request.http2,
    )


def _signature(text: str, prefix: str, encoding: Encoding) -> bytes:
    """The bytes of a signature as it was sent."""
    if not text.startswith(prefix):
        raise invalid("The signature has another prefix than this route wants.")
    rest = text[len(prefix) :]
    try:
        match encoding:
            case "hex" if _HEX.fullmatch(rest):
                return bytes.fromhex(rest)
            case "base64":
                return base64.b64decode(rest, validate=True)
            case "base64url" if _BASE64URL.fullmatch(rest):
                bare = rest.rstrip("=")
                return base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))
            case _:
                pass
    except (binascii.Error, ValueError, Refusal):
        pass
    raise invalid("The signature is not encoded as this route wants it.")
