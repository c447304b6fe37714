"""One login for all workers: over real channels, at a scripted Vault."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import math
import socket
from collections.abc import AsyncIterator

import pytest

from ostiary.workers.channel import Channel
from ostiary.workers.login import SharedLogin, asking
from tests.harness.canaries import canary
from tests.harness.scripted_vault import scripted, send
from vault.hashicorp.config import AppRoleAuth, VaultConfig
from vault.hashicorp.handed import Ask, Handed, HandedOn
from vault.secret import Secret
from vault.store import SecretDenied, SecretUnavailable


class Vault:
    """Logs in until it is told not to."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.revoked: list[str] = []
        self.status = 200

    def __call__(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        if handler.path.endswith("/login"):
            if self.status != 200:
                send(handler, self.status, {"errors": ["not today"]})
                return
            self.tokens.append(canary())
            send(handler, 200, {"auth": {"client_token": self.tokens[-1], "lease_duration": 3600, "renewable": True}})
        elif handler.path.endswith("/revoke-self"):
            self.revoked.append(handler.headers["X-Vault-Token"])
            send(handler, 200, {})
        else:
            send(handler, 404, {"errors": []})


@contextlib.asynccontextmanager
async def worker(shared: SharedLogin | None) -> AsyncIterator[tuple[Ask, Channel]]:
    ends = socket.socketpair()
    ours, theirs = Channel({"login": shared.answer} if shared is not None else {}), Channel({})
    await ours.open(ends[0])
    await theirs.open(ends[1])
    running = [asyncio.ensure_future(one.run()) for one in (ours, theirs)]
    yield asking(theirs), ours
    ours.close()
    theirs.close()
    await asyncio.gather(*running)


async def test_many_that_doubt_cause_one_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.hashicorp.login.YOUNG_S", 0.0)  # a young one is only replaced if Vault knows it no more
    vault = Vault()
    with scripted(vault) as (address, _):
        shared = SharedLogin(VaultConfig((address,), AppRoleAuth(Secret("r"))))
        async with worker(shared) as (one, _), worker(shared) as (other, _):
            first, same = await asyncio.gather(one(0, False), other(0, False))
            assert (first.number, same.number, len(vault.tokens)) == (1, 1, 1)
            assert first.token.reveal() == same.token.reveal() == vault.tokens[0]
            assert 3500 < first.ttl_s <= 3600
            assert vault.tokens[0] not in repr(first)
            found = await asyncio.gather(*(ask(1, True) for ask in (one, other) * 10))
            assert {handed.number for handed in found} == {2}
            late = await other(1, True)
            assert (late.number, late.token.reveal(), len(vault.tokens)) == (2, vault.tokens[1], 2)
            assert (await one(2, False)).number == 2
        await shared.close()
    assert sorted(vault.revoked) == sorted(vault.tokens)


@pytest.mark.parametrize(("status", "error"), [(403, SecretDenied), (500, SecretUnavailable)])
async def test_there_is_no_login(status: int, error: type[SecretDenied | SecretUnavailable]) -> None:
    vault = Vault()
    vault.status = status
    with scripted(vault) as (address, _):
        shared = SharedLogin(VaultConfig((address,), AppRoleAuth(Secret("r"))))
        async with worker(shared) as (ask, _):
            with pytest.raises(error) as met:
                await ask(0, False)
            assert "not today" in met.value.reason
            vault.status = 200
            async with asyncio.timeout(30):
                while True:
                    with contextlib.suppress(SecretDenied, SecretUnavailable):
                        assert (await ask(0, False)).number == 1
                        break
                    await asyncio.sleep(0.05)
        await shared.close()
    assert vault.revoked == vault.tokens


async def test_the_supervisor_gives_none() -> None:
    async with worker(None) as (ask, ours):
        with pytest.raises(SecretUnavailable, match="NotDone"):
            await ask(0, False)
        ours.close()
        with pytest.raises(SecretUnavailable, match="ChannelClosed"):
            await ask(0, False)


async def test_a_doubt_that_comes_while_it_asks_is_told() -> None:
    asked: list[tuple[int, bool]] = []

    async def ask(known: int, doubted: bool) -> Handed:
        asked.append((known, doubted))
        if len(asked) == 2:
            method.doubt()
        return Handed(2 if doubted else 1, Secret("t2" if doubted else "t1"), math.inf)

    method = HandedOn(ask)
    assert (await method.log_in()).token.reveal() == "t1"
    issued = await method.log_in()
    assert (issued.token.reveal(), issued.own, issued.renewable) == ("t2", False, False)
    assert asked == [(0, False), (1, False), (1, True)]
