"""Several addresses of one Vault, and a Vault that is ill: who is asked, how often, and what never happens."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.harness.scripted_vault import scripted, send
from vault.hashicorp.addresses import PAUSE_MOST_S, TRIP, Addresses, origin_of
from vault.hashicorp.config import AppRoleAuth, TokenAuth, VaultAuth, VaultConfig
from vault.hashicorp.store import VaultStore
from vault.secret import Secret
from vault.store import SecretRef, SecretUnavailable

REF = SecretRef("secret/egress/a", kv=2)
TOKEN = TokenAuth(Secret("cnry-token"))
GOOD = {"data": {"data": {"key": "x"}, "metadata": {"version": 4}}, "auth": None}
type Script = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextlib.asynccontextmanager
async def store(*addresses: str, auth: VaultAuth = TOKEN, **given: Any) -> AsyncIterator[VaultStore]:
    made = VaultStore(VaultConfig(addresses, auth, **given))
    try:
        yield made
    finally:
        await made.close()


def good(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, 200, {"data": {"ttl": 0}} if handler.path.endswith("lookup-self") else GOOD)


def status(code: int, **headers: str) -> Script:
    return lambda handler: send(handler, code, {"errors": []}, **headers)


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """An address at which nobody listens, and nobody else will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextlib.contextmanager
def silent(scheme: str = "http") -> Iterator[str]:
    """A server that takes connections and never says a word: half open."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"


# --- the choice ---


def test_origins() -> None:
    assert origin_of("https://vault.test/v1/x") == ("https", "vault.test", 443)
    assert origin_of("http://[::1]:8200") == ("http", "::1", 8200)
    for text in ("/v1/x", "https://", "https://user:cnry@vault.test/", "https://vault.test:x/", "ftp://vault.test"):
        assert origin_of(text) is None


def test_the_breaker() -> None:
    addresses = Addresses(("http://a.test", "http://b.test"), lambda: 0.0)
    assert [addresses.choose((), 0), addresses.choose({0}, 0), addresses.choose({0, 1}, 0)] == [0, 1, None]
    for _ in range(TRIP):
        addresses.failed(0, 0)
    # One that fails is not asked while another is left.
    assert addresses.choose((), 0) == 1
    assert addresses.choose({1}, 0) is None
    for _ in range(TRIP):
        addresses.failed(1, 0)
    assert addresses.choose((), 0.1) is None
    assert 0 < addresses.wait_s(0.1) <= PAUSE_MOST_S
    # One probe when it is due, and the next one waits for what it finds; readiness asks all the same.
    assert addresses.choose((), 10) is not None
    second = addresses.choose((), 10)
    assert second is not None
    assert addresses.choose((), 10) is None
    assert addresses.choose((), 10, anyhow=True) is not None
    addresses.worked(1)
    assert addresses.choose((), 10) == 1


def test_a_hint_adds_no_address() -> None:
    addresses = Addresses(("https://a.test:8200", "https://b.test:8200", "https://c.test:8200"))
    for location in (
        None,
        "",
        "https://evil.test:8200/v1/x",
        "http://c.test:8200/",
        "https://c.test/",
        "//c.test:8200",
    ):
        addresses.hinted(location)
        assert addresses.choose((), 0) == 0
    addresses.hinted("https://c.test:8200/v1/secret/data/a?x")
    assert addresses.choose((), 0) == 2


# --- servers ---


async def test_v2_a_standby_leads_to_the_active_node_and_nowhere_else() -> None:
    with (
        scripted(good) as (active, served),
        scripted(good) as (foreign, stolen),
        scripted(status(473)) as (other, _),
    ):
        with (
            scripted(status(307, Location=f"{active}/v1/secret/data/egress/a")) as (standby, asked),
            scripted(status(307, Location=f"{foreign}/v1/secret/data/egress/a")) as (lying, lied),
        ):
            # The hint spares the one in between.
            async with store(standby, other, active) as vault:
                assert (await vault.fetch(REF)).version == "4"
                before = len(asked)
                await vault.fetch(REF)
                assert len(asked) == before, "the address that worked is asked first"
            async with store(lying, other) as vault:
                with pytest.raises(SecretUnavailable):
                    await vault.fetch(REF)
            async with store(lying) as vault:
                with pytest.raises(SecretUnavailable, match="did not take the login"):
                    await vault.start()
        assert served
        assert lied
        assert stolen == []


async def test_v4_the_third_address_is_asked_within_the_deadline() -> None:
    with refusing() as nobody, silent() as quiet, scripted(good) as (active, _):
        async with store(nobody, quiet, active, deadline_s=1.6) as vault:
            began_s = time.monotonic()
            assert (await vault.fetch(REF)).version == "4"
            assert time.monotonic() - began_s < 5
            began_s = time.monotonic()
            await vault.fetch(REF)
            assert time.monotonic() - began_s < 0.6, "the silent one is not asked again"


async def test_v4_an_outage_costs_vault_one_probe_and_ends_at_once() -> None:
    ill, lock = [True], threading.Lock()
    asked: list[str] = []

    def script(handler: http.server.BaseHTTPRequestHandler) -> None:
        with lock:
            asked.append(handler.path)
        if "health" in handler.path:
            send(handler, 503 if ill[0] else 200, {"sealed": ill[0]})
        elif ill[0] and not handler.path.endswith("lookup-self"):
            send(handler, 503, {"errors": ["Vault is sealed"]})
        else:
            good(handler)

    with scripted(script) as (address, _):
        async with store(address) as vault:
            await vault.start()
            refs = [SecretRef(f"secret/egress/{number}", kv=2) for number in range(40)]
            for ref in refs[:TRIP]:
                with pytest.raises(SecretUnavailable):
                    await vault.fetch(ref)
            before = len(asked)
            found = await asyncio.gather(*map(vault.fetch, refs), return_exceptions=True)
            assert all(isinstance(one, SecretUnavailable) for one in found)
            assert {"asked again in a moment" in str(one) for one in found} >= {True}
            assert len(asked) - before <= 2
            ill[0] = False
            # Readiness asks whatever the breaker says, and what it finds counts.
            await vault.probe()
            assert (await vault.fetch(REF)).version == "4"


async def test_v4_the_breaker_closes_by_itself() -> None:
    with refusing() as nobody, scripted(good) as (address, _):
        async with store(address) as vault:
            await vault.start()
            vault._calls._config = VaultConfig((nobody,), TOKEN)
            for _ in range(TRIP + 1):
                with pytest.raises(SecretUnavailable):
                    await vault.fetch(REF)
            vault._calls._config = VaultConfig((address,), TOKEN)
            ends_s = time.monotonic() + 15
            while True:
                with contextlib.suppress(SecretUnavailable):
                    assert (await vault.fetch(REF)).version == "4"
                    break
                assert time.monotonic() < ends_s
                await asyncio.sleep(0.05)


async def test_threads_that_are_busy_are_no_outage() -> None:
    slow = threading.Event()

    def script(handler: http.server.BaseHTTPRequestHandler) -> None:
        if not handler.path.endswith("lookup-self"):
            slow.wait(0.5)
        good(handler)

    with scripted(script) as (address, _):
        async with store(address, threads=1, deadline_s=0.9) as vault:
            await vault.start()
            found = await asyncio.gather(*(vault.fetch(REF) for _ in range(12)), return_exceptions=True)
            assert any(isinstance(one, SecretUnavailable) for one in found)
            slow.set()
            assert (await vault.fetch(REF)).version == "4"


OPENING = "Waiting for the primary to upgrade from non-versioned to versioned data. This backend will be unavailable for a brief period and will resume service when the primary is finished."  # fmt: skip


@pytest.mark.parametrize(
    ("code", "said"), [(412, "required index state not present"), (400, OPENING)], ids=["lags", "opens"]
)
@pytest.mark.parametrize(("times", "works"), [(2, True), (99, False)])
async def test_v2_a_node_that_is_not_ready_is_asked_again_and_not_for_ever(
    code: int, said: str, times: int, works: bool
) -> None:
    left = [times]
    seen: list[str] = []

    def script(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("lookup-self") or not left[0]:
            return good(handler)
        seen.append(handler.path)
        left[0] -= 1
        return send(handler, code, {"errors": [said]})

    with scripted(script) as (address, _):
        async with store(address) as vault:
            if works:
                assert (await vault.fetch(REF)).version == "4"
                assert len(seen) == 2
            else:
                with pytest.raises(SecretUnavailable, match=str(code)):
                    await vault.fetch(REF)
                assert len(seen) == 4


_HEAD = b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 500\r\n\r\n"


@pytest.mark.parametrize("cut", [b"", b"HTTP/1.1 200 O", _HEAD[:35], _HEAD, _HEAD + b'{"data": {"da'])
async def test_an_answer_that_is_cut_is_an_outage_and_a_login_is_not_sent_twice(cut: bytes) -> None:
    def script(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(cut)
        handler.close_connection = True

    with scripted(script) as (address, seen):
        async with store(address, auth=AppRoleAuth(Secret("r"))) as vault:
            with pytest.raises(SecretUnavailable, match="cannot be reached"):
                await vault.fetch(REF)
            assert len(seen) == 1
    with scripted(lambda handler: (good if handler.path.endswith("lookup-self") else script)(handler)) as (
        address,
        seen,
    ):
        async with store(address) as vault:
            with pytest.raises(SecretUnavailable, match=r"no connection|was cut"):
                await vault.fetch(REF)
            # A read may be asked again; what was begun is not.
            assert len(seen) - 1 == (1 if len(cut) > 12 else 2)


async def test_a_kept_connection_that_vault_has_closed_is_no_outage() -> None:
    number = [0]

    def script(handler: http.server.BaseHTTPRequestHandler) -> None:
        number[0] += 1
        if number[0] == 2:
            handler.close_connection = True  # as a server does that closes while the request is on its way
            return
        good(handler)

    with scripted(script) as (address, _):
        async with store(address) as vault:
            assert (await vault.fetch(REF)).version == "4"
    assert number[0] == 3


async def test_v3_a_handshake_that_never_comes() -> None:
    with silent("https") as quiet:
        async with store(quiet, deadline_s=0.4, threads=1) as vault:
            began_s = time.monotonic()
            for _ in range(2):
                with pytest.raises(SecretUnavailable):
                    await vault.fetch(REF)
            assert time.monotonic() - began_s < 5


async def test_the_addresses_that_connections_lead_to_are_told() -> None:
    with scripted(good) as (address, _):
        port = int(address.rpartition(":")[2])
        async with store(address.replace("127.0.0.1", "localhost")) as vault:
            assert vault.peers() == ()
            await vault.fetch(REF)
            assert vault.peers() == (("127.0.0.1", port),)
