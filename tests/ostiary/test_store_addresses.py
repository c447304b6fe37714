"""What may not be dialled follows the stores when their names move."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from addons.clock import SystemClock
from addons.egress import EgressRules, SystemResolver, Vetted, destination, networks
from addons.exchange import Authority
from addons.refusal import Refusal
from ostiary.settings import load_all
from ostiary.settings.model import Settings
from ostiary.store_addresses import KEPT_S, MOST, OwnListener, StoreAddresses


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "policy.yaml").write_text("workloads: {a: {proofs: {any: true}}}\n")
    (tmp_path / "ostiary.yaml").write_text(
        """listen: [{name: a, bind: "127.0.0.1:0", workload: a}]
ca: {dir: ca}
audit: {sinks: [{file: audit.jsonl}]}
policies: [policy.yaml]
vault: {addresses: ["https://vault.test:8200"], auth: {method: token_file, file: token}}
"""
    )
    return load_all(tmp_path / "ostiary.yaml", {})[0]


class Names:
    """DNS that moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[str] | None = ["10.0.0.1"]
        loop = asyncio.get_running_loop()

        async def asked(host: str, port: int, **_: Any) -> list[Any]:
            if self.answers is None:
                raise OSError("no such name")
            return [(0, 0, 0, "", (address, port)) for address in self.answers]

        monkeypatch.setattr(loop, "getaddrinfo", asked, raising=False)


async def test_g60_a_vault_that_moves_is_refused_where_it_is_now(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, now_s, peers = Names(monkeypatch), [0.0], [("10.0.0.9", 8200)]
    guard = StoreAddresses(settings, (), lambda: tuple(peers), lambda: now_s[0])
    rules = EgressRules(networks(["10.0.0.0/8"]), {}, guard.forbidden)
    vetted: Vetted = {}

    async def refused(address: str, port: int = 8200) -> bool:
        authority = Authority(address, port)
        try:
            await destination(authority, rules, None, rules.allow, SystemResolver(SystemClock()), vetted, deadline_s=1)
        except Refusal:
            return True
        return False

    await guard.look_up()
    # By DNS, and by where its connections lead; another port of the same host is another service.
    assert [await refused(f"10.0.0.{host}") for host in (1, 2, 9)] == [True, False, True]
    assert not await refused("10.0.0.1", 443)
    names.answers = ["10.0.0.2"]
    peers.clear()
    await guard.look_up()
    # What was vetted before counts no more, and who held the name may still be Vault.
    assert [await refused(f"10.0.0.{host}") for host in (1, 2, 9)] == [True, True, True]
    names.answers = None
    await guard.look_up()
    assert await refused("10.0.0.2"), "a name that cannot be resolved keeps what was known"
    names.answers = ["10.0.0.3"]
    now_s[0] = KEPT_S + 1
    await guard.look_up()
    assert [await refused(f"10.0.0.{host}") for host in (1, 2, 3)] == [False, False, True]
    # Bounded, however many addresses a name is told to have.
    names.answers = [str(ipaddress.ip_address("10.1.0.0") + number) for number in range(MOST + 50)]
    await guard.look_up()
    assert len(guard.forbidden.sockets) == MOST


async def test_it_goes_on_looking_and_ends(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    monkeypatch.setattr("ostiary.store_addresses.LOOKUP_S", 0.01)
    guard = StoreAddresses(settings)
    await guard.start()
    before = guard.forbidden.generation
    names.answers = ["10.0.0.7"]
    async with asyncio.timeout(10):
        while ("10.0.0.7", 8200) not in guard.forbidden.sockets:
            await asyncio.sleep(0.01)
    assert guard.forbidden.generation > before
    await guard.stop()


async def test_a_store_that_is_a_listener_of_ours(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as ours:
        assert settings.vault is not None
        port = ours.getsockname()[1]
        for host in ("127.0.0.1", "localhost", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]", "moved.test"):
            if host == "moved.test":
                Names(monkeypatch).answers = ["10.0.0.1", "127.0.0.1"]
            own = replace(settings, vault=replace(settings.vault, addresses=(f"http://{host}:{port}",)))
            with pytest.raises(OwnListener, match="one of our own listeners"):
                await StoreAddresses(own, (ours,)).refuse_own()
        # Another address or port of this machine is another service.
        for address in (f"http://127.0.0.2:{port}", f"http://127.0.0.1:{port - 1}", "http://[::1]:1"):
            other = replace(settings, vault=replace(settings.vault, addresses=(address,)))
            await StoreAddresses(other, (ours,)).refuse_own()
