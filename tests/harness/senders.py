"""Signers of requests and webhooks, written from the vendors' pages, with nothing of ours in them."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID


def mac(key: bytes, text: bytes, digest: str = "sha256") -> bytes:
    return hmac.new(key, text, digest).digest()


def now_s() -> int:
    return int(dt.datetime.now(dt.UTC).timestamp())


def profile(
    key: str,
    method: str,
    target: str,
    body: bytes = b"",
    *,
    at_s: int | None = None,
    nonce: str | None = None,
    host: str = "api.test",
    lines: tuple[str, ...] = (),
) -> list[str]:
    """The HMAC profile with `host: true`; `lines` are those of signed headers."""
    at, once = str(now_s() if at_s is None else at_s), secrets.token_hex(12) if nonce is None else nonce
    text = [method, target, f"host:{host}", *lines, f"x-timestamp:{at}", f"x-nonce:{once}"]
    signed = "\n".join([*text, hashlib.sha256(body).hexdigest()])
    return [
        f"X-Signature: sha256={mac(key.encode(), signed.encode()).hex()}",
        f"X-Timestamp: {at}",
        f"X-Nonce: {once}",
    ]


@dataclass
class Message:
    """One RFC 9421 signature, each part of which can be told otherwise."""

    private: Ed25519PrivateKey
    key_id: str = "k1"
    uri: str = "https://api.test"
    label: str = "sig1"
    alg: str | None = "ed25519"
    created: int = field(default_factory=now_s)
    expires: int | None = None
    nonce: str | None = field(default_factory=lambda: secrets.token_hex(8))
    covers: tuple[str, ...] = ("@method", "@target-uri", "content-digest")

    def headers(self, method: str, target: str, body: bytes = b"") -> list[str]:
        digest = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
        values = {
            "@method": method,
            "@target-uri": f"{self.uri}{target}",
            "@path": target.partition("?")[0],
            "content-digest": digest,
        }
        inner = " ".join(f'"{name}"' for name in self.covers)
        parameters = f"({inner});created={self.created}"
        if self.expires is not None:
            parameters += f";expires={self.expires}"
        if self.nonce is not None:
            parameters += f';nonce="{self.nonce}"'
        if self.alg is not None:
            parameters += f';alg="{self.alg}"'
        parameters += f';keyid="{self.key_id}"'
        base = "".join(f'"{name}": {values[name]}\n' for name in self.covers)
        signature = self.private.sign(f'{base}"@signature-params": {parameters}'.encode())
        return [
            f"Content-Digest: {digest}",
            f"Signature-Input: {self.label}={parameters}",
            f"Signature: {self.label}=:{base64.b64encode(signature).decode()}:",
        ]


def stripe(keys: list[str], body: bytes, at_s: int | None = None) -> list[str]:
    at = str(now_s() if at_s is None else at_s)
    made = [f"v1={mac(key.encode(), at.encode() + b'.' + body).hex()}" for key in keys]
    return [f"Stripe-Signature: {','.join([f't={at}', *made])}"]


def github(key: str, body: bytes) -> list[str]:
    return [
        f"X-Hub-Signature: sha1={mac(key.encode(), body, 'sha1').hex()}",
        f"X-Hub-Signature-256: sha256={mac(key.encode(), body).hex()}",
        "X-GitHub-Delivery: 72d3162e-cc78-11e3-81ab-4c9367dc0958",
    ]


def slack(key: str, body: bytes, at_s: int | None = None) -> list[str]:
    at = str(now_s() if at_s is None else at_s)
    return [
        f"X-Slack-Request-Timestamp: {at}",
        f"X-Slack-Signature: v0={mac(key.encode(), b'v0:' + at.encode() + b':' + body).hex()}",
    ]


def twilio(key: str, url: str, form: str = "") -> list[str]:
    text = url + "".join(name + value for name, value in sorted(parse_qsl(form, keep_blank_values=True)))
    signature = base64.b64encode(mac(key.encode(), text.encode(), "sha1")).decode()
    return [f"X-Twilio-Signature: {signature}", "Content-Type: application/x-www-form-urlencoded"]


def standard(key: bytes | Ed25519PrivateKey, identity: str, body: bytes, at_s: int | None = None) -> list[str]:
    at = str(now_s() if at_s is None else at_s)
    text = f"{identity}.{at}.".encode() + body
    made = ("v1", mac(key, text)) if isinstance(key, bytes) else ("v1a", key.sign(text))
    signature = f"{made[0]},{base64.b64encode(made[1]).decode()}"
    return [f"webhook-id: {identity}", f"webhook-timestamp: {at}", f"webhook-signature: {signature}"]


class Sns:
    """A topic with a certificate of its own."""

    topic = "arn:aws:sns:eu-west-1:123456789012:orders"
    message_id = "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324"
    host = "sns.eu-west-1.amazonaws.com"
    path = "/SimpleNotificationService-0123456789abcdef.pem"

    def __init__(self, *, days: int = 1) -> None:
        self.private = rsa.generate_private_key(65537, 2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
        now = dt.datetime.now(dt.UTC)
        self.pem = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=2))
            .not_valid_after(now + dt.timedelta(days=days))
            .sign(self.private, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )

    def message(self, text: str, version: str = "2", url: str | None = None, **changed: str) -> bytes:
        at = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        fields = {
            "Type": "Notification",
            "MessageId": self.message_id,
            "TopicArn": self.topic,
            "Message": text,
            "Timestamp": at,
        } | changed
        names = ("Message", "MessageId", "Subject", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
        signed = "".join(f"{name}\n{fields[name]}\n" for name in names if name in fields)
        digest: hashes.HashAlgorithm = hashes.SHA256() if version == "2" else hashes.SHA1()  # noqa: S303 - version 1
        signature = self.private.sign(signed.encode(), padding.PKCS1v15(), digest)
        fields |= {
            "SignatureVersion": version,
            "Signature": base64.b64encode(signature).decode(),
            "SigningCertURL": url or f"https://{self.host}{self.path}",
        }
        return json.dumps(fields).encode()


def public_pem(private: Ed25519PrivateKey) -> str:
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def whpk(private: Ed25519PrivateKey) -> str:
    raw = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"whpk_{base64.b64encode(raw).decode()}"
