"""Checks of the secret store: there, open, logged in, and holding every field that a route needs. Values are never
read: the same question as `check --live` is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import email.utils
import math
import ssl
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from addons.credentials import reference_of
from addons.evidence import AHEAD_S
from ostiary.doctor.finding import Finding, Setup, counted
from ostiary.settings.model import Settings
from policies.model import SecretSpec
from vault.control import Control
from vault.hashicorp.config import AppRoleAuth, AwsAuth, CertAuth, JwtAuth, KubernetesAuth, TokenFileAuth, VaultConfig
from vault.observer import Silent
from vault.sealed import SealedFile, SealedFileError, SealedStore, read_key
from vault.store import SecretDenied, SecretMissing, StoreError

AT_ONCE = 8
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORT_TTL_S = 300.0
MAX_SKEW_S = 60.0


class _Heard(Silent):
    """Keeps the token's TTL for the report."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def token_ttl(self, ttl_s: float) -> None:
        self._setup.token_ttl_s = ttl_s


async def reachable(setup: Setup) -> list[Finding]:
    """The sealed file opens, or Vault answers and is unsealed."""
    settings, _ = setup.loaded
    if settings.store == "sealed":
        if settings.secrets_file is None or settings.secrets_key is None:
            return [Finding("store.reachable", "fail", "the settings name no secret store", "add secrets_file")]
        try:
            file = SealedFile(settings.secrets_file, read_key(settings.secrets_key, setup.environ))
            await asyncio.to_thread(file.check)
        except SealedFileError as error:
            mend = f"ostiary secret init makes key and file; a lost key of {settings.secrets_file} needs its backup"
            return [Finding("store.reachable", "fail", str(error), mend)]
        setup.store = SealedStore(file)
        return [Finding("store.reachable", "ok", f"{settings.secrets_file} opens")]
    if settings.vault is None:
        return [Finding("store.reachable", "fail", "the settings name no Vault", "add vault: {addresses: […]}")]
    if (own := _own_listener(settings)) is not None:
        mend = "correct vault.addresses, or listen.bind: the start would end with the same message"
        return [Finding("store.reachable", "fail", f"the Vault address {own} is one of our own listeners", mend)]
    from vault.hashicorp.store import VaultStore

    setup.store = VaultStore(settings.vault, _Heard(setup))
    where = ", ".join(settings.vault.addresses)
    try:
        await setup.store.probe()
    except StoreError as error:
        if "sealed" in error.reason or "503" in error.reason:
            mend = f"unseal Vault at {where}: vault operator unseal"
            return [Finding("store.reachable", "fail", f"Vault is sealed: {error.reason}", mend)]
        if "TLS" in error.reason:
            mend = f"set vault.ca_file to the CA of {where}, and the address to a name in its certificate"
            if any(urlsplit(address).hostname in LOOPBACK for address in settings.vault.addresses):
                mend += "; a development server has no TLS: write http://"
            return [Finding("store.reachable", "fail", error.reason, mend)]
        return [Finding("store.reachable", "fail", error.reason, f"is Vault running at {where}, and let through?")]
    ill = await _ill(settings.vault)
    return ill or [Finding("store.reachable", "ok", f"Vault at {where} is up and unsealed")]


async def _ill(config: VaultConfig) -> list[Finding]:
    """Of several addresses, those that would not do when another fails."""
    from vault.hashicorp.store import VaultStore

    async def ask(address: str) -> Finding | None:
        store = VaultStore(replace(config, addresses=(address,)))
        try:
            await store.probe()
        except StoreError as error:
            mend = f"another address serves meanwhile: start or unseal {address}, or take it out of vault.addresses"
            return Finding("store.reachable", "warn", f"{address}: {error.reason}", mend)
        finally:
            await store.close()
        return None

    found = await asyncio.gather(*map(ask, config.addresses)) if len(config.addresses) > 1 else []
    return [one for one in found if one is not None]


