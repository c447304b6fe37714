"""F3: every fallible call of a request fails once, in turn. Each time the upstream saw nothing, or a complete credential with its record.

The engine runs in this process with parts that count their calls: the composition root hands parts over by constructor,
so nothing in the product knows of this test. Stages, boundary, store, audit, clock, resolver, leaves, policy and the dial are
counted. One request of each kind is repeated for each call and each way to fail: an exception; a time-out (what can be
awaited hangs until a deadline of ours ends it, what cannot raises `TimeoutError`); a cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import http.server
import inspect
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast

import h2.config
import h2.connection
import h2.events
import pytest
import uvloop

from addons import pipeline
from addons.audit import AuditConfig, AuditLog, FileSink
from addons.boundary import Boundary
from addons.clock import SystemClock
from addons.egress import EgressRules, networks
from addons.exchange import Listener
from addons.parts import Deadlines, Parts, PolicyInForce
from addons.state.memory import MemoryStore
from addons.telemetry import Metrics
from addons.user_addon import FLOW_HOOKS, UserAddon
from ostiary.ca import LeafStore, load_or_create
from ostiary.engines.fast import dialling as fast_dialling
from ostiary.engines.mitm import engine as engine_module
from ostiary.engines.mitm.engine import ConnectionLimits, MitmEngine
from ostiary.proxy import ENGINES
from ostiary.settings.model import Bound, EngineName
from ostiary.sockets import address_of, open_socket
from policies import load_policy
from tests.harness import vendors
from tests.harness.canaries import canary, scan
from tests.harness.client import Answer, Raw, tunnel
from tests.harness.pki import Pki
from tests.harness.report import figure
from tests.harness.scripted_vault import scripted, send
from tests.harness.senders import profile
from tests.harness.upstream import Cleartext, Seen, Upstream, Wire
from vault.cache import SecretCache
from vault.hashicorp.config import TokenFileAuth, VaultConfig
from vault.hashicorp.store import VaultStore
from vault.sealed import KeyFile, SealedFile, SealedStore, read_key
from vault.secret import Secret
from vault.store import Described, SecretRef, SecretStore, SecretVersion

POLICY: Final = """
default: tunnel
workloads: {billing: {proofs: [{any: true}]}}
routes:
  api:
    match: {host: api.test, port: PORT, paths: ["/v1", "/v1/**"]}
    allow: billing
    secret: {path: secret/egress/api, field: key, ttl: 0}
    inject: {bearer: "{secret}"}
  signed:
    match: {host: api.test, port: PORT, paths: "/v1/signed"}
    allow: billing
    secrets: {key: {path: secret/egress/api, field: key, ttl: 0}, keys: {path: secret/verify/api, field: key, ttl: 0}}
    inject: {bearer: "{key}"}
    verify: {hmac: {keys: "{keys}", host: true}}
  clear:
    match: {host: clear.test, port: PORT}
    allow: billing
    secret: {path: secret/egress/api, field: key, ttl: 0}
    inject: {bearer: "{secret}"}
    allow_cleartext: true
"""
KEY: Final = "what the caller signs with"
HUNG_S: Final = 4.0
"""A request that gave no answer and no end of its connection by then hangs. Deadlines are cut to 0.3 s here."""

type How = Literal["exception", "timeout", "cancellation"]


class Tripped(Exception):
    """The failure that is injected."""


class Trip:
    """Counts calls and fails the one it is armed for."""

    def __init__(self) -> None:
        self.count = 0
        self.at = 0
        self.how: How = "exception"
        self.names: list[str] = []

    def arm(self, at: int, how: How = "exception") -> None:
        self.names = []
        self.count, self.at, self.how = 0, at, how

    def _due(self, name: str) -> bool:
        self.count += 1
        self.names.append(name)
        return self.count == self.at

    def _fail(self, name: str) -> None:
        match self.how:
            case "exception":
                raise Tripped(f"cnry-tripped at {name}")
            case "timeout":
                raise TimeoutError(f"cnry-tripped at {name}")
            case "cancellation":
                raise asyncio.CancelledError(f"cnry-tripped at {name}")

    def hit(self, name: str) -> None:
        if self._due(name):
            self._fail(name)

    async def hit_async(self, name: str) -> None:
        if self._due(name):
            if self.how == "timeout":
                await asyncio.sleep(3600)
            self._fail(name)


class Wrapped:
    """Anything, with every method counted before it is called."""

    def __init__(self, inner: Any, trip: Trip) -> None:
        self._inner = inner
        self._trip = trip

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found
        label = f"{type(self._inner).__name__}.{name}"
        if inspect.iscoroutinefunction(found):

            @functools.wraps(found)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                await self._trip.hit_async(label)
                return await found(*args, **kwargs)

            return call_async

        def call(*args: Any, **kwargs: Any) -> Any:
            self._trip.hit(label)
            return found(*args, **kwargs)

        return call


class Names:
    """A resolver that knows one machine."""

    def known(self, host: str) -> tuple[str, ...] | None:
        return None

    async def resolve(self, host: str) -> Sequence[str]:
        await asyncio.sleep(0)
        return ["127.0.0.1"]


class Mine:
    """A user's addon with every hook: one that waits on the way there, plain ones on the way back."""

    async def requestheaders(self, flow: Any) -> None:
        await asyncio.sleep(0)
        flow.request.headers["X-Team"] = "blue"

    def responseheaders(self, flow: Any) -> None:
        flow.response.headers["X-Seen"] = "yes"

    def response(self, flow: Any) -> None:
        pass

    def error(self, flow: Any) -> None:
        pass


