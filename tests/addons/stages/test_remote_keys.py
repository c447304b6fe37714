"""Signatures that are waited for: who has gone meanwhile leaves no open record, and nothing is opened before its record."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, cast

import pytest

from addons.audit import AuditUnavailable
from addons.audit.record import OpenRecord, make_open
from addons.credentials import Openings
from addons.exchange import Connection, Exchange, Listener
from addons.head import RequestHead
from addons.parts import Parts
from addons.refusal import Code, Refusal
from addons.signing.apply import Signing
from addons.stages.remote_keys import RemoteKeys, note_opened
from policies.sign import HmacSigner, SentName, TransitKey, TransitUse
from policies.template import parse_template
from tests.harness.signing import credential, outgoing
from vault.keys import MAX_TEXT_BYTES, SIGNATURE, KeyRef, Keys, Operation
from vault.observer import Silent
from vault.secret import Secret
from vault.store import SecretMissing, SecretUnavailable, SecretVersion

SIGNATURE_NAME = SentName("header", "X-Signature")


class Vault:
    """Signs once it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.asked = asyncio.Event()
        self.fails = False
        self.versions: list[int | None] = []
        self.gone = False

    async def compute(self, ref: KeyRef, operation: Operation, text: bytes) -> SecretVersion:
        self.asked.set()
        await self.let.wait()
        if self.fails:
            raise SecretUnavailable(ref.name, "sealed", retry_after_s=7.0)
        self.versions.append(ref.version)
        if ref.version is not None and self.gone:
            raise SecretMissing(ref.name, "is too old")
        version = str(ref.version or 4)
        return SecretVersion({SIGNATURE: Secret(hashlib.sha256(version.encode() + text).digest())}, version)


class Audit:
    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.let.set()
        self.asked = asyncio.Event()
        self.opened: list[OpenRecord] = []
        self.closed: list[tuple[str, Any]] = []
        self.fails = False

    async def open(self, fields: Any) -> OpenRecord:
        self.asked.set()
        await self.let.wait()
        if self.fails:
            raise AuditUnavailable
        self.opened.append(make_open(f"r{len(self.opened)}", fields, 0.0, ""))
        return self.opened[-1]

    def close(self, record: OpenRecord, ended: Any) -> None:
        self.closed.append((record.id, ended))


class Clock:
    def wall_s(self) -> float:
        return 1000.0

    def monotonic_s(self) -> float:
        return 0.0


class Case:
    def __init__(self, *, template: str | None = "{method} {timestamp}{body}") -> None:
        self.vault, self.audit = Vault(), Audit()
        parts = cast("Parts", type("P", (), {})())
        for name, value in (("keys", Keys(self.vault, Silent())), ("audit", self.audit), ("clock", Clock())):
            object.__setattr__(parts, name, value)
        head = RequestHead("POST", b"/", (), http2=False)
        self.exchange = Exchange("id", Connection("c", Listener("l", "w"), "192.0.2.1"), cast("Any", None), head, 0.0)
        key = HmacSigner(
            TransitKey("k"), SIGNATURE_NAME, SentName("header", "X-Timestamp"), None, prefix="",
            template=parse_template(template) if template is not None else None,
        )  # fmt: skip
        self.signing = Signing([key], 1)
        self.keys = RemoteKeys(parts, self.exchange, {"route": "r"}, lambda record: note_opened(self.exchange, record))

    async def sign(self, body: bytes = b"") -> str:
        ready = await self.keys.sign(self.signing, outgoing("POST", b"/", body=body), credential({}))
        return dict(ready.fields)[b"X-Signature"].decode()


async def test_a_signature_is_recorded_and_then_used() -> None:
    case = Case()
    case.vault.let.set()
    assert await case.sign() == hashlib.sha256(b"4POST 1000").hexdigest()
    assert case.exchange.ask(Openings).records == tuple(case.audit.opened)
    (record,) = case.audit.opened
    assert record.fields == {"route": "r", "secret": "transit/keys/k", "secret_version": "4", "cache": "bypass"}


async def test_a_caller_that_goes_while_vault_signs() -> None:
    case = Case()
    signing = asyncio.ensure_future(case.sign())
    await case.vault.asked.wait()
    case.exchange.settled = True
    case.vault.let.set()
    with pytest.raises(asyncio.CancelledError):
        await signing
    assert not case.audit.opened
    assert case.exchange.find(Openings) is None


async def test_a_caller_that_goes_while_the_record_is_written() -> None:
    case = Case()
    case.vault.let.set()
    case.audit.let.clear()
    signing = asyncio.ensure_future(case.sign())
    await case.audit.asked.wait()
    case.exchange.settled = True
    case.audit.let.set()
    with pytest.raises(asyncio.CancelledError):
        await signing
    assert case.audit.closed == [("r0", {"outcome": "client_gone"})]
    assert case.exchange.find(Openings) is None


async def test_what_cannot_be_signed_or_recorded() -> None:
    case = Case()
    case.vault.let.set()
    case.vault.fails = True
    with pytest.raises(Refusal) as refusal:
        await case.sign()
    assert (refusal.value.code, refusal.value.retry_after_s) == (Code.SECRET_UNAVAILABLE, 7.0)
    case.vault.fails = False
    case.audit.fails = True
    with pytest.raises(AuditUnavailable):
        await case.sign()
    case.audit.fails = False
    case.vault.asked.clear()
    with pytest.raises(Refusal) as refusal:
        await case.sign(bytes(MAX_TEXT_BYTES))
    assert refusal.value.code == Code.BODY_TOO_LARGE
    assert not case.vault.asked.is_set()
    assert not case.audit.opened
    # The profile sends a digest, however large the body is.
    profile = Case(template=None)
    profile.vault.let.set()
    assert await profile.sign(bytes(MAX_TEXT_BYTES))


async def test_a_signature_is_compared_with_those_of_two_versions() -> None:
    case = Case()
    case.vault.let.set()

    def made(version: int) -> bytes:
        return hashlib.sha256(f"{version}text".encode()).digest()

    async def is_made(signature: bytes, version: int | None = None) -> bool:
        case.vault.versions.clear()
        return await case.keys.is_made(TransitUse(TransitKey("k", version=version), "hmac-sha256"), b"text", signature)

    assert await is_made(made(4))
    assert case.vault.versions == [None], "the one before is not asked for nothing"
    assert await is_made(made(3))
    assert case.vault.versions == [None, 3]
    assert not await is_made(made(2))
    assert not await is_made(made(4)[:-1])
    assert not await is_made(b"")
    assert await is_made(made(2), 2)
    assert not await is_made(made(1), 2)
    assert case.vault.versions == [2], "a pinned version stands alone"
    assert await is_made(made(1), 1)
    case.vault.gone = True
    assert not await is_made(made(3)), "Vault lets nobody use it"
    # Each was recorded before it was opened, the version with it.
    assert {record.fields["secret_version"] for record in case.audit.opened} == {"4", "3", "2", "1"}
    case.vault.fails = True
    with pytest.raises(Refusal) as refusal:
        await is_made(made(4))
    assert refusal.value.code == Code.SECRET_UNAVAILABLE
