"""Flights, renewal, rotation, failures, and refresh tokens, in one process with real stores and a moved clock."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from addons.audit import AuditUnavailable
from addons.audit.record import Fields, OpenRecord, make_open
from addons.clock import SystemClock
from addons.credentials import Credential, TokenParts
from addons.deriving.asking import Ask, Reply, Way
from addons.deriving.source import Derived, Deriving
from addons.deriving.tokens import CAPACITY, Tokens
from addons.refusal import Code, Refusal
from policies import load_policy
from policies.model import CredentialSpec
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.token_server import No, TokenServer
from tests.harness.upstream import Seen
from vault.cache import SecretCache
from vault.hashicorp.config import TokenFileAuth, VaultConfig
from vault.hashicorp.store import VaultStore
from vault.sealed import SealedFile, SealedStore
from vault.secret import Secret
from vault.store import SecretRef, SecretStore, SecretUnavailable, SecretWriter

REF = SecretRef("secret/egress/crm")
POLICY = """
workloads: {w: {proofs: {any: true}}}
routes:
  r:
    match: {host: a.test}
    allow: w
    secret: {path: secret/egress/crm, ttl: 0, max_stale: 100s}
    derive:
      GRANT
    inject: {bearer: "{token}"}
"""
REFRESH = 'refresh_token: {token_url: "https://login.test/token", client_id: "{secret.client_id}", client_secret: "{secret.client_secret}", refresh_token: "{secret.refresh_token}"}'
CLIENT = 'client_credentials: {token_url: "https://login.test/token", client_id: "{secret.client_id}", client_secret: "{secret.client_secret}"}'


class Clock:
    now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s

    wall_s = staticmethod(SystemClock.wall_s)


class Audit:
    """Remembers records; each is closed once."""

    def __init__(self) -> None:
        self.opened: list[Fields] = []
        self.closed: list[Fields] = []
        self.full = False

    async def open(self, fields: Fields) -> OpenRecord:
        if self.full:
            raise AuditUnavailable
        self.opened.append(fields)
        return make_open(str(len(self.opened)), fields, 0.0, "")

    def close(self, record: OpenRecord, ended: Fields) -> None:
        self.closed.append({**record.fields, **ended})


class Endpoint:
    """In the place of the network: the strict server, asked directly."""

    def __init__(self, server: TokenServer) -> None:
        self.server = server
        self.down = False
        self.gate: asyncio.Event | None = None
        self.asked = 0

    async def ask(self, ask: Ask, _way: Way) -> Reply:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            return Reply(503, b"")
        headers = [(name.decode(), value.decode()) for name, value in ask.fields]
        try:
            answer = self.server.answer(Seen("POST", ask.target, headers, body=ask.body))
        except No as no:
            self.server.refused.append(str(no))
            return Reply(no.status, b'{"error": "%b"}' % no.word.encode())
        return Reply(200, json.dumps(answer).encode())


class Observed:
    def __init__(self) -> None:
        self.results: list[str] = []

    def token_made(self, _grant: str, result: str) -> None:
        self.results.append(result)


class Bench:
    def __init__(self, store: SecretStore, grant: str, tmp_path: Path, **options: Any) -> None:
        path = tmp_path / "policy.yaml"
        path.write_text(POLICY.replace("GRANT", grant))
        self.spec = cast("CredentialSpec", load_policy([path]).routes["r"].credential)
        self.clock, self.audit, self.observed = Clock(), Audit(), Observed()
        self.server = TokenServer(secrets={"crm": "secret-1"}, refresh="refresh-0", life_s=100)
        self.endpoint = Endpoint(self.server)
        self.tokens = Tokens(self.clock, self.observed, jitter=lambda: 1.0, **options)
        self.store = store
        self.secrets = SecretCache(store, self.clock.monotonic_s)
        writer = store if isinstance(store, SecretWriter) else None
        self.deriving = Deriving(self.tokens, cast("Any", self.endpoint), cast("Any", self.audit), self.clock, writer)
        self.derived = self.again()

    def again(self) -> Derived:
        return self.deriving.of(self.spec, Way(), self.secrets)

    async def token(self, source: Derived | None = None, workload: str = "w") -> str:
        return self.shown(await (source or self.derived).read(workload))

    def shown(self, parts: TokenParts) -> str:
        """What a request would send, with a record for each part."""
        fields: dict[str, Secret] = {}
        for part in parts:
            record = make_open("r", {"secret": part.name, "secret_version": part.version}, 0.0, "")
            fields |= part.unseal(record)
            part.release()
        return Credential(self.spec, {"token": fields})._values["token"]["token"].reveal()

    async def landed(self) -> None:
        for _ in range(200):
            if all(entry.flight is None for entry in self.tokens._entries.values()):
                return
            await asyncio.sleep(0.005)


@pytest.fixture
def file(tmp_path: Path) -> SealedFile:
    file = SealedFile.create(tmp_path / "secrets.sealed", tmp_path / "secrets.key")
    for name, value in (
        ("client_id", "crm"),
        ("client_secret", "secret-1"),
        ("refresh_token", "refresh-0"),
        ("note", "kept"),
    ):
        file.set(REF.path, name, Secret(value))
    return file


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with openbao_server(tmp_path_factory.mktemp("bao")) as server:
        yield server


def put(file: SealedFile, name: str, value: str) -> None:
    file.set(REF.path, name, Secret(value))


def stored(file: SealedFile, name: str) -> str:
    return file.load()[REF.path][-1].fields[name].reveal()


# --- one flight, renewal, rotation ---


async def test_a_crowd_is_one_flight_and_one_who_leaves_does_not_end_it(file: SealedFile, tmp_path: Path) -> None:
    bench = Bench(SealedStore(file), CLIENT, tmp_path)
    bench.endpoint.gate = asyncio.Event()
    crowd = [asyncio.create_task(bench.token()) for _ in range(20)]
    other = asyncio.create_task(bench.token(bench.again()))  # another route of the same credential
    while not bench.endpoint.asked:
        await asyncio.sleep(0.005)
    crowd[0].cancel()
    bench.endpoint.gate.set()
    found = {*await asyncio.gather(*crowd[1:]), await other}
    assert found == set(bench.server.given)
    assert bench.endpoint.asked == 1
    assert [one["outcome"] for one in bench.audit.closed] == ["ok"]


async def test_a_token_is_renewed_ahead_and_serves_to_its_end(file: SealedFile, tmp_path: Path) -> None:
    bench = Bench(SealedStore(file), CLIENT, tmp_path)
    first = await bench.token()
    bench.clock.now_s += 79
    assert await bench.token() == first
    await bench.landed()
    assert bench.endpoint.asked == 1
    bench.clock.now_s += 2
    assert await bench.token() == first
    await bench.landed()
    assert await bench.token() == bench.server.given[1] != first
    # The endpoint goes down: the token serves on, the endpoint is asked with a pause, and at the end there is a refusal.
    bench.endpoint.down = True
    bench.clock.now_s += 85
    for _ in range(5):
        assert await bench.token() == bench.server.given[1]
        await bench.landed()
    assert bench.endpoint.asked == 3
    bench.clock.now_s += 15
    with pytest.raises(Refusal) as refused:
        await bench.token()
    assert refused.value.code is Code.SECRET_UNAVAILABLE
    assert len(bench.audit.opened) == len(bench.audit.closed)


async def test_a_rotated_secret_makes_a_new_token_and_breaks_nothing(file: SealedFile, tmp_path: Path) -> None:
    bench = Bench(SealedStore(file), CLIENT, tmp_path)
    first = await bench.token()
    bench.server.secrets["crm"] = "secret-2"
    put(file, "client_secret", "secret-2")
    bench.endpoint.gate = asyncio.Event()
    parts = await bench.derived.read("w")
    assert (bench.shown(parts), parts[0].cache, parts[0].version) == (first, "stale", "4")
    bench.endpoint.gate.set()
    await bench.landed()
    parts = await bench.derived.read("w")
    assert (bench.shown(parts), parts[0].version) == (bench.server.given[1], "5")
    # A wrong one: the old token serves for max_stale, and no longer.
    put(file, "client_secret", "wrong")
    assert await bench.token() == bench.server.given[1]
    await bench.landed()
    bench.server.life_s = 100
    bench.clock.now_s += 94
    assert await bench.token() == bench.server.given[1]
    # Deleted: the token is used no more.
    file.remove(REF.path)
    with pytest.raises(Refusal) as refused:
        await bench.token()
    assert refused.value.code is Code.SECRET_MISSING


async def test_a_refusal_is_remembered_for_its_version_alone(file: SealedFile, tmp_path: Path) -> None:
    put(file, "client_secret", "wrong")
    bench = Bench(SealedStore(file), CLIENT, tmp_path)
    for _ in range(10):
        with pytest.raises(Refusal) as refused:
            await bench.token()
        assert refused.value.code is Code.SECRET_DENIED
    assert bench.endpoint.asked == 1
    put(file, "client_secret", "secret-1")
    assert await bench.token() == bench.server.given[0]


async def test_a_rejected_token_is_made_anew_once_in_a_while(file: SealedFile, tmp_path: Path) -> None:
    bench = Bench(SealedStore(file), CLIENT, tmp_path)
    used = (await bench.derived.read("w"))[0]
    crowd = await asyncio.gather(*(bench.derived.other("w", used) for _ in range(10)))
    assert {bench.shown(parts) for parts in crowd if parts is not None} == {bench.server.given[1]}
    assert bench.endpoint.asked == 2
    used = (await bench.derived.read("w"))[0]
    assert await bench.derived.other("w", used) is None
    bench.derived.suspect("w", used)
    await bench.landed()
    assert bench.endpoint.asked == 2
    bench.clock.now_s += 6
    assert await bench.derived.other("w", used) is not None
    assert bench.endpoint.asked == 3


async def test_memory_is_bounded_and_nothing_is_asked_without_a_record(file: SealedFile, tmp_path: Path) -> None:
    grant = CLIENT.replace('}"}', '}", per: workload}')
    bench = Bench(SealedStore(file), grant, tmp_path, capacity=3)
    found = [await bench.token(workload=f"w{number}") for number in range(6)]
    assert len(set(found)) == 6
    assert len(bench.tokens) == 3 < CAPACITY
    assert {one["workload"] for one in bench.audit.opened} == {f"w{number}" for number in range(6)}
    bench.audit.full = True
    with pytest.raises(Refusal) as refused:
        await bench.token(workload="new")
    assert refused.value.code is Code.AUDIT_UNAVAILABLE
    assert bench.endpoint.asked == 6
    await bench.deriving.close()
    assert len(bench.tokens) == 0


async def test_a_flight_that_is_ended_closes_its_record(file: SealedFile, tmp_path: Path) -> None:
    bench = Bench(SealedStore(file), CLIENT, tmp_path)
    bench.endpoint.gate = asyncio.Event()
    waiting = asyncio.create_task(bench.token())
    while not bench.endpoint.asked:
        await asyncio.sleep(0.005)
    await bench.deriving.close()
    with pytest.raises((Refusal, asyncio.CancelledError)):
        await waiting
    assert [one["outcome"] for one in bench.audit.closed] == ["interrupted"]


# --- refresh tokens ---


async def test_a_new_refresh_token_is_stored_before_its_access_token_is_used(file: SealedFile, tmp_path: Path) -> None:
    bench = Bench(SealedStore(file), REFRESH, tmp_path)
    seen: list[str] = []
    first = await bench.token()
    seen.append(stored(file, "refresh_token"))
    assert seen == [bench.server.refresh]
    assert (stored(file, "note"), stored(file, "client_secret")) == ("kept", "secret-1")
    # Its own write is no reason to ask again, nor is that of another process.
    put(file, "refresh_token", "of-others")
    assert await bench.token() == first
    assert bench.endpoint.asked == 1
    # Another client secret is.
    put(file, "refresh_token", cast("str", bench.server.refresh))
    bench.server.secrets["crm"] = "secret-2"
    put(file, "client_secret", "secret-2")
    await bench.token()
    await bench.landed()
    assert await bench.token() == bench.server.given[1]
    assert stored(file, "refresh_token") == bench.server.refresh


async def test_a_token_holds_the_version_that_it_serves_for(file: SealedFile, tmp_path: Path) -> None:
    """Nothing of a version is at its end while a token serves for it, whichever version it was made of."""
    bench = Bench(SealedStore(file), REFRESH, tmp_path)
    await bench.token()

    def uses() -> tuple[int, int]:
        known = bench.secrets.known(REF)
        assert known is not None
        return known.before_live, known.live

    assert await bench.token()
    assert uses() == (0, 1)
    put(file, "refresh_token", "of-others")
    for _ in range(3):
        assert await bench.token() == bench.server.given[0]
        assert uses() == (0, 1)
    bench.clock.now_s += 200
    bench.server.refresh = "of-others"
    for _ in range(2):  # made of one version, and serving for the next, which it has written itself
        assert await bench.token() == bench.server.given[1]
    assert uses() == (0, 1)
    await bench.deriving.close()
    assert uses() == (0, 0)


async def test_a_conflict_is_read_once_more(file: SealedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another field is changed while the token is under way: it stays. Another token is: that one counts."""
    bench = Bench(SealedStore(file), REFRESH, tmp_path)
    bench.server.before = lambda: put(file, "note", "changed")
    await bench.token()
    assert stored(file, "refresh_token") == bench.server.refresh
    assert stored(file, "note") == "changed"

    def others() -> None:
        bench.server.before = lambda: None
        bench.server.secrets["crm"] = "secret-1"
        put(file, "refresh_token", "by-hand")

    bench.clock.now_s += 200
    bench.server.before = others
    answer = bench.server.answer

    def answered(seen: Seen) -> Any:
        found = answer(seen)
        if stored(file, "refresh_token") == "by-hand":
            bench.server.refresh = "by-hand"
        return found

    monkeypatch.setattr(bench.server, "answer", answered)
    found = await bench.token()
    assert found == bench.server.given[2]
    assert bench.server.forms[-1]["refresh_token"] == "by-hand"