class Running:
    """What a torture needs of the engine that runs in a thread."""

    def __init__(self, folder: Path, port: int) -> None:
        self.address = ""
        self.ca = folder / "ca" / "ca.pem"
        self.audit = folder / "audit.jsonl"
        self.authority = f"api.test:{port}"
        self.port = port
        self.reload: Callable[[], None] = lambda: None

    def opened(self, event: str = "credential.opened") -> list[dict[str, Any]]:
        """Records of what goes upstream."""
        # A line that is just being written is none yet.
        records = map(json.loads, self.audit.read_text().split("\n")[:-1])
        return [record for record in records if record["event"] == event and "use" not in record]


@contextlib.contextmanager
def running_engine(
    name: str, folder: Path, pki: Pki, port: int, store: SecretStore, trip: Trip, *, addon: bool = False
) -> Iterator[Running]:
    """An engine in a thread, every part of it counted."""
    (folder / "policy.yaml").write_text(POLICY.replace("PORT", str(port)))
    started, ended = threading.Event(), threading.Event()
    running = Running(folder, port)
    real_stages, real_dial, real_connect = pipeline.stages, asyncio.open_connection, fast_dialling.connect

    def wrapped(part: Any) -> Any:
        # mitmproxy knows addons by the name of their class.
        return cast("Any", type(type(part).__name__, (Wrapped,), {}))(part, trip)

    async def dial(*args: Any, **kwargs: Any) -> Any:
        await trip.hit_async("dial")
        return await real_dial(*args, **kwargs)

    async def connect(host: str, port: int) -> asyncio.Transport:
        await trip.hit_async("dial")
        return await real_connect(host, port)

    async def run() -> None:
        clock = SystemClock()
        metrics = Metrics()
        audit = AuditLog(AuditConfig((FileSink(folder / "audit.jsonl"),)), metrics, clock)
        await audit.start()
        if isinstance(store, VaultStore):
            await store.start()
        authority = load_or_create(folder / "ca", dt.datetime.now(dt.UTC))
        in_force = PolicyInForce(wrapped(load_policy([folder / "policy.yaml"])))

        def reload() -> None:
            in_force.policy = wrapped(load_policy([folder / "policy.yaml"]))

        running.reload = reload
        mine = wrapped(Mine())
        hooks = {name: getattr(mine, name) for name in FLOW_HOOKS}
        parts = Parts(
            in_force=in_force,
            secrets=wrapped(SecretCache(wrapped(store), clock.monotonic_s, metrics)),
            audit=wrapped(audit),
            metrics=wrapped(metrics),
            clock=wrapped(clock),
            boundary=wrapped(Boundary(wrapped(audit), wrapped(metrics), wrapped(clock))),
            resolver=wrapped(Names()),
            egress=EgressRules(networks(["127.0.0.0/8"]), {}),
            state=cast("Any", wrapped(MemoryStore(clock.monotonic_s))),
            user_addons=(UserAddon("mine", hooks, 0.3),) if addon else (),
            deadlines=Deadlines(connect_s=0.3, first_byte_s=2.0, idle_s=2.0),
        )
        leaves = wrapped(LeafStore(authority, lambda: dt.datetime.now(dt.UTC)))
        one = ENGINES[cast("EngineName", name)](parts, leaves, pki.ca_file, ConnectionLimits())
        bound = open_socket("sidecar", Bound("127.0.0.1", 0))
        bound.setblocking(False)
        await one.listen(Listener("sidecar", "billing"), bound)
        running.address = address_of(bound)
        started.set()
        while not ended.is_set():
            await asyncio.sleep(0.02)
        trip.arm(0)
        await one.drain(0.1)
        await audit.stop()
        await store.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ostiary.engines.mitm.handler.PIPELINE_DEADLINE_S", 0.3)
        patch.setattr("ostiary.engines.fast.steps.PIPELINE_DEADLINE_S", 0.3)
        patch.setattr(fast_dialling, "connect", connect)
        patch.setattr("vault.cache.FETCH_DEADLINE_S", 0.2)
        patch.setattr("vault.cache.NEGATIVE_TTL_S", 0.0)
        patch.setattr("vault.cache.FRUITLESS_S", 0.0)
        patch.setattr("vault.cache.PROBE_FIRST_S", 0.0)
        patch.setattr(asyncio, "open_connection", dial)
        patch.setattr(engine_module, "stages", lambda *args: tuple(wrapped(stage) for stage in real_stages(*args)))
        thread = threading.Thread(target=lambda: asyncio.run(run(), loop_factory=uvloop.new_event_loop))
        thread.start()
        assert started.wait(10)
        try:
            yield running
        finally:
            ended.set()
            thread.join(10)
            assert not thread.is_alive()


