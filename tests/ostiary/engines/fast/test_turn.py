"""One request and its answer, step by step, with hooks that wait for as long as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from addons.bodies import HeldBody as WholeBody
from addons.credentials import Openings
from addons.edge import HeadLimits
from addons.egress import Destination
from addons.exchange import Authority, Listener, Tunnel, WorkloadIdentity
from addons.head import HeadersToSend
from addons.parts import Deadlines
from addons.refusal import Refusal, answer
from ostiary.engines.fast.caller import Caller
from ostiary.engines.fast.link import Link
from ostiary.engines.fast.pool import Pool
from ostiary.engines.held import HeldBodies
from ostiary.engines.mitm.dialling import Bound, PoolKey
from policies import Grant
from tests.ostiary.engines.fast.wires import Wire

AUTHORITY = Authority("api.test", 443)
DESTINATION = Destination(AUTHORITY, (("192.0.2.1", 443),))
BOUND = Bound(DESTINATION, PoolKey("billing", AUTHORITY, DESTINATION.addresses, None), 1.0)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ANSWERED = b"ok"


class Exchange:
    """What the steps know of a request whose stages have run."""

    def __init__(self) -> None:
        self.refused: Any = None
        self.settled = self.streaming = self.switched = self.upgrade = self.rejected = self.replayable = False
        self.reframed, self.redactions = False, 0
        self.dialled_s: float | None = None
        self.retries = 0
        self.reframed = False
        self.redactions = 0
        self.rewrite: Any = None
        self.head = SimpleNamespace(method="POST", fields=())
        none = SimpleNamespace(connect_s=None, first_byte_s=None, idle_s=None, total_s=None)
        self.facts: dict[type[Any], Any] = {
            HeadersToSend: HeadersToSend(b"/v1", ((b"Host", b"api.test"),)),
            Grant: SimpleNamespace(route=SimpleNamespace(timeouts=none)),
        }

    def ask(self, kind: type[Any]) -> Any:
        return self.facts[kind]

    def find(self, kind: type[Any]) -> Any:
        return self.facts.get(kind)

    def put(self, fact: Any) -> None:
        self.facts[type(fact)] = fact

    def forget(self, kind: type[Any]) -> Any:
        return self.facts.pop(kind, None)


class Engine:
    """Runs hooks that wait where a gate stands, and dials wires."""

    header_timeout_s = idle_s = 60.0

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.hooks: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.refusals: dict[str, Refusal] = {}
        self.exchanges: dict[int, Exchange] = {}
        self.outcomes: list[str] = []
        self.facts: dict[type[Any], Any] = {}
        """Of each exchange, beside those that all have."""
        self.pool = Pool()
        self.held = HeldBodies()
        self.links: list[Link] = []
        self.dispatcher = self.registry = self.bounds = self
        boundary = SimpleNamespace(refuse=self._refuse, settle=self._settle)
        metrics = SimpleNamespace(connection=lambda *_: None, upstream_connection=lambda *_: None)
        self.parts: Any = SimpleNamespace(
            heads=HeadLimits(), deadlines=Deadlines(), boundary=boundary, metrics=metrics, buffers=None,
            clock=SimpleNamespace(monotonic_s=lambda: 1.0),
        )  # fmt: skip

    def start(self, name: str, subject: Any) -> Coroutine[Any, Any, None] | None:
        self.hooks.append(name)
        if name == "requestheaders":
            exchange = self.exchanges[id(subject)] = Exchange()
            exchange.facts.update(self.facts)
        gate = self.gates.get(name)
        if gate is not None:
            return self._later(gate, name, subject)
        self._judge(name, subject)
        return None

    async def _later(self, gate: asyncio.Event, name: str, subject: Any) -> None:
        await gate.wait()
        self._judge(name, subject)
        self.hooks.append(f"{name} ended")

    def _judge(self, name: str, subject: Any) -> None:
        if name in self.refusals:
            self._refuse(self.exchanges[id(subject)], self.refusals[name])
        elif name == "responseheaders":
            self.exchanges[id(subject)].streaming = True

    def _refuse(self, exchange: Exchange, error: Refusal) -> None:
        exchange.refused = answer(error, "id")

    def _settle(self, _exchange: Exchange, outcome: str, **_: Any) -> None:
        self.outcomes.append(outcome)

    def find(self, flow: Any) -> Exchange | None:
        return self.exchanges.get(id(flow))

    def of(self, _exchange: Exchange, _times: Deadlines) -> Bound:
        return BOUND

    def admits(self, _connection: Any) -> bool:
        return True

    def enter(self, *_: Any) -> None: ...

    def leave(self, *_: Any) -> None: ...

    def release_socket(self) -> None: ...

    async def dial(self, bound: Bound) -> Link:
        link = Link(cast("Any", self), bound)
        link.attach(cast("Any", Wire()))
        self.links.append(link)
        return link


class Stage:
    """A caller inside its tunnel."""

    def __init__(self) -> None:
        self.engine, self.wire = Engine(), Wire()
        self.caller = Caller(cast("Any", self.engine), Listener("sidecar", "billing"))
        self.caller.connection_made(cast("Any", self.wire))
        self.caller.connection.tunnel = Tunnel(AUTHORITY, WorkloadIdentity("billing", "any"), "api.test", True)

    def hold(self, hook: str) -> asyncio.Event:
        gate = self.engine.gates[hook] = asyncio.Event()
        return gate

    async def ask(self, body: bytes = b"", size: int | None = None) -> None:
        length = len(body) if size is None else size
        self.caller.data_received(b"POST /v1 HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % length + body)
        await settle()

    @property
    def link(self) -> Link:
        return self.engine.links[-1]

    @property
    def sent(self) -> bytes:
        return cast("Wire", self.link.transport).sent

    @property
    def hooks(self) -> list[str]:
        return [name for name in self.engine.hooks if not name.startswith("client_")]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def test_the_steps_in_order(stage: Stage) -> None:
    await stage.ask(b"hello")
    assert stage.sent == b"POST /v1 HTTP/1.1\r\nHost: api.test\r\n\r\nhello"
    assert stage.hooks == ["requestheaders", "request"]
    stage.link.data_received(OK)
    assert stage.hooks == ["requestheaders", "request", "responseheaders", "response"]
    assert stage.wire.sent == OK
    assert len(stage.engine.pool) == 1
    await stage.ask()
    assert len(stage.engine.links) == 1, "the same connection"


async def test_an_answer_that_is_there_before_the_request_hook_has_ended(stage: Stage) -> None:
    gate = stage.hold("request")
    await stage.ask(b"hello")
    stage.link.data_received(OK)
    assert stage.hooks == ["requestheaders", "request", "responseheaders", "response"]
    assert stage.wire.sent == OK
    # The turn goes on until the hook has ended: neither connection is another request's before.
    assert len(stage.engine.pool) == 0
    stage.caller.data_received(b"GET /next HTTP/1.1\r\nHost: api.test\r\n\r\n")
    await settle()
    assert stage.hooks.count("requestheaders") == 1
    gate.set()
    await settle()
    assert stage.hooks[4:6] == ["request ended", "requestheaders"]
    assert len(stage.engine.links) == 1


async def test_a_request_hook_that_refuses_after_the_answer_has_begun_cuts_it(stage: Stage) -> None:
    from addons.refusal import Code

    gate = stage.hold("request")
    stage.engine.refusals["request"] = Refusal(Code.ACCESS_DENIED, "no")
    await stage.ask(b"hello")
    stage.link.data_received(OK[:-1])
    gate.set()
    await settle()
    assert stage.wire.sent == OK[:-1]
    assert stage.wire.closing
    assert len(stage.engine.pool) == 0
    assert "error" in stage.hooks


async def test_the_caller_may_send_nothing_until_a_request_is_judged(stage: Stage) -> None:
    gate = stage.hold("requestheaders")
    await stage.ask(b"hello")
    assert not stage.engine.links
    stage.caller.data_received(b"GET /next HTTP/1.1\r\nHost: api.test\r\n\r\n")
    await settle()
    gate.set()
    await settle()
    assert stage.sent.endswith(b"hello")
    assert b"next" not in stage.sent


@pytest.mark.parametrize("body", [b"", b"abc"])
async def test_an_answer_that_ends_with_its_connection_while_its_head_is_judged(stage: Stage, body: bytes) -> None:
    gate = stage.hold("responseheaders")
    await stage.ask()
    stage.link.data_received(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n" + body)
    stage.link.connection_lost(None)
    assert stage.wire.sent == b""
    gate.set()
    await settle()
    assert stage.wire.sent.startswith(b"HTTP/1.1 200 OK\r\n")
    assert stage.wire.sent.partition(b"\r\n\r\n")[2] == body
    assert stage.wire.done == ["close"], "its end is the end of the connection"
    assert stage.hooks == ["requestheaders", "request", "responseheaders", "responseheaders ended", "response"]


async def test_one_with_a_length_that_breaks_off_while_its_head_is_judged(stage: Stage) -> None:
    gate = stage.hold("responseheaders")
    await stage.ask()
    stage.link.data_received(OK[:-1])
    stage.link.connection_lost(ConnectionResetError())
    gate.set()
    await settle()
    # A part, cut: the caller knows by its length that it is none of the whole.
    assert stage.wire.sent == OK[:-1]
    assert stage.wire.closing
    assert stage.engine.outcomes == ["truncated"]


async def test_a_link_that_was_paused_serves_the_next_request(stage: Stage) -> None:
    gate = stage.hold("response")
    await stage.ask()
    stage.link.data_received(OK)
    stage.caller.pause_writing()  # the answer waits for a slow caller
    wire = cast("Wire", stage.link.transport)
    assert wire.done[-1] == "pause"
    gate.set()
    await settle()
    assert len(stage.engine.pool) == 1
    assert wire.done[-1] == "resume"


async def test_a_caller_that_goes_while_a_hook_waits(stage: Stage) -> None:
    stage.hold("response")
    await stage.ask()
    stage.link.data_received(OK)
    stage.caller.connection_lost(None)
    await settle()
    assert stage.engine.outcomes == ["client_gone"]
    assert cast("Wire", stage.link.transport).done[-1] == "abort"
    assert stage.hooks[-1] != "response ended"
    assert len(stage.engine.pool) == 0


async def test_the_time_of_a_request_does_not_run_while_its_stages_read_a_held_body(stage: Stage) -> None:
    """A store has deadlines of its own, and an upstream that was not reached is not to blame."""
    stage.engine.parts.deadlines = replace(Deadlines(), total_s=0.05)
    stage.engine.facts = {WholeBody: WholeBody(100), HeadersToSend: HeadersToSend(b"/v1", (), b"HELLO")}
    gate = stage.hold("request")
    await stage.ask(b"hello")
    await asyncio.sleep(0.2)
    assert stage.wire.sent == b""
    gate.set()
    await settle()
    assert stage.sent.endswith(b"\r\n\r\nHELLO")


@pytest.mark.parametrize("body", [b"", b"hello"])
async def test_a_rejected_request_is_sent_again_and_nothing_is_left_of_the_first_answer(
    stage: Stage, body: bytes
) -> None:
    stage.engine.facts = {Openings: Openings(())}
    gate = stage.hold("rejected")
    await stage.ask(body)
    first = stage.link
    first.data_received(b"HTTP/1.1 401 X\r\nX: first\r\nContent-Length: 100\r\n\r\nfirst")
    stage.caller.data_received(b"GET /next HTTP/1.1\r\nHost: api.test\r\n\r\n")
    (exchange,) = stage.engine.exchanges.values()
    exchange.facts[HeadersToSend] = HeadersToSend(b"/v2", ())
    gate.set()
    await settle()
    assert stage.link is not first
    assert stage.sent == b"POST /v2 HTTP/1.1\r\n\r\n" + body
    assert stage.engine.held.held_bytes == 0
    first.data_received(b"first" * 19 + OK)  # what still comes of it
    first.connection_lost(None)
    assert stage.wire.sent == b""
    # Once: a second 401 is the answer.
    stage.link.data_received(OK.replace(b"200", b"401"))
    await settle()
    assert stage.hooks.count("rejected") == 1
    assert stage.wire.sent == OK.replace(b"200", b"401")
    assert len(stage.engine.links) == 2
    assert stage.hooks[-2:] == ["requestheaders", "request"], "the request that was sent ahead"


async def test_a_caller_that_goes_while_a_credential_is_looked_for(stage: Stage) -> None:
    stage.engine.facts = {Openings: Openings(())}
    gate = stage.hold("rejected")
    await stage.ask(b"hello")
    stage.link.data_received(b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n")
    assert stage.engine.held.held_bytes == 5
    (exchange,) = stage.engine.exchanges.values()
    exchange.facts[HeadersToSend] = HeadersToSend(b"/v2", ())
    stage.caller.connection_lost(None)
    gate.set()
    await settle()
    assert stage.engine.held.held_bytes == 0
    assert len(stage.engine.links) == 1
    assert stage.engine.outcomes == ["client_gone"]


async def test_what_follows_a_close_is_nothing(stage: Stage) -> None:
    """A caller that was hung up on is not served what it had sent ahead, whatever still comes for it."""
    await stage.ask()
    stage.caller.data_received(b"GET /next HTTP/1.1\r\nHost: api.test\r\n\r\n")
    stage.caller.hang_up()
    stage.link.data_received(OK)
    await settle()
    assert stage.hooks.count("requestheaders") == 1
    assert stage.wire.sent == b""
