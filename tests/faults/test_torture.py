"""F3: every fallible call of a request fails once, in turn. Each time the upstream saw nothing, or a complete credential with its record.

The engine runs in this process with parts that count their calls: the composition root hands parts over by constructor,
so nothing in the product knows of this test.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from addons.audit import AuditConfig, AuditLog, FileSink
from addons.boundary import Boundary
from addons.clock import SystemClock
from addons.egress import EgressRules, SystemResolver, networks
from addons.exchange import Listener
from addons.parts import Parts, PolicyInForce
from addons.telemetry import Metrics
from ostiary.ca import LeafStore, load_or_create
from ostiary.engines.mitm.engine import ConnectionLimits, MitmEngine
from ostiary.settings.model import Bound
from ostiary.sockets import address_of, open_socket
from policies import load_policy
from tests.conftest import POLICY
from tests.harness.canaries import canary
from tests.harness.client import Answer, tunnel
from tests.harness.pki import Pki
from tests.harness.upstream import Upstream
from vault.cache import SecretCache
from vault.secret import Secret
from vault.store import SecretRef, SecretVersion


class Tripped(Exception):
    """The failure that is injected."""


class Trip:
    """Counts calls and fails the one it is armed for."""

    def __init__(self) -> None:
        self.count = 0
        self.at = 0
        self.names: list[str] = []

    def arm(self, at: int) -> None:
        self.count, self.at, self.names = 0, at, []

    def hit(self, name: str) -> None:
        self.count += 1
        self.names.append(name)
        if self.count == self.at:
            raise Tripped(f"cnry-tripped at {name}")


class Wrapped:
    """Anything, with every method counted before it is called."""

    def __init__(self, inner: Any, trip: Trip) -> None:
        self._inner = inner
        self._trip = trip

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._trip.hit(f"{type(self._inner).__name__}.{name}")
            return found(*args, **kwargs)

        return call


class Store:
    name: Literal["vault", "sealed"] = "sealed"

    def __init__(self, key: str) -> None:
        self.key = key

    async def fetch(self, ref: SecretRef) -> SecretVersion:
        await asyncio.sleep(0)
        return SecretVersion({"key": Secret(self.key)}, "1")

    async def probe(self) -> None: ...

    async def fields_of(self, ref: SecretRef) -> frozenset[str]:
        return frozenset({"key"})

    async def close(self) -> None: ...


@contextlib.contextmanager
def engine(folder: Path, pki: Pki, port: int, key: str, trip: Trip) -> Iterator[tuple[str, Path]]:
    """The engine in a thread; its address and CA file."""
    (folder / "policy.yaml").write_text(POLICY)
    started, ended = threading.Event(), threading.Event()
    found: list[str] = []

    async def run() -> None:
        clock = SystemClock()
        metrics = Metrics()
        audit = AuditLog(AuditConfig((FileSink(folder / "audit.jsonl"),)), metrics, clock)
        await audit.start()
        authority = load_or_create(folder / "ca", dt.datetime.now(dt.UTC))
        wrapped = cast("Any", lambda part: Wrapped(part, trip))
        parts = Parts(
            in_force=PolicyInForce(wrapped(load_policy([folder / "policy.yaml"]))),
            secrets=wrapped(SecretCache(wrapped(Store(key)), clock.monotonic_s, metrics)),
            audit=wrapped(audit),
            metrics=wrapped(metrics),
            clock=wrapped(clock),
            boundary=wrapped(Boundary(wrapped(audit), wrapped(metrics), wrapped(clock))),
            resolver=wrapped(SystemResolver(clock)),
            egress=EgressRules(networks(["127.0.0.0/8"]), {"api.test:443": ("127.0.0.1", port)}),
        )
        one = MitmEngine(
            parts, wrapped(LeafStore(authority, lambda: dt.datetime.now(dt.UTC))), pki.ca_file, ConnectionLimits()
        )
        bound = open_socket("sidecar", Bound("127.0.0.1", 0))
        bound.setblocking(False)
        await one.listen(Listener("sidecar", "billing"), bound)
        found.append(address_of(bound))
        started.set()
        while not ended.is_set():
            await asyncio.sleep(0.05)
        trip.arm(0)
        await one.drain(0.1)
        await audit.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(10)
    try:
        yield found[0], folder / "ca" / "ca.pem"
    finally:
        ended.set()
        thread.join(10)


def attempt(address: str, ca: Path) -> Answer | None:
    """One request with a body; None where the proxy closed instead of answering."""
    try:
        with tunnel(address, ca) as raw:
            raw.sock.settimeout(5)
            return raw.request("POST /v1 HTTP/1.1\r\nHost: api.test\r\nContent-Length: 3\r\n\r\nabc")
    except (OSError, AssertionError):
        return None


def opened(folder: Path) -> list[dict[str, Any]]:
    return [
        record
        for record in map(json.loads, (folder / "audit.jsonl").read_text().splitlines())
        if record["event"] == "credential.opened"
    ]


def test_f3_every_call_fails_once(
    tmp_path: Path, pki: Pki, upstream: Callable[..., Upstream], capfd: pytest.CaptureFixture[str]
) -> None:
    key, api, trip = canary(), upstream(), Trip()
    with engine(tmp_path, pki, api.port, key, trip) as (address, ca):
        trip.arm(0)
        assert (answer := attempt(address, ca)) is not None
        assert answer.status == 200
        calls = trip.names[:]
        assert len(calls) > 12, calls
        refused = 0
        for at in range(1, len(calls) + 1):
            before, records = len(api.requests), len(opened(tmp_path))
            trip.arm(at)
            answer = attempt(address, ca)
            trip.arm(0)
            seen = api.requests[before:]
            assert len(seen) <= 1, calls[at - 1]
            for request in seen:
                assert request.get("Authorization") == f"Bearer {key}", calls[at - 1]
                assert len(opened(tmp_path)) == records + 1, calls[at - 1]
            if answer is not None and answer.status != 200:
                assert answer.code == "internal", (calls[at - 1], answer)
                assert not seen or seen[0].get("Authorization")
                refused += 1
            # And the process goes on.
            assert (again := attempt(address, ca)) is not None, calls[at - 1]
            assert again.status == 200
        assert refused >= 3
    output = capfd.readouterr()
    assert "cnry" not in output.out + output.err
    assert "cnry" not in (tmp_path / "audit.jsonl").read_text()


def test_g12_a_hook_that_raises_after_the_credential_was_put(
    tmp_path: Path, pki: Pki, upstream: Callable[..., Upstream]
) -> None:
    """An addon behind every stage fails: the head is ready, and still nothing may leave."""
    key, api, trip = canary(), upstream(), Trip()

    class Bad:
        def requestheaders(self, flow: Any) -> None:
            if flow.request.path == "/bad":
                # A credential was never on the flow, so an addon behind the stages cannot read it.
                assert key.encode() not in b"".join(name + value for name, value in flow.request.headers.fields)
                raise RuntimeError(f"boom {key}")

    real = MitmEngine.__init__

    def init(self: MitmEngine, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        self.dispatcher.add(Bad())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MitmEngine, "__init__", init)
        with engine(tmp_path, pki, api.port, key, trip) as (address, ca), tunnel(address, ca) as raw:
            answer = raw.request("GET /bad HTTP/1.1\r\nHost: api.test\r\n\r\n")
            assert (answer.status, answer.code) == (500, "internal")
            assert key not in answer.body.decode()
    assert api.connections == 0
    closed = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()][-1]
    assert (closed["event"], closed["outcome"], closed["code"]) == ("credential.closed", "refused", "internal")
