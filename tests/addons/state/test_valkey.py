"""The Valkey store: login, TLS, eviction, and a server that dies, hangs, and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from addons.state.guarded import Guarded
from addons.state.store import StateFull, StateStore, StateUnavailable
from addons.state.valkey import Server, ValkeyStore
from tests.addons.state.conftest import Heard, server_of
from tests.harness.canaries import canary
from tests.harness.pki import Pki
from tests.harness.valkey import Valkey, valkey_server
from vault.secret import Secret


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Valkey]:
    """A server that this test may kill."""
    with valkey_server(tmp_path / "own") as server:
        yield server
        server.go_on()


async def reason(store: StateStore) -> str:
    with pytest.raises(StateUnavailable) as met:
        await store.probe()
    assert met.value.__cause__ is None
    assert met.value.__context__ is None or met.value.__suppress_context__
    return met.value.reason


async def test_login_by_password_and_no_password_in_errors(tmp_path: Path) -> None:
    password, wrong = canary(), canary()
    with valkey_server(tmp_path / "v", password=password) as server:
        right = ValkeyStore(server_of(server, password=Secret(password)), deadline_s=5)
        await right.probe()
        assert await right.once("nonce:a", 60)
        told = [repr(right), repr(vars(right)), repr(right._client), repr(right._client.connection_pool)]
        await right.close()
        for given in (Secret(wrong), None):
            store = ValkeyStore(server_of(server, password=given), deadline_s=5)
            told.append(await reason(store))
            assert "login" in told[-1]
            with pytest.raises(StateUnavailable):
                await store.once("nonce:b", 60)
            await store.close()
        assert not any(password in text or wrong in text for text in told)


async def test_a_user_who_may_too_little_is_told_by_a_code_alone(own: Valkey) -> None:
    password = canary()
    admin = ValkeyStore(server_of(own), deadline_s=5)
    await admin._client.acl_setuser("poor", enabled=True, passwords=[f"+{password}"], categories=["-@all"], keys=["*"])
    await admin.close()
    store = ValkeyStore(server_of(own, username="poor", password=Secret(password)), deadline_s=5)
    with pytest.raises(StateUnavailable) as met:
        await store.once("nonce:secret-looking", 60)
    assert "secret-looking" not in met.value.reason
    assert password not in met.value.reason
    await store.close()


@contextlib.asynccontextmanager
async def behind_tls(server: Valkey, pki: Pki, name: str) -> AsyncIterator[int]:
    """The port of a TLS end before a server, which was built without TLS of its own."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", server.port)
        with contextlib.suppress(OSError):
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    end = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=pki.context(name))
    async with end:
        yield end.sockets[0].getsockname()[1]


async def test_the_user_of_the_reference_page_may_just_enough(own: Valkey) -> None:
    page = (Path(__file__).parents[3] / "docs/reference/state.md").read_text()
    (rights,) = re.findall(r"^user ostiary on >\S+ (.*)$", page, re.MULTILINE)
    password = canary()
    admin = ValkeyStore(server_of(own), deadline_s=5)
    await admin._client.execute_command("ACL", "SETUSER", "ostiary", "on", f">{password}", *rights.split())  # type: ignore[no-untyped-call]  # the client has no type for it
    await admin.close()
    given = {"username": "ostiary", "password": Secret(password)}
    store = ValkeyStore(Server("127.0.0.1", own.port, database=1, **given), deadline_s=5)  # type: ignore[arg-type]  # as the fields say
    await store.probe()
    assert await store.once("nonce:a", 60)
    assert (await store.add("quota:a", 1, 60, 5)).added
    assert (await store.add("quota:a", -1, 60)).added
    assert (await store.take("rate:a", 1, 1, 1)).allowed
    version = await store.put("kill:a", b"x", ttl_s=60, expect=0)
    assert (await store.items()).items[0].version == version
    assert await store.get("kill:a")
    assert await store.changes("")
    assert await store.delete("kill:a", expect=version)
    await store.close()
    other = ValkeyStore(server_of(own, **given), deadline_s=5)
    with pytest.raises(StateUnavailable):
        await other.once("nonce:a", 60)
    await other.close()