# --- one request of each kind ---


def _plain(run: Running, raw: Raw) -> Answer:
    return raw.request(f"POST /v1 HTTP/1.1\r\nHost: {run.authority}\r\nContent-Length: 3\r\n\r\nabc")


def _signed(run: Running, raw: Raw) -> Answer:
    made = profile(KEY, "POST", "/v1/signed", b"abc", host=run.authority)
    lines = [f"POST /v1/signed HTTP/1.1\r\nHost: {run.authority}", *made, "Content-Length: 3"]
    return raw.request("\r\n".join(lines) + "\r\n\r\nabc")


def _upload(run: Running, raw: Raw) -> Answer:
    raw.send(f"POST /v1 HTTP/1.1\r\nHost: {run.authority}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    with contextlib.suppress(OSError):  # refused before it was sent: the answer says so
        for _ in range(8):
            raw.send(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        raw.send(b"0\r\n\r\n")
    return raw.answer()


def _events(run: Running, raw: Raw) -> Answer:
    return raw.request(f"GET /v1/events HTTP/1.1\r\nHost: {run.authority}\r\nAccept: text/event-stream\r\n\r\n")


def _denied(run: Running, raw: Raw) -> Answer:
    return raw.request(f"GET /v2 HTTP/1.1\r\nHost: {run.authority}\r\n\r\n")


def _reload(run: Running, raw: Raw) -> Answer:
    raw.send(f"POST /v1 HTTP/1.1\r\nHost: {run.authority}\r\nContent-Length: 3\r\n\r\na".encode())
    run.reload()
    with contextlib.suppress(OSError):
        raw.send(b"bc")
    return raw.answer()


def _http2(run: Running, raw: Raw) -> Answer:
    conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    conn.initiate_connection()
    pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", run.authority), (":path", "/v1")]
    conn.send_headers(1, pseudo, end_stream=True)
    raw.send(conn.data_to_send())
    found = Answer(0, [], b"")
    while data := raw.sock.recv(65536):
        for event in conn.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived) and event.headers:
                found.headers = [(str(name), str(value)) for name, value in event.headers]
                found.status = int(found.get(":status") or 0)
            elif isinstance(event, h2.events.DataReceived):
                found.body += event.data
            elif isinstance(event, h2.events.StreamEnded):
                return found
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                raise ConnectionError("reset")
        raw.send(conn.data_to_send())
    raise ConnectionError("closed")


def _websocket(run: Running, raw: Raw) -> Answer:
    """A handshake, a frame that comes back, the closing handshake."""
    raw.send(
        f"GET /v1/ws HTTP/1.1\r\nHost: {run.authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    answer = raw.head()
    if answer.status != 101:
        answer.body = raw.read_exactly(int(answer.get("Content-Length") or 0))
        return answer
    raw.send(b"\x81\x82\0\0\0\0hi")
    if raw.read_exactly(4) != b"\x81\x02hi":
        raise ConnectionError("another frame")
    raw.send(b"\x88\x80\0\0\0\0")
    raw.read_exactly(2)
    return answer


def _cleartext(run: Running, raw: Raw) -> Answer:
    return raw.request(f"GET http://clear.test:{run.port}/v1 HTTP/1.1\r\nHost: clear.test:{run.port}\r\n\r\n")


def _blind(run: Running, raw: Raw) -> Answer:
    return raw.request("GET /v1 HTTP/1.1\r\nHost: free.test\r\n\r\n")


KINDS: Final[dict[str, tuple[Callable[[Running, Raw], Answer], int]]] = {
    "plain": (_plain, 200),
    "streamed upload": (_upload, 200),
    "server-sent events": (_events, 200),
    "HTTP/2": (_http2, 200),
    "denied": (_denied, 403),
    "WebSocket": (_websocket, 101),
    "http://": (_cleartext, 200),
    "unopened tunnel": (_blind, 200),
    "reload during": (_reload, 200),
    "from Vault": (_plain, 200),
    "with an addon": (_upload, 200),
    "sent again after a 401": (_plain, 200),
    "signed by its caller": (_signed, 200),
}
SLOW: Final = frozenset({"signed by its caller"})


def attempt(run: Running, ask: Callable[[Running, Raw], Answer]) -> Answer | None:
    """One request; None where the proxy closed instead of answering. Raises TimeoutError where it hangs."""
    alpn = ("h2",) if ask is _http2 else ("http/1.1",)
    try:
        with Raw(run.address, HUNG_S) as raw:
            if ask is _cleartext:
                return ask(run, raw)
            if ask is _blind:
                if raw.connect(f"free.test:{run.port}").status != 200:
                    return Answer(500, [], b"")
                raw.tls(None, "free.test")
                return ask(run, raw)
            if raw.connect(run.authority).status != 200:
                return Answer(500, [], b"")
            raw.tls(run.ca, "api.test", alpn)
            return ask(run, raw)
    except TimeoutError:
        raise
    except OSError:
        return None


def answers(seen: Seen, wire: Wire) -> None:
    if seen.target == "/v1/ws":
        vendors.websocket(seen, wire)
        return
    if seen.target != "/v1/events":
        rejected = (seen.get("Authorization") or "").endswith("-old")
        wire.answer(401 if rejected else 200, b"hello")
        return
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for number in range(3):
        wire.chunk(b"data: %d\n\n" % number)
    wire.send(b"0\r\n\r\n")


def vault_answers(key: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("lookup-self"):
            send(handler, 200, {"data": {"ttl": 0}})
        elif "mounts" in handler.path:
            send(handler, 200, {"data": {"options": {"version": "2"}}})
        else:
            send(handler, 200, {"data": {"data": {"key": key}, "metadata": {"version": 1}}})

    return answer


def sealed(folder: Path, key: str) -> SealedStore:
    SealedFile.create(folder / "secrets.sealed", folder / "secrets.key")
    file = SealedFile(folder / "secrets.sealed", read_key(KeyFile(folder / "secrets.key"), {}))
    file.set("secret/egress/api", "key", Secret(key))
    file.set("secret/verify/api", "key", Secret(KEY))
    return SealedStore(file)


class Rotating:
    """A store whose key is rotated between the first read of a request and the next."""

    name: Literal["vault", "sealed"] = "sealed"

    def __init__(self, key: str) -> None:
        self.key = key
        self.old = True
        self.number = 0

    async def fetch(self, ref: SecretRef) -> SecretVersion:
        self.number += 1
        value, self.old = self.key + "-old" * self.old, False
        return SecretVersion({"key": Secret(value)}, str(self.number))

    async def probe(self) -> None: ...

    async def fields_of(self, ref: SecretRef) -> frozenset[str]:
        return frozenset({"key"})

    async def unchanged(self, ref: SecretRef, known: SecretVersion) -> bool:
        return False

    async def describe(self, ref: SecretRef) -> Described:
        return Described(frozenset({"key"}), "1")

    async def close(self) -> None: ...


@contextlib.contextmanager
def store_of(kind: str, folder: Path, key: str) -> Iterator[SecretStore]:
    if kind == "sent again after a 401":
        yield Rotating(key)
        return
    if kind != "from Vault":
        yield sealed(folder, key)
        return
    with scripted(vault_answers(key)) as (address, _):
        (folder / "vault-token").write_text("cnry-token-of-the-vault")
        yield VaultStore(VaultConfig((address,), TokenFileAuth(folder / "vault-token")))


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as one:
        yield one


# A call that never ends is waited for: these are for `make test-slow`.
@pytest.mark.parametrize("how", ["exception", pytest.param("timeout", marks=pytest.mark.slow), "cancellation"])
@pytest.mark.parametrize("kind", [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in KINDS])
def test_f3_every_call_fails_once(
    tmp_path: Path,
    pki: Pki,
    upstream: Callable[..., Upstream],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    engine: str,
    stack: contextlib.ExitStack,
    kind: str,
    how: How,
) -> None:
    api = Upstream(Cleartext(), answers) if kind == "http://" else upstream(answers)
    stack.callback(api.stop)
    key, trip = canary(), Trip()
    event = "tunnel.opened" if kind == "unopened tunnel" else "credential.opened"
    ask, status = KINDS[kind]
    unrecorded = hung = refused = 0
    stuck: list[list[str]] = []
    with (
        store_of(kind, tmp_path, key) as store,
        running_engine(engine, tmp_path, pki, api.port, store, trip, addon=kind == "with an addon") as run,
    ):
        assert (first := attempt(run, ask)) is not None  # what is made once (leaves, plans) is made
        assert first.status == status
        if isinstance(store, Rotating):
            store.old = True
        trip.arm(0)
        assert (answer := attempt(run, ask)) is not None
        assert answer.status == status
        time.sleep(0.05)
        calls = trip.names[:]
        assert len(calls) > 20, calls
        for at in range(1, len(calls) + 1):
            before, records = len(api.requests), len(run.opened(event))
            if isinstance(store, Rotating):
                store.old = True
            trip.arm(at, how)
            try:
                answer = attempt(run, ask)
            except TimeoutError:
                hung += 1
                stuck.append(trip.names[at - 1 : at + 1])
                answer = None
            failed = trip.names[at - 1] if len(trip.names) >= at else "-"
            trip.arm(0)
            seen = api.requests[before:]
            assert len(seen) <= 1 or [request.get("Authorization") for request in seen] == [
                f"Bearer {key}-old", f"Bearer {key}",
            ], failed  # fmt: skip
            assert all(request.body == seen[0].body and request.complete for request in seen[1:])
            for request in seen[:1]:
                # Whole or not at all: never a request without its credential, never one without its record.
                credential = None if kind == "unopened tunnel" else f"Bearer {key}"
                assert (request.get("Authorization") or "").removesuffix("-old") == (credential or ""), failed
                if kind == "unopened tunnel":  # its record is a note, which a thread writes
                    time.sleep(0.1)
                opened = len(run.opened(event)) - records
                unrecorded += opened < len(seen) if isinstance(store, Rotating) else opened != 1
            if answer is None or answer.status != status:
                refused += 1
                if answer is not None and answer.status >= 500 and answer.body:
                    assert answer.code in {
                        "internal",
                        "secret_unavailable",
                        "upstream_timeout",
                        "upstream_unreachable",
                        "state_unavailable",
                    }
            # And the process goes on.
            assert (again := attempt(run, ask)) is not None, failed
            assert again.status == status, (failed, again)
        calls_failed = len(calls)
    assert (unrecorded, hung) == (0, 0), stuck
    assert refused >= 3
    output = capfd.readouterr()
    # What others log passes through ostiary/logs.py in the real process; what we say must hold no text of an exception.
    said = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("ostiary"))
    assert said
    files = [
        ("log", said.encode()),
        ("audit", (tmp_path / "audit.jsonl").read_bytes()),
        ("output", (output.out + output.err).encode()),
    ]
    assert scan(files, [key, "cnry-tripped", "cnry-token-of-the-vault"]) == []
    told = {
        "engine": engine,
        "kind": kind,
        "how": how,
        "calls": calls_failed,
        "refused": refused,
        "unrecorded": unrecorded,
        "hung": hung,
    }
    figure(f"torture {kind} by {how} on {engine}", told)


def test_g12_a_hook_that_raises_after_the_credential_was_put(
    tmp_path: Path, pki: Pki, upstream: Callable[..., Upstream], engine: str
) -> None:
    """An addon behind every stage fails: the head is ready, and still nothing may leave."""
    key, api, trip = canary(), upstream(), Trip()

    class Bad:
        def requestheaders(self, flow: Any) -> None:
            if flow.request.path == "/v1/bad":
                # A credential was never on the flow, so an addon behind the stages cannot read it.
                assert key.encode() not in b"".join(name + value for name, value in flow.request.headers.fields)
                raise RuntimeError(f"boom {key}")

    real = MitmEngine.__init__

    def init(self: MitmEngine, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        self.dispatcher.add(Bad())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MitmEngine, "__init__", init)
        with (
            running_engine(engine, tmp_path, pki, api.port, sealed(tmp_path, key), trip) as run,
            tunnel(run.address, run.ca, run.authority) as raw,
        ):
            answer = raw.request(f"GET /v1/bad HTTP/1.1\r\nHost: {run.authority}\r\n\r\n")
            assert (answer.status, answer.code) == (500, "internal")
            assert key not in answer.body.decode()
    assert api.connections == 0
    closed = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()][-1]
    assert (closed["event"], closed["outcome"], closed["code"]) == ("credential.closed", "refused", "internal")