def _login_anew(config: VaultConfig | None) -> str:
    """How what Ostiary logs in with is made anew."""
    match config.auth if config is not None else None:
        case AppRoleAuth(mount=mount, wrapped_file=Path() as file):
            path = f"auth/{mount}/role/ROLE"
            return f"vault write -wrap-ttl=5m -f -field=wrapping_token {path}/secret-id > {file}; vault read {path}/role-id shows the role id"
        case AppRoleAuth(mount=mount, secret_id_file=file):
            path = f"auth/{mount}/role/ROLE"
            return f"vault write -f -field=secret_id {path}/secret-id > {file}; vault read {path}/role-id shows the role id"
        case TokenFileAuth(file=file):
            return f"is the token in {file} still good? the Vault Agent writes a new one, or vault token create -field=token"
        case KubernetesAuth(role=role, mount=mount, jwt_file=file):
            return (
                f"vault read auth/{mount}/role/{role} shows which service accounts may, vault read auth/{mount}/config where "
                f"Vault asks about them; {file} holds the token of this pod's. ostiary vault setup --dry-run prints both"
            )
        case JwtAuth(role=role, mount=mount, jwt_file=file):
            return (
                f"vault read auth/{mount}/role/{role or 'ROLE'} shows what a token must say; is the one in {file} of that issuer, "
                "audience and subject, and not expired? ostiary vault setup --dry-run prints such a role"
            )
        case AwsAuth(role=role, mount=mount):
            return (
                f"vault read auth/{mount}/role/{role} shows who may (bound_iam_principal_arn), vault read auth/{mount}/config/client "
                "which STS Vault asks (region) and what it wants in header_value; aws sts get-caller-identity shows who the keys are"
            )
        case CertAuth(role=role, mount=mount):
            return (
                f"vault read auth/{mount}/certs/{role or 'ROLE'} shows which certificates may; is client_cert signed by that CA, "
                "and does Vault's listener ask for one (tls_disable_client_certs=false)?"
            )
        case _:
            return "is the token still good? vault token lookup tells"


def _own_listener(settings: Settings) -> str | None:
    """The Vault address at which we ourselves listen."""
    binds = {(one.bind.host, one.bind.port) for one in settings.listen if one.bind.path is None}
    for address in settings.vault.addresses if settings.vault is not None else ():
        split = urlsplit(address)
        host, port = split.hostname or "", split.port or (443 if split.scheme == "https" else 80)
        hosts = {host, "127.0.0.1", "0.0.0.0"} if host in LOOPBACK else {host}  # noqa: S104 - compared, not bound
        if any((one, port) in binds for one in hosts):
            return address
    return None


async def login(setup: Setup) -> list[Finding]:
    """Vault takes the login, and its token lives long enough."""
    settings, _ = setup.loaded
    examine = getattr(setup.store, "examine", None)
    if examine is None:
        return [Finding("store.login", "skip", "the embedded store has no login")]
    method = type(settings.vault.auth).__name__.removesuffix("Auth") if settings.vault is not None else ""
    try:
        waiting = await examine()
    except StoreError as error:
        mend = f"look at vault.auth ({method}): {_login_anew(settings.vault)}"
        return [Finding("store.login", "fail", error.reason, mend)]
    if waiting:
        setup.not_logged_in = True
        return [Finding("store.login", "ok", f"not tried: {waiting}")]
    ttl_s = setup.token_ttl_s
    if ttl_s is not None and ttl_s < SHORT_TTL_S:
        mend = "give the role or token a TTL of some minutes at least"
        return [Finding("store.login", "warn", f"the token lives {ttl_s:.0f} s", mend)]
    lives = "for ever" if ttl_s is None or math.isinf(ttl_s) else f"{ttl_s:.0f} s"
    return [Finding("store.login", "ok", f"logged in by {method}, the token lives {lives}")]


