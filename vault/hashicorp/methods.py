"""The auth methods: each turns what it was given into a token, once per login, and says why it cannot.

Rules:
- What opens Vault is read from its file at each login, and is in no message: Vault's reasons are told without it.
- Only a token that Vault made for us is ours to renew and to revoke.
- A refusal of Vault (400, 401, 403, 404) is `SecretDenied`: the same login will fail again. All else is an outage.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from vault.hashicorp.answers import VaultAnswer, VaultResting, VaultUnreachable
from vault.hashicorp.aws import BODY, AwsProfile, identity_request, read_profile
from vault.hashicorp.client import VaultCalls
from vault.hashicorp.config import (
    AppRoleAuth,
    AwsAuth,
    CertAuth,
    JwtAuth,
    KubernetesAuth,
    TokenAuth,
    TokenFileAuth,
    VaultAuth,
)
from vault.hashicorp.files import LineFile
from vault.hashicorp.wrapped import WrappedSecretId
from vault.secret import Secret
from vault.store import SecretDenied, SecretUnavailable

_log = logging.getLogger("ostiary.vault")

REFUSED: Final = frozenset({400, 401, 403, 404})
_PASSED_ON: Final = "error making upstream request"
"""How Vault says that STS did not vouch for a login."""
_STS_REFUSED: Final = "received error code 4"
BATCH_PREFIXES: Final = ("hvb.", "b.")


@dataclass(frozen=True, slots=True)
class Issued:
    """A token, and what may be done with it."""

    token: Secret
    ttl_s: float
    """Infinity for one that does not end, or of which nobody tells when."""
    renewable: bool
    own: bool
    """Made by a login of ours: to be revoked at the end."""


class Method(Protocol):
    """One way to log in."""

    async def log_in(self) -> Issued:
        """Raises `SecretUnavailable` or `SecretDenied`, with Vault's reason."""

    async def examine(self) -> str:
        """Looks at what a login would use up, and says what it is; empty where a login uses up nothing."""

    def changed(self) -> bool:
        """Whether a file holds something newer than the last login used. Looks at the disk."""

    @property
    def watches(self) -> bool:
        """Whether `changed` is worth asking for."""

    @property
    def scarce(self) -> bool:
        """Whether each login uses up something that does not come again."""


def method_of(calls: VaultCalls, auth: VaultAuth) -> Method:
    """The way to log in that the settings name."""
    match auth:
        case TokenFileAuth(file=file):
            return _TokenFile(calls, LineFile(file, "token file"))
        case TokenAuth(token=token):
            return _StaticToken(calls, token)
        case AppRoleAuth():
            return _AppRole(calls, auth)
        case KubernetesAuth(role=role, jwt_file=file, mount=mount):
            return _Jwt(calls, "Kubernetes", mount, role, LineFile(file, "jwt_file"))
        case JwtAuth(role=role, jwt_file=file, mount=mount):
            return _Jwt(calls, "JWT", mount, role, LineFile(file, "jwt_file"))
        case CertAuth(role=role, mount=mount):
            return _Certificate(calls, mount, role)
        case AwsAuth():
            return _Aws(calls, auth)


def outage(error: VaultAnswer | VaultUnreachable) -> SecretUnavailable:
    """A login that Vault did not answer, or answered with anything but a refusal."""
    if isinstance(error, VaultAnswer):
        return SecretUnavailable(
            "", f"Vault did not take the login: {error.reason}", retry_after_s=error.retry_after_s or 1.0
        )
    wait_s = error.wait_s if isinstance(error, VaultResting) else 0.0
    return SecretUnavailable("", f"Vault cannot be reached: {error}", retry_after_s=max(wait_s, 1.0))


