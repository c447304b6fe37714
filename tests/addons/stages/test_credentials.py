"""The stage that opens records and secrets, where its request ends while it waits; and what is counted of bodies meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from addons import bodies
from addons.bodies import HeldBody
from addons.credentials import Openings
from addons.exchange import Authority, Connection, Exchange, Listener
from addons.head import HeadersToSend, RequestHead
from addons.injection.content import LARGE_BYTES
from addons.stages import credentials
from addons.stages.credentials import CredentialStage
from policies import Grant


class Audit:
    """Records that have to be waited for, one gate each."""

    def __init__(self, *, waits: bool) -> None:
        self.waits = waits
        self.gates: list[asyncio.Event] = []
        self.open_ones: list[str] = []
        self.closed: list[str] = []

    def open_now(self, fields: dict[str, Any]) -> str | None:
        if self.waits:
            return None
        self.open_ones.append(fields["secret"])
        return str(fields["secret"])

    async def open(self, fields: dict[str, Any]) -> str:
        self.gates.append(gate := asyncio.Event())
        await gate.wait()
        self.open_ones.append(fields["secret"])
        return str(fields["secret"])

    def close(self, record: str, _ended: object) -> None:
        self.closed.append(record)

    @property
    def left_open(self) -> list[str]:
        return [one for one in self.open_ones if one not in self.closed]


class Stage:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, waits: bool) -> None:
        self.read, self.opened = asyncio.Event(), 0
        self.audit = Audit(waits=waits)
        secrets = [SimpleNamespace(name=name, version="1", cache="miss", lease="") for name in ("one", "two")]
        sealed = SimpleNamespace(secrets=tuple(secrets))

        async def seal(_needs: object, _source: object, _workload: str) -> object:
            await self.read.wait()
            return sealed

        def unseal(*_: object) -> object:
            self.opened += 1
            return SimpleNamespace()

        self.threads: list[int] = []

        def ready(*arguments: Any, **_: Any) -> HeadersToSend:
            self.threads.append(threading.get_ident())
            return HeadersToSend(b"/", (), arguments[-1])

        monkeypatch.setattr(credentials, "seal", seal)
        monkeypatch.setattr(credentials, "seal_now", lambda *_: None)
        monkeypatch.setattr(credentials, "unseal", unseal)
        monkeypatch.setattr(credentials, "head_to_send", ready)
        monkeypatch.setattr(credentials, "reads_body", lambda *_: False)
        monkeypatch.setattr(credentials, "applicable", lambda *_: ())
        connection = Connection("c", Listener("sidecar", "billing"), "192.0.2.1")
        head = RequestHead("POST", b"/", (), http2=False)
        self.exchange = Exchange("id", connection, cast("Any", None), head, 0.0)
        route = SimpleNamespace(name="api")
        self.exchange._facts[Grant] = SimpleNamespace(route=route, credential="spec", workload="billing")
        self.exchange.put(Authority("api.test", 443))
        plan = SimpleNamespace(
            plan=SimpleNamespace(body=()),
            source=None,
            client_cert=None,
            always=False,
            bare=False,
            signing=None,
            verifying=None,
            needs=lambda *_: None,
            watch=lambda *_: None,
        )
        parts = SimpleNamespace(
            audit=self.audit, secrets=None, buffers=None, clock=SimpleNamespace(monotonic_s=lambda: 0.0)
        )
        registry = SimpleNamespace(exchange=lambda _: self.exchange)
        self.stage = CredentialStage(
            cast("Any", parts), cast("Any", registry), cast("Any", SimpleNamespace(of=lambda *_: plan))
        )
        self.held = HeldBody(100)
        self.held.add(b"held body")
        self.exchange.put(self.held)

    def run(self) -> asyncio.Task[None]:
        waits = self.stage.request(cast("Any", None))
        assert waits is not None
        return asyncio.create_task(waits)

    def settle(self) -> None:
        """As the boundary does it."""
        self.exchange.settled = True
        self.exchange.connection.exchanges.discard(self.exchange)
        for record in (self.exchange.find(Openings) or Openings(())).records:
            self.audit.close(cast("Any", record), {})


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


type Make = Callable[..., Stage]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    return lambda *, waits: Stage(monkeypatch, waits=waits)


async def test_a_request_that_ended_while_the_store_was_asked_opens_nothing(make: Make) -> None:
    """Its total time is up, say: nothing cancels the hook then."""
    stage = make(waits=False)
    task = stage.run()
    await turns()
    stage.settle()
    stage.read.set()
    await turns()
    assert task.done()
    assert stage.audit.open_ones == []
    assert stage.opened == 0
    assert stage.exchange.find(HeadersToSend) is None
    with pytest.raises(asyncio.CancelledError):
        task.result()


@pytest.mark.parametrize("cancelled", [True, False])
@pytest.mark.parametrize("ready", [0, 1])
async def test_no_record_stays_open_of_a_request_that_ended_while_one_was_written(
    make: Make, ready: int, cancelled: bool
) -> None:
    stage = make(waits=True)
    stage.read.set()
    task = stage.run()
    await turns()
    for number in range(ready):
        stage.audit.gates[number].set()
        await turns()
    assert len(stage.audit.gates) == ready + 1
    stage.settle()
    if cancelled:
        task.cancel()
    else:
        stage.audit.gates[ready].set()
    await turns()
    assert task.done()
    assert stage.audit.left_open == []
    assert stage.opened == 0
    assert stage.exchange.find(HeadersToSend) is None
    assert len(stage.audit.gates) == ready + 1, "no further record is begun"


@pytest.mark.parametrize(("size", "beside"), [(LARGE_BYTES, False), (LARGE_BYTES + 1, True)])
async def test_a_large_body_is_hashed_and_signed_beside_the_loop(make: Make, size: int, beside: bool) -> None:
    stage = make(waits=False)
    stage.read.set()
    stage.exchange.forget(HeldBody)
    held = HeldBody(size)
    held.add(b"x" * size)
    stage.exchange.put(held)
    await stage.run()
    assert (stage.threads != [threading.get_ident()]) is beside
    assert stage.exchange.payload.hexdigest() == hashlib.sha256(b"x" * size).hexdigest()
    ready = stage.exchange.find(HeadersToSend)
    assert ready is not None
    assert ready.body == b"x" * size


async def test_a_request_that_ended_while_a_large_body_was_signed_hands_on_nothing(make: Make) -> None:
    stage = make(waits=False)
    stage.read.set()
    stage.exchange.forget(HeldBody)
    held = HeldBody(LARGE_BYTES * 2)
    held.add(b"x" * LARGE_BYTES * 2)
    stage.exchange.put(held)
    task = stage.run()
    while not stage.audit.open_ones:
        await asyncio.sleep(0)
    stage.settle()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stage.exchange.find(HeadersToSend) is None
    assert stage.audit.left_open == []


async def test_a_held_body_is_counted_until_the_engine_takes_it(make: Make) -> None:
    stage = make(waits=True)
    connection = stage.exchange.connection
    assert bodies.held_bytes(connection) == 9
    task = stage.run()
    await turns()
    assert bodies.held_bytes(connection) == 9, "while the store is asked"
    stage.read.set()
    await turns()
    for _ in range(2):
        assert bodies.held_bytes(connection) == 9, "while a record is written"
        stage.audit.gates[-1].set()
        await turns()
    await task
    assert bodies.held_bytes(connection) == 9, "while an upstream is reached"
    assert stage.exchange.find(HeldBody) is None
    ready = stage.exchange.forget(HeadersToSend)
    assert ready is not None
    assert ready.body == b"held body"
    assert bodies.held_bytes(connection) == 0