async def secrets(setup: Setup) -> list[Finding]:
    """Every secret of every route is there with its field."""
    _, policy = setup.loaded
    if setup.not_logged_in:
        return [Finding("store.secrets", "skip", "a login is left to ostiary run, so no secret was asked for")]
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, secret: SecretSpec) -> Finding | None:
        at = f"route {name} ({policy.routes[name].place})"
        try:
            async with gate:
                described = await setup.store.describe(reference_of(secret))
        except SecretDenied as error:
            mend = f"give Ostiary's Vault policy read on {secret.path} (KV v2: on data/ and subkeys/ below the mount)"
            return Finding("store.secrets", "fail", f"{at}: {error}", mend)
        except SecretMissing as error:
            mend = f"write {secret.path}, or change secret.path of route {name}"
            return Finding("store.secrets", "fail", f"{at}: {error}", mend)
        except StoreError as error:
            return Finding("store.secrets", "fail", f"{at}: {error}", "try again once the store answers")
        fields = described.fields
        for field in secret.named_fields:
            if field in fields:
                continue
            found = f"{at}: secret {secret.path} has no field {field!r} (it has {', '.join(sorted(fields))})"
            key = "secret.field" if secret.field is not None else "client_cert"
            mend = f"write field {field} of {secret.path}, or change {key} of route {name}"
            return Finding("store.secrets", "fail", found, mend)
        return _told(secret.path, described.control, time.time())  # noqa: TID251 - held against what people have written

    # What is issued or lent is not there before it is asked for; whether it may be, check --live tells.
    refs = [(name, secret) for name, secret in policy.secret_refs() if not secret.is_made]
    found = [one for one in await asyncio.gather(*(one(*ref) for ref in refs)) if one is not None]
    # Two routes that read one secret are told once what its owners say.
    bad = list(dict.fromkeys(found))
    return bad or [Finding("store.secrets", "ok", f"{counted(len(refs), 'secret')} asked for, no field is missing")]


def _told(name: str, control: Control, now_s: float) -> Finding | None:
    """What the owners of a secret say about it (`custom_metadata`), where somebody has to act on it."""
    owner = f" (owner: {control.owner})" if control.owner else ""
    if control.expires_at_s is not None and control.expires_at_s - now_s < AHEAD_S[0]:
        at = dt.datetime.fromtimestamp(control.expires_at_s, dt.UTC).isoformat().replace("+00:00", "Z")
        when = "has expired at" if control.expires_at_s <= now_s else "expires at"
        return Finding("store.secrets", "warn", f"secret {name} {when} {at}, as its owners say{owner}", "rotate it")
    if control.faults:
        mend = f"correct its custom_metadata: {'; '.join(control.faults)}"
        return Finding("store.secrets", "warn", f"secret {name} says something that counts as absent{owner}", mend)
    return None


async def clock(setup: Setup) -> list[Finding]:
    """Our clock and Vault's agree to a minute: leases, tokens and certificates are judged by them."""
    settings, _ = setup.loaded
    if settings.vault is None or settings.store != "vault":
        return [Finding("clock.skew", "skip", "there is no Vault to compare clocks with")]
    split = urlsplit(settings.vault.addresses[0])
    host, tls = split.hostname or "", split.scheme == "https"
    context = ssl.create_default_context(cafile=settings.vault.ca_file) if tls else None
    if context is not None and settings.vault.client_cert is not None:
        context.load_cert_chain(settings.vault.client_cert, settings.vault.client_key)
    async with asyncio.timeout(setup.deadline_s):
        reader, writer = await asyncio.open_connection(host, split.port or (443 if tls else 80), ssl=context)
        writer.write(b"GET /v1/sys/health HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % split.netloc.encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        ours = dt.datetime.now(dt.UTC)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    dates = [line.partition(":")[2].strip() for line in head.split("\r\n") if line.lower().startswith("date:")]
    try:
        theirs = email.utils.parsedate_to_datetime(dates[0])
    except (IndexError, ValueError):
        return [Finding("clock.skew", "skip", "Vault's answer has no Date")]
    skew_s = (ours - theirs).total_seconds()
    if abs(skew_s) > MAX_SKEW_S:
        way = "ahead of" if skew_s > 0 else "behind"
        mend = "set the clock here and at Vault by NTP (timedatectl shows which is wrong)"
        return [Finding("clock.skew", "fail", f"this clock is {abs(skew_s):.0f} s {way} Vault's", mend)]
    return [Finding("clock.skew", "ok", "this clock and Vault's agree")]