class _Own:
    """What logins that make a token have in common."""

    watches = False
    scarce = False

    def __init__(self, calls: VaultCalls, kind: str, mount: str, role: str | None) -> None:
        self._calls = calls
        self._mount = mount
        self._what = f"the {kind} login at auth/{mount}" + (f" as role {role}" if role else "")
        self._role = role

    async def examine(self) -> str:
        return ""

    def changed(self) -> bool:
        return False

    async def _post(self, body: Mapping[str, Secret | str | None], *hidden: Secret | None) -> Issued:
        """Logs in at `auth/<mount>/login`. Secrets of `body`, and what is `hidden`, are taken out of Vault's reasons."""
        sent = [*(value for value in body.values() if isinstance(value, Secret)), *hidden]

        def login(client: Any) -> Any:
            shown = {
                key: value.reveal() if isinstance(value, Secret) else value
                for key, value in body.items()
                if value is not None
            }
            return client.adapter.post(f"/v1/auth/{self._mount}/login", json=shown)

        try:
            answer = await self._calls.run(login, None)
        except VaultAnswer as error:
            if error.status in REFUSED and not error.passing:
                raise SecretDenied("", f"Vault refused {self._what}: {error.reason_without(*sent)}") from None
            told = VaultAnswer(error.status, (error.reason_without(*sent),), error.retry_after_s)
            raise outage(told) from None
        except VaultUnreachable as error:
            raise outage(error) from None
        return self._issued(answer["auth"])

    def _issued(self, auth: Mapping[str, Any]) -> Issued:
        token = auth["client_token"]
        if not isinstance(token, str):
            raise TypeError("a token is text")
        if not token and auth.get("mfa_requirement"):
            raise SecretDenied("", f"Vault asks for a second factor at {self._what}, which nobody is there to give")
        if not token:
            raise ValueError("a login without a token")
        uses = auth.get("num_uses")
        if isinstance(uses, int) and uses > 0:
            _log.warning(
                "the role gives tokens that serve %d calls, so a new login is made every few reads: set token_num_uses=0",
                uses,
            )
        ttl_s = float(auth.get("lease_duration") or 0) or math.inf
        return Issued(Secret(token), ttl_s, bool(auth.get("renewable")), own=True)


class _AppRole(_Own):
    def __init__(self, calls: VaultCalls, auth: AppRoleAuth) -> None:
        super().__init__(calls, "AppRole", auth.mount, None)
        self._role_id = LineFile(auth.role_id, "role_id file") if isinstance(auth.role_id, Path) else auth.role_id
        self._file = LineFile(auth.secret_id_file, "secret_id_file") if auth.secret_id_file is not None else None
        self._wrapped = (
            WrappedSecretId(calls, LineFile(auth.wrapped_file, "wrapped_file"), auth.mount)
            if auth.wrapped_file is not None
            else None
        )
        self.watches = self._wrapped is not None

    @property
    def scarce(self) -> bool:  # type: ignore[override]  # a plain False in the others
        return self._wrapped is not None and self._wrapped.scarce

    async def examine(self) -> str:
        if self._wrapped is None:
            return ""
        path = await self._wrapped.examine()
        return f"a secret id made at {path} waits to be unwrapped, once, by ostiary run"

    def changed(self) -> bool:
        return self._wrapped is not None and self._wrapped.file.changed()

    async def log_in(self) -> Issued:
        role_id = self._role_id
        if isinstance(role_id, LineFile):
            role_id = await asyncio.to_thread(role_id.read)
        secret_id: Secret | None = None
        if self._wrapped is not None:
            secret_id = await self._wrapped.secret_id()
        elif self._file is not None:
            secret_id = await asyncio.to_thread(self._file.read)
        issued = await self._post({"role_id": role_id, "secret_id": secret_id})
        if self._wrapped is not None:
            # A login that failed may not have reached Vault; if it did, Vault will say what is left.
            self._wrapped.used()
        return issued


class _Jwt(_Own):
    """Kubernetes and JWT: the same call, with a token that somebody else renews."""

    def __init__(self, calls: VaultCalls, kind: str, mount: str, role: str | None, file: LineFile) -> None:
        super().__init__(calls, kind, mount, role)
        self._file = file

    async def log_in(self) -> Issued:
        jwt = await asyncio.to_thread(self._file.read)
        return await self._post({"role": self._role, "jwt": jwt})


class _Certificate(_Own):
    """The certificate is the connection's; Vault looks at it there."""

    def __init__(self, calls: VaultCalls, mount: str, role: str | None) -> None:
        super().__init__(calls, "certificate", mount, role)

    async def log_in(self) -> Issued:
        return await self._post({"name": self._role})


