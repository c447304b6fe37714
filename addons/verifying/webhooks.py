"""Webhooks that are signed with a key both sides have: Stripe, GitHub, Slack, Twilio, Standard Webhooks.

Each is judged as its vendor's page says (docs/reference/verifying.md has them, with dates), over the bytes that came. A
sender that gets no 2xx sends again, with the same id and a new time and signature: ids are for the receiver to tell
doubles by, and the time alone limits how long what was recorded on the way is good for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl, unquote_to_bytes

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from addons.credentials import Credential
from addons.injection.content import FORM, kind_of
from addons.signing.hmac_lines import whole
from addons.signing.keys import hmac_key, malformed, the_secret
from addons.signing.outgoing import Outgoing
from addons.verifying.claim import (
    MAX_CANDIDATES,
    Claim,
    any_matches,
    invalid,
    judge_signed,
    judge_time,
    only,
    present,
    read_time,
    visible,
)
from policies.template import Template
from policies.verify import Scheme, WebhookVerifier, references_of_verifier

_SHA256_HEX: Final = 64
MAX_FORM_FIELDS: Final = 1000
_SIGNED: Final[dict[Scheme, tuple[str, ...]]] = {
    "slack": ("X-Slack-Request-Timestamp",),
    "standard_webhooks": ("webhook-id", "webhook-timestamp"),
}
"""Fields that are signed and go on."""
_SECRET_PREFIX: Final = b"whsec_"
_PUBLIC_PREFIX: Final = b"whpk_"


def claim_webhook(verifier: WebhookVerifier, request: Outgoing, now_s: float) -> Claim:
    """Reads what the vendor's own fields say.

    Args:
        verifier: of the route.
        request: as it came, body included.
        now_s: wall-clock seconds.

    Raises:
        Refusal: `signature_invalid`.
    """
    judge_signed(request.caller, _SIGNED.get(verifier.scheme, ()))
    match verifier.scheme:
        case "stripe":
            holds = _stripe(verifier, request, now_s)
        case "github":
            holds = _github(verifier, request)
        case "slack":
            holds = _slack(verifier, request, now_s)
        case "twilio":
            holds = _twilio(verifier, request)
        case "standard_webhooks":
            holds = _standard(verifier, request, now_s)
    return Claim(references_of_verifier(verifier), verifier.keys[0].references, holds)


type _Holds = Callable[[Credential], bool]


def _shared(verifier: WebhookVerifier, candidates: list[bytes], *texts: bytes, digest: str = "sha256") -> _Holds:
    """Whether one of the candidates is the HMAC of one of the texts, with one of the keys."""

    def holds(credential: Credential) -> bool:
        found = False
        for text in texts:

            def made(key: Template, text: bytes = text) -> bytes:
                return hmac.digest(hmac_key(key, "utf8", credential), text, digest)

            found |= any_matches(candidates, present(verifier.keys, made))
        return found

    return holds


def _hex(text: str) -> bytes | None:
    if len(text) != _SHA256_HEX:
        return None
    try:
        return bytes.fromhex(text) if text.isalnum() else None
    except ValueError:
        return None


def _dated(verifier: WebhookVerifier, text: str, now_s: float) -> None:
    judge_time(read_time("seconds", text), now_s, past_s=verifier.max_skew_s, future_s=verifier.max_skew_s)


def _stripe(verifier: WebhookVerifier, request: Outgoing, now_s: float) -> _Holds:
    """`t=1492774577,v1=5257a8…,v1=…`; other schemes than v1 are test modes."""
    value = visible(only(request.caller, "Stripe-Signature"), "Stripe-Signature field")
    times: list[str] = []
    candidates: list[bytes] = []
    for part in value.split(","):
        name, _, given = part.strip(" ").partition("=")
        if name == "t":
            times.append(given)
        elif name == "v1":
            candidates.append(_hex(given) or b"")
    if len(times) != 1 or not candidates or len(candidates) > MAX_CANDIDATES or b"" in candidates:
        raise invalid("The Stripe-Signature field has not one time and its v1 signatures.")
    _dated(verifier, times[0], now_s)
    return _shared(verifier, candidates, times[0].encode() + b"." + whole(request))


def _github(verifier: WebhookVerifier, request: Outgoing) -> _Holds:
    """`sha256=…` over the body. The field with SHA-1, which GitHub sends too, counts for nothing."""
    value = visible(only(request.caller, "X-Hub-Signature-256"), "X-Hub-Signature-256 field")
    signature = _hex(value.removeprefix("sha256=")) if value.startswith("sha256=") else None
    if signature is None:
        raise invalid("The X-Hub-Signature-256 field is no sha256=….")
    return _shared(verifier, [signature], whole(request))


def _slack(verifier: WebhookVerifier, request: Outgoing, now_s: float) -> _Holds:
    """`v0=…` over `v0:<time>:<body>`."""
    time = visible(only(request.caller, "X-Slack-Request-Timestamp"), "X-Slack-Request-Timestamp field")
    value = visible(only(request.caller, "X-Slack-Signature"), "X-Slack-Signature field")
    signature = _hex(value.removeprefix("v0=")) if value.startswith("v0=") else None
    if signature is None:
        raise invalid("The X-Slack-Signature field is no v0=….")
    _dated(verifier, time, now_s)
    return _shared(verifier, [signature], b"v0:" + time.encode() + b":" + whole(request))


def _twilio(verifier: WebhookVerifier, request: Outgoing) -> _Holds:
    """Base64 of the HMAC-SHA1 over the URL, with the sorted fields of a form behind it; any other body is bound by its
    SHA-256 in the query. Twilio writes the URL with its port or without, so both are tried.
    """
    value = visible(only(request.caller, "X-Twilio-Signature"), "X-Twilio-Signature field")
    try:
        signature = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise invalid("The X-Twilio-Signature field is no base64.") from None
    body = whole(request)
    fields = b""
    if body and kind_of(request.caller.fields) == FORM:
        fields = _form_text(body)
    elif body and not hmac.compare_digest(_body_sha256(request), hashlib.sha256(body).hexdigest().encode()):
        raise invalid("The body is not the one whose SHA-256 the query has.")
    origin = verifier.origin.encode() if verifier.origin else request.scheme.encode() + b"://" + request.host
    texts = [one + request.target + fields for one in _origins(origin)]
    return _shared(verifier, [signature], *texts, digest="sha1")


def _origins(origin: bytes) -> tuple[bytes, ...]:
    """With the port that the scheme has by itself, and without."""
    usual = b":443" if origin.startswith(b"https://") else b":80"
    host = origin.partition(b"://")[2].rpartition(b"]")[2]
    if origin.endswith(usual):
        return origin, origin[: -len(usual)]
    return (origin,) if b":" in host else (origin, origin + usual)


def _form_text(body: bytes) -> bytes:
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MAX_FORM_FIELDS,
        )
    except ValueError:
        raise invalid("The form in the body cannot be read.") from None
    if any(not name for name, _ in pairs):
        raise invalid("The form in the body has a field without a name, which may add nothing to what is signed.")
    # A field that stands several times: each of its values once, in order, as Twilio's own libraries do.
    found = sorted(set(pairs))
    return "".join([name + value for name, value in found]).encode()


def _body_sha256(request: Outgoing) -> bytes:
    values = [pair.partition(b"=")[2] for pair in request.query.split(b"&") if pair.startswith(b"bodySHA256=")]
    if len(values) != 1:
        raise invalid("The body is no form, and the query has not its SHA-256 (bodySHA256).")
    return unquote_to_bytes(values[0])


def _standard(verifier: WebhookVerifier, request: Outgoing, now_s: float) -> _Holds:
    """`v1,<base64> v1a,<base64>` over `<id>.<time>.<body>`: HMAC-SHA256 and Ed25519, by the kind of the key."""
    identity = visible(only(request.caller, "webhook-id"), "webhook-id field")
    time = visible(only(request.caller, "webhook-timestamp"), "webhook-timestamp field")
    value = visible(only(request.caller, "webhook-signature"), "webhook-signature field")
    if "." in identity:
        raise invalid("The webhook-id field holds a full stop, which parts what is signed.")
    _dated(verifier, time, now_s)
    shared: list[bytes] = []
    public: list[bytes] = []
    for part in value.split(" "):
        version, _, given = part.partition(",")
        into = {"v1": shared, "v1a": public}.get(version)
        if into is None:
            continue
        try:
            into.append(base64.b64decode(given, validate=True))
        except (binascii.Error, ValueError):
            raise invalid("The webhook-signature field is no base64.") from None
    if not 0 < len(shared) + len(public) <= MAX_CANDIDATES:
        raise invalid("The webhook-signature field has no signature of v1 or v1a, or too many.")
    text = f"{identity}.{time}.".encode() + whole(request)

    def holds(credential: Credential) -> bool:
        def fits(key: Template) -> bytes:
            return b"\1" if _standard_fits(key, credential, text, shared, public) else b"\0"

        return b"\1" in present(verifier.keys, fits)

    return holds


def _standard_fits(
    key: Template, credential: Credential, text: bytes, shared: list[bytes], public: list[bytes]
) -> bool:
    secret, reference = the_secret(key, credential)
    raw = secret.reveal_bytes()
    is_public = raw.startswith(_PUBLIC_PREFIX)
    decoded = b""
    # The prefix says which of the two it is: a public key that was taken for a shared one could sign.
    if is_public or raw.startswith(_SECRET_PREFIX):
        try:
            decoded = base64.b64decode(raw.removeprefix(_PUBLIC_PREFIX if is_public else _SECRET_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            decoded = b""
    if not decoded:
        raise malformed(reference, "is no key of Standard Webhooks: whsec_ or whpk_, and base64")
    if not is_public:
        return any_matches(shared, [hmac.digest(decoded, text, "sha256")])
    try:
        made = Ed25519PublicKey.from_public_bytes(decoded)
    except ValueError:
        raise malformed(reference, "is no Ed25519 public key of Standard Webhooks") from None
    return any(_verified(made, signature, text) for signature in public)


def _verified(key: Ed25519PublicKey, signature: bytes, text: bytes) -> bool:
    try:
        key.verify(signature, text)
    except InvalidSignature:
        return False
    return True
