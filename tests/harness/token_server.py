"""A token endpoint that believes nothing: it refuses what a real one refuses, and more.

It verifies with `cryptography` alone, not with anything of ours: signatures, `aud`, lives, ids of assertions that are used
twice, the encoding of Basic, the fields of the form. A script for `tests/harness/upstream.py`.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from addons.clock import SystemClock
from tests.harness.canaries import canary
from tests.harness.upstream import Seen, Wire

ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class No(Exception):
    """The endpoint refuses."""

    def __init__(self, word: str, why: str, status: int = 400) -> None:
        super().__init__(f"{word}: {why}")
        self.word, self.why, self.status = word, why, status


def new_key(kind: str = "rsa") -> tuple[Any, str]:
    """A private key, and its PEM."""
    key: Any = {
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }[kind]()
    return key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def unpacked(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    """Header, claims, what is signed, signature. Strict: no padding, no other alphabet."""
    parts = token.split(".")
    if len(parts) != 3 or any(
        set(part) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") for part in parts
    ):
        raise No("invalid_grant", "no compact JWS")
    head, claims, signature = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts)
    return json.loads(head), json.loads(claims), ".".join(parts[:2]).encode(), signature


def verified(token: str, public: Any, algorithm: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a JWT that this key signed by this algorithm."""
    head, claims, text, signature = unpacked(token)
    if head.get("alg") != algorithm:
        raise No("invalid_grant", f"alg {head.get('alg')}")
    try:
        match algorithm:
            case "RS256":
                public.verify(signature, text, padding.PKCS1v15(), hashes.SHA256())
            case "PS256":
                public.verify(signature, text, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
            case "ES256":
                if len(signature) != 64:
                    raise No("invalid_grant", "not raw")
                der = encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
                public.verify(der, text, ec.ECDSA(hashes.SHA256()))
            case "EdDSA":
                public.verify(signature, text)
    except InvalidSignature:
        raise No("invalid_grant", "signature") from None
    return head, claims


@dataclass
class TokenServer:
    """One endpoint. What it hands out it remembers in `given`, and knows the API by (`good`)."""

    secrets: dict[str, str] = field(default_factory=dict)
    """Client secrets, by client id."""
    keys: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Public key and algorithm, by issuer or client id."""
    certificates: dict[str, str] = field(default_factory=dict)
    """Common names of client certificates, by client id (RFC 8705 section 2.1)."""
    audience: str = "https://login.test/token"
    life_s: int | None = 3600
    refresh: str | None = None
    """The refresh token that is good."""
    rotates: bool = True
    down: bool = False
    broken: bytes | None = None
    """Answered in the place of a token."""
    before: Callable[[], object] = lambda: None
    """Called before a token is handed out."""
    given: list[str] = field(default_factory=list)
    forms: list[dict[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    seen_ids: set[str] = field(default_factory=set)
    bound: dict[str, str] = field(default_factory=dict)
    """The certificate that each token is good with, where it is good with one alone (RFC 8705 section 3)."""
    dead: set[str] = field(default_factory=set)
    """Tokens that the API rejects by now."""

    def __call__(self, seen: Seen, wire: Wire) -> None:
        if self.down:
            wire.answer(503, b"down", (("Retry-After", "1"),))
            return
        if self.broken is not None:
            wire.answer(200, self.broken, (("Content-Type", "application/json"),))
            return
        try:
            answer = self.answer(seen)
        except No as no:
            self.refused.append(str(no))
            body = json.dumps({"error": no.word, "error_description": f"not {seen.body.decode(errors='replace')}"})
            wire.answer(no.status, body.encode(), (("Content-Type", "application/json"),))
            return
        status, body = (201 if "installations" in seen.target else 200), answer
        wire.answer(
            status,
            body if isinstance(body, bytes) else json.dumps(body).encode(),
            (("Content-Type", "application/json"),),
        )

    def token(self) -> str:
        self.before()
        self.given.append(canary("token"))
        return self.given[-1]

    def good(self, token: str | None) -> bool:
        return token in self.given and token not in self.dead

    def api(self, seen: Seen, wire: Wire) -> None:
        """The upstream: it takes the tokens handed out, and shows them."""
        sent = (seen.get("Authorization") or seen.get("X-Api-Key") or "").removeprefix("Bearer ")
        if self.good(sent) and seen.client == self.bound.get(sent, seen.client):
            wire.answer(200, f"hello {sent} {base64.b64encode(sent.encode()).decode()}".encode(), (("X-Shown", sent),))
        else:
            wire.answer(401, b"no")

    # --- what is asked ---

    def answer(self, seen: Seen) -> Any:
        if seen.method != "POST":
            raise No("invalid_request", "method", 405)
        if "/app/installations/" in seen.target:
            return self.github(seen)
        if seen.get("Content-Type") != "application/x-www-form-urlencoded":
            raise No("invalid_request", "content type")
        pairs = parse_qsl(seen.body.decode("ascii"), keep_blank_values=True, strict_parsing=True)
        form = dict(pairs)
        if len(form) != len(pairs):
            raise No("invalid_request", "a field stands twice")
        self.forms.append(form)
        match form.pop("grant_type", None):
            case "client_credentials":
                self.client(seen, form)
                answer = self.bearer()
                if seen.client is not None:
                    self.bound[answer["access_token"]] = seen.client
                return answer
            case "refresh_token":
                self.client(seen, form)
                if form.get("refresh_token") != self.refresh:
                    raise No("invalid_grant", "refresh token")
                if not self.rotates:
                    return self.bearer()
                self.refresh = canary("refresh")
                return {**self.bearer(), "refresh_token": self.refresh}
            case "urn:ietf:params:oauth:grant-type:jwt-bearer":
                claims = self.assertion(form["assertion"], "iss")
                if "target_audience" in claims:
                    if "scope" in claims:
                        raise No("invalid_scope", "both")
                    self.before()
                    ends = int(SystemClock.wall_s()) + 3600
                    packed = [
                        base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=").decode()
                        for one in ({"alg": "none"}, {"aud": claims["target_audience"], "exp": ends})
                    ]
                    self.given.append(".".join([*packed, canary("id")]))
                    return {"id_token": self.given[-1]}
                return self.bearer()
            case "urn:ietf:params:oauth:grant-type:token-exchange":
                self.client(seen, form)
                if form.get("subject_token") not in self.secrets.values() or "subject_token_type" not in form:
                    raise No("invalid_request", "subject")
                if ("actor_token" in form) != ("actor_token_type" in form):
                    raise No("invalid_request", "actor")
                return {**self.bearer(), "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}
            case _:
                raise No("unsupported_grant_type", "grant")

    def bearer(self) -> dict[str, Any]:
        life = {} if self.life_s is None else {"expires_in": self.life_s}
        return {"access_token": self.token(), "token_type": "bearer", **life}

    def client(self, seen: Seen, form: dict[str, str]) -> None:
        """Who asks: by Basic, by the form, by an assertion, or by a certificate, and only by one of them (RFC 6749 section
        2.3).
        """
        basic, posted, asserted = seen.get("Authorization"), "client_secret" in form, "client_assertion" in form
        if not (basic is not None or posted or asserted) and form.get("client_id") in self.certificates:
            if self.certificates[form["client_id"]] != seen.client:
                raise No("invalid_client", f"certificate of {seen.client}", 401)
            return
        if (basic is not None) + posted + asserted != 1:
            raise No("invalid_client", "not one way of proof", 401)
        if asserted:
            if form.get("client_assertion_type") != ASSERTION:
                raise No("invalid_client", "assertion type", 401)
            claims = self.assertion(form["client_assertion"], "sub")
            if claims["iss"] != claims["sub"] or form.get("client_id", claims["sub"]) != claims["sub"]:
                raise No("invalid_client", "iss is not sub", 401)
            return
        if basic is not None:
            pair = base64.b64decode(basic.removeprefix("Basic "), validate=True).decode("ascii")
            if pair.count(":") != 1:
                raise No("invalid_client", "Basic was not encoded as a form", 401)
            name, secret = map(unquote_plus, pair.split(":"))
        else:
            name, secret = form["client_id"], form["client_secret"]
        if self.secrets.get(name) != secret:
            raise No("invalid_client", "secret", 401)

    def assertion(self, token: str, by: str) -> dict[str, Any]:
        _, claims, _, _ = unpacked(token)
        known = self.keys.get(str(claims.get(by)))
        if known is None:
            raise No("invalid_client", f"unknown {by}", 401)
        _, claims = verified(token, *known)
        now_s = SystemClock.wall_s()
        if claims.get("aud") != self.audience:
            raise No("invalid_grant", f"aud {claims.get('aud')}")
        if not now_s - 60 <= claims["iat"] <= now_s + 5 or not now_s < claims["exp"] <= now_s + 600:
            raise No("invalid_grant", "life")
        if claims["jti"] in self.seen_ids:
            raise No("invalid_grant", "used twice")
        self.seen_ids.add(claims["jti"])
        return claims

    def github(self, seen: Seen) -> dict[str, Any]:
        """https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app."""
        public, app = next((public, app) for app, (public, _) in self.keys.items())
        if (
            seen.target != "/app/installations/4711/access_tokens"
            or seen.get("Accept") != "application/vnd.github+json"
        ):
            raise No("invalid_request", "target", 404)
        _, claims = verified((seen.get("Authorization") or "").removeprefix("Bearer "), public, "RS256")
        now_s = SystemClock.wall_s()
        if set(claims) != {"iat", "exp", "iss"} or claims["iss"] != app or claims["exp"] - claims["iat"] > 600:
            raise No("invalid_request", "claims", 401)
        if claims["iat"] > now_s or claims["exp"] < now_s:
            raise No("invalid_request", "clock", 401)
        self.forms.append(json.loads(seen.body))
        ends = dt.datetime.fromtimestamp(int(now_s) + (self.life_s or 3600), dt.UTC)
        return {"token": self.token(), "expires_at": ends.isoformat().replace("+00:00", "Z"), "permissions": {}}