class _Aws(_Own):
    """AWS IAM: Vault sends on what is signed here, and STS says who has signed it."""

    def __init__(self, calls: VaultCalls, auth: AwsAuth) -> None:
        super().__init__(calls, "AWS", auth.mount, auth.role)
        self._auth = auth

    async def log_in(self) -> Issued:
        auth = self._auth
        keys = await asyncio.to_thread(read_profile, auth.keys) if isinstance(auth.keys, AwsProfile) else auth.keys
        request = identity_request(keys, auth.region, auth.header_value, dt.datetime.now(dt.UTC))
        body: dict[str, Secret | str | None] = {
            "role": auth.role,
            "iam_http_request_method": "POST",
            "iam_request_url": _base64(request.url),
            "iam_request_body": _base64(BODY),
            "iam_request_headers": Secret(_base64(json.dumps(dict(request.headers)))),
        }
        # STS tells what it should have been signed over, and Vault passes that on.
        hidden = Secret(request.headers["Authorization"]), keys.session_token, keys.secret_access_key
        try:
            return await self._post(body, *hidden)
        except SecretDenied as error:
            if _PASSED_ON in error.reason and _STS_REFUSED not in error.reason:
                # Vault calls it a bad request, but what failed is the way to STS, or STS.
                raise SecretUnavailable("", error.reason) from None
            raise


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


class _Given:
    """Tokens that somebody else made: looked up, never renewed, never revoked."""

    scarce = False

    def __init__(self, calls: VaultCalls) -> None:
        self._calls = calls

    async def examine(self) -> str:
        return ""

    async def _look_up(self, token: Secret) -> Issued:
        """A token that may not look itself up is used as it is."""
        try:
            answer = await self._calls.run(lambda client: client.auth.token.lookup_self(), token)
        except VaultAnswer as error:
            if error.status == 403 and is_dead(error):
                raise SecretDenied("", f"Vault does not accept the token: {error.reason_without(token)}") from None
            if error.status not in REFUSED:
                raise outage(VaultAnswer(error.status, (error.reason_without(token),), error.retry_after_s)) from None
            _log.warning(
                "Vault does not let the token look itself up (%s), so it is used without knowing when it ends: allow read "
                "on auth/token/lookup-self",
                error.reason_without(token),
            )
            return Issued(token, math.inf, renewable=False, own=False)
        except VaultUnreachable as error:
            raise outage(error) from None
        told = answer["data"]
        ttl_s = float(told.get("ttl") or 0)
        # In its last second a token that ends has a ttl of 0, as one that does not end has.
        return Issued(token, ttl_s if ttl_s or told.get("expire_time") else math.inf, renewable=False, own=False)


class _TokenFile(_Given):
    watches = True

    def __init__(self, calls: VaultCalls, file: LineFile) -> None:
        super().__init__(calls)
        self._file = file
        self._told = False

    def changed(self) -> bool:
        return self._file.changed()

    async def log_in(self) -> Issued:
        token = await asyncio.to_thread(self._file.read)
        if not self._told:
            _log.info("using the Vault token in %s", self._file.path)
            self._told = True
        return await self._look_up(token)


class _StaticToken(_Given):
    watches = False

    def __init__(self, calls: VaultCalls, token: Secret) -> None:
        super().__init__(calls)
        self._token = token
        self._told = False

    def changed(self) -> bool:
        return False

    async def log_in(self) -> Issued:
        if not self._told:
            _log.warning("using a static Vault token: for development only; use AppRole or a token file in production")
            self._told = True
        return await self._look_up(self._token)


def is_dead(answer: VaultAnswer) -> bool:
    """Whether a 403 says that Vault does not know the token, and not that the token's policy allows too little.

    Vault has no status for the difference. A policy's denial is a list of reasons; a token that is not known gets the
    bare words, or a list that says `invalid token`. A wrong guess costs nothing: a dead token reads no secret either.
    """
    text = "\n".join(answer.reasons)
    return "invalid token" in text or "occurred" not in text


def is_batch(token: Secret) -> bool:
    """Batch tokens can be neither renewed nor revoked."""
    return token.reveal().startswith(BATCH_PREFIXES)
