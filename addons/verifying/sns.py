"""Messages of Amazon SNS: signed in their body, with a certificate of AWS.

The signature proves that some topic of somebody's sent this; that it is one of ours, `topics:` says. The certificate is
taken from the host of SNS in that topic's own region and from no other place, whatever the message says. Attributes of a
message and the links to unsubscribe are outside of the signature.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from addons.signing.hmac_lines import whole
from addons.signing.outgoing import Outgoing
from addons.verifying.claim import MAX_SIGNATURE_BYTES, invalid, judge_signed, judge_time, read_time
from policies.verify import MAX_SKEW_S, SnsVerifier

MAX_BODY_BYTES: Final = 1024 * 1024
"""SNS takes messages of 256 KiB; JSON may write each character of one in six."""
_NOTIFICATION: Final = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")
_CONFIRMATION: Final = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
_SIGNED: Final[Mapping[str, tuple[str, ...]]] = {
    "Notification": _NOTIFICATION,
    "SubscriptionConfirmation": _CONFIRMATION,
    "UnsubscribeConfirmation": _CONFIRMATION,
}
"""The lines of the signed text, in their order, by the type of the message."""
_PATH: Final = re.compile(r"/SimpleNotificationService-[A-Za-z0-9]{1,128}\.pem")


@dataclass(frozen=True, slots=True)
class CertificateClaim:
    """A signature that was made with the key of a certificate that is still to be fetched."""

    host: str
    path: str
    holds: Callable[[rsa.RSAPublicKey], bool]


def claim_sns(verifier: SnsVerifier, request: Outgoing, now_s: float) -> CertificateClaim:
    """Reads a message.

    Args:
        verifier: of the route.
        request: as it came, body included.
        now_s: wall-clock seconds.

    Raises:
        Refusal: `signature_invalid`.
    """
    message = _message(whole(request))
    lines = _SIGNED.get(_text(message, "Type"))
    if lines is None:
        raise invalid("The message is of no type that SNS signs.")
    topic = _text(message, "TopicArn")
    if topic not in verifier.topics:
        raise invalid("The message is of a topic that this route does not take.")
    said = {"topic-arn": topic, "message-type": _text(message, "Type"), "message-id": _text(message, "MessageId")}
    _judge_fields(request, {f"x-amz-sns-{name}": value for name, value in said.items()})
    at_s = read_time("rfc3339", _text(message, "Timestamp"))
    judge_time(at_s, now_s, past_s=verifier.max_skew_s, future_s=MAX_SKEW_S)
    version = _text(message, "SignatureVersion")
    if version not in {"1", "2"}:
        raise invalid("The message has a SignatureVersion that is not known.")
    try:
        signature = base64.b64decode(_text(message, "Signature"), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("The Signature of the message is no base64.") from None
    host, path = certificate_place(topic, _text(message, "SigningCertURL"))
    text = "".join([f"{name}\n{_text(message, name)}\n" for name in lines if name != "Subject" or "Subject" in message])

    def holds(key: rsa.RSAPublicKey) -> bool:
        return made_by(key, signature, text.encode(), version)

    return CertificateClaim(host, path, holds)


def made_by(key: rsa.RSAPublicKey, signature: bytes, text: bytes, version: str) -> bool:
    """Whether a signature of this SignatureVersion, RSASSA-PKCS1-v1_5, was made with the key of a certificate."""
    digest = hashes.SHA256() if version == "2" else hashes.SHA1()  # noqa: S303 - what SNS signs with unless the topic says otherwise
    try:
        key.verify(signature, text, padding.PKCS1v15(), digest)
    except InvalidSignature:
        return False
    return True


def certificate_place(topic: str, url: str) -> tuple[str, str]:
    """Host and path of the signing certificate, which lies with SNS in the region of the topic.

    Raises:
        Refusal: `signature_invalid`.
    """
    _, partition, _, region, *_ = topic.split(":")
    host = f"sns.{region}.amazonaws.com{'.cn' if partition == 'aws-cn' else ''}"
    path = url.removeprefix(f"https://{host}")
    if path == url or not _PATH.fullmatch(path):
        raise invalid("The SigningCertURL of the message is not one of SNS in the region of its topic.")
    return host, path


def _judge_fields(request: Outgoing, wanted: Mapping[str, str]) -> None:
    """Fields beside the body are not signed, and receivers go by them: where they stand they say the same."""
    judge_signed(request.caller, wanted)
    for name, value in wanted.items():
        if any(given != value.encode() for given in request.caller.values(name.encode())):
            raise invalid(f"The {name} field says something else than the message.")


def _message(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_BODY_BYTES:
        raise invalid("The body is larger than any message of SNS.")
    try:
        found = json.loads(body.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise invalid("The body is no message of SNS: no JSON, or a name stands twice in it.") from None
    if not isinstance(found, dict):
        raise invalid("The body is no message of SNS.")
    if len({name.casefold() for name in found}) != len(found):
        # Readers that do not look at case (encoding/json of Go) would take what is not signed for what is.
        raise invalid("The message has two names that differ in their case alone.")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Readers differ about which one counts.
        raise ValueError
    return found


def _text(message: Mapping[str, Any], name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str) or (name.startswith("Sign") and len(value) > MAX_SIGNATURE_BYTES):
        raise invalid(f"The message has no {name}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(f"The {name} of the message is no text.") from None
    if name != "Message" and ("\n" in value or "\r" in value):
        # Fields are parted by line ends in what is signed: with one inside, the same signature fits other fields.
        raise invalid(f"The {name} of the message holds a line end.")
    return value
