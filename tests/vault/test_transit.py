"""Keys of Vault's Transit engine against a real OpenBao, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tests.harness.openbao import OpenBao
from tests.harness.scripted_vault import scripted, send
from vault.hashicorp.config import TokenAuth, TokenFileAuth, VaultAuth, VaultConfig
from vault.hashicorp.store import VaultStore
from vault.hashicorp.transit import MOST_WAITING, Calls
from vault.keys import MAX_TEXT_BYTES, SIGNATURE, KeyRef, Keys, Operation
from vault.observer import Silent
from vault.secret import Secret
from vault.store import (
    SecretDenied,
    SecretMalformed,
    SecretMissing,
    SecretUnavailable,
    SecretVersion,
    StoreError,
    WrongOpening,
)

TEXT = b"GET\n/\nx-timestamp:1"


@pytest.fixture(scope="module")
def bao(openbao: OpenBao) -> Iterator[OpenBao]:
    with contextlib.suppress(OSError):
        openbao.api("POST", "sys/mounts/transit", {"type": "transit"})
    for name, kind in (
        ("mac", "aes256-gcm96"), ("ed", "ed25519"), ("ec", "ecdsa-p256"), ("pss", "rsa-2048"), ("long", "ecdsa-p384"),
    ):  # fmt: skip
        openbao.api("POST", f"transit/keys/{name}", {"type": kind})
    # The bytes of the HMAC key are known here, so that a digest can be computed beside Vault.
    key = base64.b64encode(bytes(range(32))).decode()
    openbao.api("POST", "transit/restore/known", {"backup": backup(key)})
    yield openbao


def backup(key: str) -> str:
    """A key as a backup of Transit holds it."""
    entry = {"key": key, "hmac_key": key, "time": "2026-01-01T00:00:00Z", "rsa_key": None, "ec_x": None, "ec_y": None, "ec_d": None, "creation_time": 1}  # fmt: skip
    policy = {"name": "known", "keys": {"1": entry}, "latest_version": 1, "min_decryption_version": 1, "type": 0, "archive_version": 1}  # fmt: skip
    return base64.b64encode(json.dumps({"policy": policy, "archived_keys": {"keys": [{}, entry]}}).encode()).decode()


@contextlib.asynccontextmanager
async def store(address: str, auth: VaultAuth, **given: float) -> AsyncIterator[VaultStore]:
    made = VaultStore(VaultConfig((address,), auth, **given))  # type: ignore[arg-type]  # a deadline, or threads
    try:
        yield made
    finally:
        await made.close()


def root(bao: OpenBao) -> TokenAuth:
    return TokenAuth(Secret(bao.token))


def raw(version: SecretVersion) -> bytes:
    return version.fields[SIGNATURE].reveal_bytes()


async def test_hmac_is_that_of_the_key(bao: OpenBao) -> None:
    async with store(bao.address, root(bao)) as vault:
        for operation in ("hmac-sha256", "hmac-sha384", "hmac-sha512"):
            made = await vault.compute(KeyRef("known"), operation, TEXT)
            assert raw(made) == hmac.digest(bytes(range(32)), TEXT, operation.removeprefix("hmac-"))
            assert made.version == "1"


async def test_signatures_are_those_of_rfc_9421(bao: OpenBao) -> None:
    def public(name: str) -> str:
        return str(bao.api("GET", f"transit/keys/{name}")["data"]["keys"]["1"]["public_key"])

    async with store(bao.address, root(bao)) as vault:
        made = raw(await vault.compute(KeyRef("ed"), "ed25519", TEXT))
        ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(public("ed"))).verify(made, TEXT)
        made = raw(await vault.compute(KeyRef("ec"), "ecdsa-p256-sha256", TEXT))
        key = load_pem_public_key(public("ec").encode())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        der = encode_dss_signature(int.from_bytes(made[:32], "big"), int.from_bytes(made[32:], "big"))
        key.verify(der, TEXT, ec.ECDSA(hashes.SHA256()))
        made = raw(await vault.compute(KeyRef("pss"), "rsa-pss-sha512", TEXT))
        signed = load_pem_public_key(public("pss").encode())
        assert isinstance(signed, rsa.RSAPublicKey)
        signed.verify(made, TEXT, padding.PSS(padding.MGF1(hashes.SHA512()), 64), hashes.SHA512())


async def test_versions(bao: OpenBao) -> None:
    bao.api("POST", "transit/keys/mac/rotate")
    async with store(bao.address, root(bao)) as vault:
        newest = await vault.compute(KeyRef("mac"), "hmac-sha256", TEXT)
        before = await vault.compute(KeyRef("mac", version=1), "hmac-sha256", TEXT)
        assert (newest.version, before.version) == ("2", "1")
        assert raw(newest) != raw(before)
        with pytest.raises(SecretMissing):
            await vault.compute(KeyRef("mac", version=9), "hmac-sha256", TEXT)


@pytest.mark.parametrize(
    ("ref", "operation", "error"),
    [
        (KeyRef("never"), "hmac-sha256", SecretMissing),
        (KeyRef("never"), "ed25519", SecretMissing),
        (KeyRef("mac"), "ed25519", SecretMissing),  # this kind does not sign
        (KeyRef("ec"), "ed25519", SecretMalformed),  # an ASN.1 signature of another kind of key
        (KeyRef("ed"), "ecdsa-p256-sha256", None),  # Vault ignores what does not fit: told apart by who verifies
        (KeyRef("long"), "ecdsa-p256-sha256", SecretMalformed),
        (KeyRef("mac", mount="nowhere"), "hmac-sha256", SecretMissing),
        (KeyRef("x", mount="secret"), "hmac-sha256", SecretMissing),
        (KeyRef("x", mount="sys"), "hmac-sha256", SecretMalformed),
        (KeyRef("../../sys/seal"), "hmac-sha256", SecretMalformed),
    ],
)
async def test_what_is_no_such_key(
    bao: OpenBao, ref: KeyRef, operation: Operation, error: type[StoreError] | None
) -> None:
    async with store(bao.address, root(bao)) as vault:
        if error is None:
            await vault.compute(ref, operation, TEXT)
            return
        with pytest.raises(error) as found:
            await vault.compute(ref, operation, TEXT)
        assert found.value.name == ref.name


async def test_least_privilege_and_one_login_after_a_refusal(bao: OpenBao, tmp_path: Path) -> None:
    bao.policy("signs", 'path "transit/hmac/known" { capabilities = ["update"] }')
    file = tmp_path / "token"
    file.write_text(bao.new_token("signs"))
    async with store(bao.address, TokenFileAuth(file)) as vault:
        assert raw(await vault.compute(KeyRef("known"), "hmac-sha512", TEXT))
        for _ in range(2):
            with pytest.raises(SecretDenied, match="denies update on transit/sign/ed"):
                await vault.compute(KeyRef("ed"), "ed25519", TEXT)
        # A token that died is exchanged for the one that has come into the file since.
        bao.api("POST", "auth/token/revoke", {"token": file.read_text()})
        file.write_text(bao.new_token("signs"))
        assert raw(await vault.compute(KeyRef("known"), "hmac-sha256", TEXT))


def answers(handler: http.server.BaseHTTPRequestHandler, told: object) -> None:
    length = int(handler.headers.get("Content-Length", 0))
    handler.rfile.read(length)
    send(handler, 200, {"data": told})


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"hmac": None},
        {"hmac": "vault:v0:" + base64.b64encode(bytes(32)).decode()},
        {"hmac": "vault:v1:" + base64.b64encode(bytes(31)).decode()},
        {"hmac": "vault:v1:!!!"},
        {"hmac": "v1:" + base64.b64encode(bytes(32)).decode()},
        {"hmac": "vault:v1:" + "A" * 100_000},
        {"signature": "vault:v1:" + base64.b64encode(bytes(32)).decode()},
    ],
)
async def test_an_answer_of_another_shape_is_malformed(told: object) -> None:
    with scripted(lambda handler: answers(handler, told)) as (address, _):
        async with store(address, TokenAuth(Secret("t"))) as vault:
            with pytest.raises(SecretMalformed):
                await vault.compute(KeyRef("k"), "hmac-sha256", TEXT)


async def test_a_pinned_version_is_held_to() -> None:
    told = {"hmac": "vault:v2:" + base64.b64encode(bytes(32)).decode()}
    with scripted(lambda handler: answers(handler, told)) as (address, seen):
        async with store(address, TokenAuth(Secret("t"))) as vault:
            with pytest.raises(SecretMalformed):
                await vault.compute(KeyRef("k", version=1), "hmac-sha256", TEXT)
            assert (await vault.compute(KeyRef("k"), "hmac-sha256", TEXT)).version == "2"
    assert {path for path, _ in seen if "transit" in path} == {"/v1/transit/hmac/k"}


def signed(handler: http.server.BaseHTTPRequestHandler) -> None:
    answers(handler, {"hmac": "vault:v1:" + base64.b64encode(bytes(32)).decode()})


async def test_the_deadline_is_total_and_few_may_wait() -> None:
    let = threading.Event()

    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        let.wait(20)
        signed(handler)

    with scripted(slow) as (address, _):
        async with store(address, TokenAuth(Secret("t")), deadline_s=1.0, threads=4) as vault:
            found = await asyncio.gather(
                *(vault.compute(KeyRef("k"), "hmac-sha256", TEXT) for _ in range(MOST_WAITING + 1)),
                return_exceptions=True,
            )
            let.set()
    assert all(isinstance(one, SecretUnavailable) for one in found)
    assert isinstance(found[-1], SecretUnavailable)
    assert found[-1].reason == "too many signatures are waited for"


async def test_few_calls_are_under_way_at_once() -> None:
    let, under_way, sizes = asyncio.Event(), [0], list[int]()
    mac = "vault:v1:" + base64.b64encode(bytes(32)).decode()

    class Adapter:
        @staticmethod
        def post(_: str, json: dict[str, Any], **__: bool) -> dict[str, Any]:
            sizes.append(len(json.get("batch_input", "1")))
            many = [{"hmac": mac} for _ in json.get("batch_input", ())]
            return {"data": {"batch_results": many} if many else {"hmac": mac}}

    async def held(_: object, work: Callable[[Any, object], list[SecretVersion]]) -> list[SecretVersion]:
        under_way[0] += 1
        await let.wait()
        under_way[0] -= 1
        return work(SimpleNamespace(adapter=Adapter), 1)

    config = VaultConfig(("http://127.0.0.1:9",), TokenAuth(Secret("t")), deadline_s=30.0, threads=4)
    vault = VaultStore(config)
    vault._transit._calls = cast("Calls", held)
    asked = [asyncio.ensure_future(vault.compute(KeyRef("k"), "hmac-sha256", TEXT)) for _ in range(12)]
    for _ in range(50):
        await asyncio.sleep(0)
    # Two of the four threads stay free for reads of secrets.
    assert under_way == [2]
    let.set()
    assert len(await asyncio.gather(*asked)) == 12
    assert under_way == [0]
    # The ten that had to wait went together.
    assert sizes == [1, 1, 10]
    await vault.close()


@pytest.mark.parametrize("operation", ["hmac-sha256", "ed25519", "ecdsa-p256-sha256"])
async def test_what_waits_is_signed_together(bao: OpenBao, operation: Operation) -> None:
    """Each has the signature of its own text, also where one of them is no longer wanted and one key cannot sign."""
    name = {"hmac-sha256": "known", "ed25519": "ed", "ecdsa-p256-sha256": "ec"}[operation]
    calls = list[int]()
    async with store(bao.address, TokenAuth(Secret(bao.token)), threads=3) as vault:
        real = vault._transit._calls

        async def counted(ref: Any, work: Any) -> Any:
            calls.append(1)
            return await real(ref, work)

        vault._transit._calls = cast("Calls", counted)
        texts = [b"%d" % number for number in range(100)]
        asked = [asyncio.ensure_future(vault.compute(KeyRef(name), operation, text)) for text in texts]
        none = asyncio.ensure_future(vault.compute(KeyRef("never"), operation, TEXT))
        await asyncio.sleep(0)
        asked[50].cancel()
        found = await asyncio.gather(*asked, none, return_exceptions=True)
        assert isinstance(found[50], asyncio.CancelledError)
        assert isinstance(found[-1], SecretMissing)
        for number, one in enumerate(found[:100]):
            if number == 50:
                continue
            assert isinstance(one, SecretVersion), one
            raw = one.fields[SIGNATURE].reveal_bytes()
            if operation == "hmac-sha256":
                assert raw == hmac.digest(bytes(range(32)), texts[number], "sha256")
            elif operation == "ed25519":
                public = bao.api("GET", "transit/keys/ed")["data"]["keys"][one.version]["public_key"]
                ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(public)).verify(raw, texts[number])
            else:
                assert len(raw) == 64
    assert len(calls) == 1 + 2 + 1, "one that found a turn, the others in two calls, and the key that is not there"


async def test_a_batch_of_another_shape_is_no_signature() -> None:
    mac = "vault:v1:" + base64.b64encode(bytes(32)).decode()
    for told in ({"batch_results": [{"hmac": mac}]}, {"batch_results": [{"hmac": mac}, {"error": "x"}]}, {"hmac": mac}):

        def odd(handler: http.server.BaseHTTPRequestHandler, told: dict[str, Any] = told) -> None:
            many = b"batch_input" in handler.rfile.read(int(handler.headers["Content-Length"] or 0))
            send(handler, 200, json.dumps({"data": told if many else {"hmac": mac}}).encode())

        with scripted(odd) as (address, _):
            async with store(address, TokenAuth(Secret("t")), threads=3) as vault:
                asked = [vault.compute(KeyRef("k"), "hmac-sha256", b"%d" % number) for number in range(3)]
                first, *others = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(first, SecretVersion)
        assert [type(one) for one in others] == [SecretMalformed] * 2


class Told(Silent):
    def __init__(self) -> None:
        self.seen: list[tuple[str, ...]] = []

    def secret_read(self, store: str, result: str) -> None:
        self.seen.append(("read", result))

    def secret_changed(self, name: str, before: str, version: str) -> None:
        self.seen.append(("changed", name, before, version))


class Scripted:
    """A store whose key is of the versions given, in turn."""

    def __init__(self, *versions: str) -> None:
        self._versions = list(versions)

    async def compute(self, ref: KeyRef, operation: Operation, text: bytes) -> SecretVersion:
        return SecretVersion({SIGNATURE: Secret(hashlib.sha256(text).digest())}, self._versions.pop(0))


class Record:
    def __init__(self, secret: str, version: str) -> None:
        self.secret, self.secret_version = secret, version


async def test_a_signature_is_sealed_and_its_version_told() -> None:
    told = Told()
    keys = Keys(Scripted("1", "3", "2"), told)
    sealed = await keys.sign(KeyRef("k"), "hmac-sha256", TEXT)
    assert (sealed.name, sealed.version, sealed.cache) == ("transit/keys/k", "1", "bypass")
    with pytest.raises(WrongOpening):
        sealed.unseal(Record("transit/keys/k", "2"))
    assert sealed.unseal(Record("transit/keys/k", "1"))[SIGNATURE].reveal_bytes() == hashlib.sha256(TEXT).digest()
    for _ in range(2):
        await keys.sign(KeyRef("k"), "hmac-sha256", TEXT)
    # The answer with version 2 was overtaken by that with version 3.
    assert [one for one in told.seen if one[0] == "changed"] == [("changed", "transit/keys/k", "1", "3")]


async def test_what_cannot_sign_says_so() -> None:
    told = Told()
    with pytest.raises(SecretMissing, match="needs Vault"):
        await Keys(object(), told).sign(KeyRef("k"), "ed25519", TEXT)
    with pytest.raises(SecretMalformed, match="at most"):
        await Keys(Scripted("1"), told).sign(KeyRef("k"), "ed25519", bytes(MAX_TEXT_BYTES + 1))