async def test_tls_proves_the_server(valkey: Valkey, pki: Pki) -> None:
    prefix = valkey.fresh_prefix()
    async with behind_tls(valkey, pki, "localhost") as port:
        good = ValkeyStore(Server("localhost", port, tls=True, ca_file=pki.ca_file, prefix=prefix), deadline_s=5)
        await good.probe()
        assert await good.once("nonce:a", 60)
        await good.close()
        unknown = ValkeyStore(Server("localhost", port, tls=True, prefix=prefix), deadline_s=5)
        assert "out of reach" in await reason(unknown)
        await unknown.close()
        clear = ValkeyStore(Server("localhost", port, prefix=prefix), deadline_s=1)
        await reason(clear)
        await clear.close()
    async with behind_tls(valkey, pki, "other.test") as port:
        other = ValkeyStore(Server("localhost", port, tls=True, ca_file=pki.ca_file, prefix=prefix), deadline_s=5)
        assert "out of reach" in await reason(other)
        await other.close()


async def test_a_server_that_evicts_is_refused_and_one_that_is_full_forgets_nothing(tmp_path: Path) -> None:
    with valkey_server(tmp_path / "a", "--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru") as server:
        store = ValkeyStore(server_of(server), deadline_s=5)
        assert "noeviction" in await reason(store)
        await store.close()
    with valkey_server(tmp_path / "b", "--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        store = ValkeyStore(server_of(server), deadline_s=5)
        await store.probe()
        told = 0
        with pytest.raises(StateFull):
            while told < 100_000:
                assert await store.once(f"nonce:{told}:{'x' * 490}", 60)
                told += 1
        assert told > 100
        for n in range(0, told, 50):
            # Refused as used or as full; never let through.
            try:
                assert not await store.once(f"nonce:{n}:{'x' * 490}", 60)
            except StateFull:
                continue
        await store.close()


async def test_l1_killed_in_the_middle_and_back(own: Valkey) -> None:
    heard = Heard()
    store = Guarded(ValkeyStore(server_of(own), deadline_s=0.25), heard)
    assert await store.once("nonce:a", 60)
    running = [asyncio.create_task(store.add("quota:a", 1, 60, limit=100)) for _ in range(30)]
    await asyncio.sleep(0)
    own.kill()
    ended = await asyncio.gather(*running, return_exceptions=True)
    assert all(isinstance(one, StateUnavailable) for one in ended if isinstance(one, BaseException))
    for _ in range(10):
        with pytest.raises(StateUnavailable):
            await store.once("nonce:b", 60)
    assert not heard.ups[-1]
    assert ("once", "unavailable") in heard.calls
    own.start()
    began_s = time.monotonic()
    while True:
        try:
            assert await store.once("nonce:c", 60)
            break
        except StateUnavailable:
            assert time.monotonic() - began_s < 5
            await asyncio.sleep(0.02)
    assert heard.ups[-1:] == [True]
    await store.close()


async def test_l1_a_hanging_server_costs_a_few_deadlines_and_then_nothing(own: Valkey) -> None:
    store = Guarded(ValkeyStore(server_of(own), deadline_s=0.25), Heard())
    await store.probe()
    own.hang()
    spent: list[float] = []
    for n in range(40):
        began_s = time.monotonic()
        with pytest.raises(StateUnavailable):
            await store.once(f"nonce:{n}", 60)
        spent.append(time.monotonic() - began_s)
    assert max(spent) < 1.0
    assert sum(one > 0.1 for one in spent) <= 5, "each call waited for its deadline"
    own.go_on()
    began_s = time.monotonic()
    while True:
        try:
            await store.probe()
            break
        except StateUnavailable:
            assert time.monotonic() - began_s < 5
            await asyncio.sleep(0.02)
    await store.close()


async def test_l1_an_answer_that_comes_late_is_given_to_nobody_else(own: Valkey) -> None:
    """After a hang, connections are where calls left them; an answer must never reach another call."""
    store = ValkeyStore(server_of(own), deadline_s=0.3)
    for n in range(20):
        await store.put(f"kill:{n}", b"%d" % n)
    own.hang()
    hung = await asyncio.gather(*(store.get(f"kill:{n}") for n in range(20)), return_exceptions=True)
    assert all(isinstance(one, StateUnavailable) for one in hung)
    cancelled = [asyncio.create_task(store.get(f"kill:{n}")) for n in range(10)]
    await asyncio.sleep(0.05)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)
    own.go_on()
    for _ in range(5):
        found = await asyncio.gather(*(store.get(f"kill:{n}") for n in range(20)))
        assert [one.value if one else None for one in found] == [b"%d" % n for n in range(20)]
    await store.close()


async def test_two_prefixes_on_one_server_do_not_meet(valkey: Valkey) -> None:
    one, other = (ValkeyStore(server_of(valkey), deadline_s=5) for _ in range(2))
    await one.put("kill:a", b"x")
    assert await one.once("nonce:a", 60)
    assert await other.get("kill:a") is None
    assert await other.once("nonce:a", 60)
    assert (await other.items()).items == ()
    await one.close()
    await other.close()