async def test_what_cannot_be_stored_is_kept_and_not_used(
    file: SealedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SealedStore(file)
    bench = Bench(store, REFRESH, tmp_path)
    write = store.write

    async def down(*_: object, **__: object) -> None:
        raise SecretUnavailable("", "down")

    monkeypatch.setattr(store, "write", down)
    for _ in range(2):
        with pytest.raises(Refusal) as refused:
            await bench.token()
        assert refused.value.code is Code.SECRET_UNAVAILABLE
        bench.clock.now_s += 60
    assert bench.endpoint.asked == 1
    monkeypatch.setattr(store, "write", write)
    assert await bench.token() == bench.server.given[1]
    assert stored(file, "refresh_token") == bench.server.refresh
    assert bench.server.refused == []


async def test_a_real_vault_takes_it_by_check_and_set(bao: OpenBao, tmp_path: Path) -> None:
    bao.api(
        "POST",
        "secret/data/egress/crm",
        {"data": {"client_id": "crm", "client_secret": "secret-1", "refresh_token": "refresh-0", "nested": {"a": [1]}}},
    )
    bao.policy("rotating", 'path "secret/data/egress/crm" { capabilities = ["read", "update"] }')
    bao.policy("reading", 'path "secret/data/egress/crm" { capabilities = ["read"] }')
    for policy in ("reading", "rotating"):
        (tmp_path / "token").write_text(bao.new_token(policy))
        store = VaultStore(VaultConfig(addresses=(bao.address,), auth=TokenFileAuth(tmp_path / "token")))
        bench = Bench(store, REFRESH, tmp_path)
        try:
            if policy == "reading":
                with pytest.raises(Refusal) as refused:
                    await bench.token()
                assert refused.value.code is Code.SECRET_DENIED
                bao.put(
                    "egress/crm",
                    client_id="crm",
                    client_secret="secret-1",
                    refresh_token="refresh-0",
                    nested={"a": [1]},
                )
                continue
            changed: dict[str, Any] = {
                "client_id": "crm",
                "client_secret": "secret-1",
                "refresh_token": "refresh-0",
                "nested": {"a": [2]},
            }
            bench.server.before = functools.partial(bao.put, "egress/crm", **changed)
            assert await bench.token() == bench.server.given[0]
            assert bao.api("GET", "secret/data/egress/crm")["data"]["data"] == {
                "client_id": "crm", "client_secret": "secret-1", "refresh_token": bench.server.refresh, "nested": {"a": [2]},
            }  # fmt: skip
        finally:
            await bench.deriving.close()
            await store.close()
