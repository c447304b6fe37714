"""What the parts of a request cost in this process, without sockets and TLS: all stages of one small request together, and
single steps that have a goal.

Real parts in every place (policy, cache, audit file, metrics); only the store, the resolver and the engine are stood in
for. A figure is the best of several rounds: everything that disturbs a round makes it slower. Calls of functions are
counted in one request, C functions included: they tell of a change where the clock is too noisy.

`python -m bench.parts` prints the table alone.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from mitmproxy import http
from mitmproxy.connection import Client, Server

from addons.audit import AuditConfig, AuditLog, FileSink, OpenRecord
from addons.boundary import Boundary, facts_of
from addons.clock import SystemClock
from addons.credentials import Credential, Needs, Openings, seal_now, unseal
from addons.egress import EgressRules, networks
from addons.exchange import Authority, Connection, Exchange, Listener, Tunnel, WorkloadIdentity
from addons.head import HeadersToSend, RequestHead
from addons.injection import build_with_credential, plan_for, references
from addons.parts import Parts, PolicyInForce
from addons.pipeline import stages
from addons.reply.scrub import BodyScrub, Scrubs
from addons.signing.apply import Signing
from addons.signing.outgoing import Outgoing
from addons.stages.registry import Registry
from addons.stages.remote_keys import opening
from addons.telemetry import Metrics
from ostiary.dispatch import Dispatcher
from ostiary.engines.fast.flows import new_flow
from ostiary.engines.mitm.master import LeanMaster
from ostiary.engines.mitm.upstream import parse_answer
from policies import Policy, Question
from policies.load import load_policy
from policies.model import CredentialSpec, Route
from policies.sign import references_of_signers
from vault.cache import SecretCache
from vault.secret import Secret
from vault.store import Described, SecretRef, SecretVersion

CREDENTIAL: Final = "bench-credential-0123456789"
POLICY: Final = """\
workloads: {bench: {proofs: [{any: true}]}}
routes:
  bench:
    match: {host: api.test, methods: [GET, POST], paths: ["/**"]}
    allow: bench
    secret: {path: secret/egress/bench, field: key, ttl: 10m}
    inject: {bearer: "{secret}"}
  profile:
    match: {host: s1.test}
    allow: bench
    secret: {path: secret/egress/bench, field: key, ttl: 10m}
    sign: {hmac: {key: "{secret}", headers: [content-type], host: true, nonce: true}}
  aws:
    match: {host: sqs.eu-west-1.amazonaws.com}
    allow: bench
    secret: {path: secret/egress/bench, ttl: 10m}
    sign:
      aws_sigv4: {access_key_id: "{secret.id}", secret_access_key: "{secret.key}", regions: [eu-west-1], services: [sqs]}
"""
FIELDS: Final = (
    (b"Host", b"api.test"),
    (b"User-Agent", b"bench/1.0"),
    (b"Accept", b"*/*"),
    (b"Accept-Encoding", b"gzip, deflate"),
)
ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Wed, 25 Nov 2026 20:00:00 GMT\r\nContent-Type: application/json\r\n"
    b'Content-Length: 1024\r\nConnection: keep-alive\r\nETag: "abc-400"'
)
BODY: Final = b"x" * 1024
ROUNDS: Final = 40
BATCH: Final = 100


@dataclass(frozen=True, slots=True)
class Cost:
    """What one step takes. `goal_us`: what it may take; None where that is only part of another figure."""

    title: str
    us: float
    calls: int
    goal_us: float | None = None


class _Store:
    """A store that has one secret."""

    name: Literal["vault", "sealed"] = "sealed"

    async def fetch(self, ref: SecretRef) -> SecretVersion:
        del ref
        return SecretVersion({"key": Secret(CREDENTIAL), "id": Secret("AKIAIOSFODNN7EXAMPLE")}, "1")

    async def probe(self) -> None:
        """Always there."""

    async def fields_of(self, ref: SecretRef) -> frozenset[str]:
        return frozenset((await self.fetch(ref)).fields)

    async def unchanged(self, ref: SecretRef, known: SecretVersion) -> bool:
        del ref, known
        return True

    async def describe(self, ref: SecretRef) -> Described:
        return Described(await self.fields_of(ref), "1")

    async def close(self) -> None:
        """Nothing is open."""


class _Resolver:
    def known(self, host: str) -> tuple[str, ...] | None:
        del host
        return ("127.0.0.1",)

    async def resolve(self, host: str) -> Sequence[str]:
        del host
        return ("127.0.0.1",)


@dataclass
class Rig:
    """All stages, in this process."""

    parts: Parts
    registry: Registry
    dispatcher: Dispatcher
    client: Client
    connection: Connection

    def flow(self) -> http.HTTPFlow:
        request = http.Request.make("GET", "https://api.test/1k", b"", http.Headers(FIELDS))
        request.data.http_version = b"HTTP/1.1"
        return new_flow(self.client, Server(address=("api.test", 443)), request)

    def serve(self, flow: http.HTTPFlow, answer: http.Response) -> Exchange:
        """Every hook of one request in the order of an engine, with the little that an engine does between."""
        start = self.dispatcher.start
        if start("requestheaders", flow) is not None:
            raise AssertionError("a stage had to wait")
        exchange = self.registry.exchange(flow)
        if exchange.forget(HeadersToSend) is None:
            raise AssertionError(f"no head was built: {exchange.refused}")
        exchange.dialled_s = self.parts.clock.monotonic_s()
        start("request", flow)
        flow.response = answer
        start("responseheaders", flow)
        stream: Any = answer.stream
        stream(BODY)
        stream(b"")
        start("response", flow)
        if not exchange.settled:
            raise AssertionError("the exchange was not settled")
        return exchange


def _measured(title: str, step: Callable[[], object], goal_us: float | None = None, batch: int = BATCH) -> Cost:
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(batch):
            step()
        best = min(best, time.perf_counter() - began)
    return Cost(title, best * 1e6 / batch, _calls(step), goal_us)


def _calls(step: Callable[[], object]) -> int:
    """How many functions it calls: the fewest, since some of them prepare things for many requests."""
    return min(_counted(step) for _ in range(3))


def _counted(step: Callable[[], object]) -> int:
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return count - 1  # the end of counting


def _rig(policy: Policy, audit: AuditLog, metrics: Metrics, clock: SystemClock) -> Rig:
    parts = Parts(
        in_force=PolicyInForce(policy),
        secrets=SecretCache(_Store(), clock.monotonic_s, metrics),
        audit=audit,
        metrics=metrics,
        clock=clock,
        boundary=Boundary(audit, metrics, clock),
        resolver=_Resolver(),
        egress=EgressRules(allow=networks(["127.0.0.0/8"])),
    )
    registry = Registry()
    master = LeanMaster(asyncio.get_running_loop())
    master.install(stages(parts, registry))
    client = Client(peername=("127.0.0.1", 40000), sockname=("127.0.0.1", 8080), timestamp_start=0.0)
    connection = Connection("c1", Listener("sidecar", "bench"), "127.0.0.1")
    connection.tunnel = Tunnel(Authority("api.test", 443), WorkloadIdentity("bench", "any"), "api.test", sni_seen=True)
    registry.connected(client, connection)
    return Rig(parts, registry, master.addons, client, connection)


def _whole(rig: Rig) -> Cost:
    """All stages of one request. What an engine makes (flow, answer) is made before the clock starts."""
    best, calls = float("inf"), 0
    for turn in range(ROUNDS + 1):
        pairs = [(rig.flow(), parse_answer(ANSWER, to_head=False)[0]) for _ in range(BATCH)]
        if turn == ROUNDS:
            left = iter(pairs)
            calls = _calls(lambda left=left: rig.serve(*next(left))) - 1  # type: ignore[misc]  # without `next`
            break
        began = time.perf_counter()
        for flow, answer in pairs:
            rig.serve(flow, answer)
        best = min(best, time.perf_counter() - began)
    return Cost("all stages of a small request, audit records written", best * 1e6 / BATCH, calls)


def _credential(rig: Rig, route: Route, exchange: Exchange) -> tuple[Credential, tuple[OpenRecord, ...], Needs]:
    spec = route.credential
    if not isinstance(spec, CredentialSpec):
        raise TypeError(f"route {route.name} has no credential")
    needs = Needs.of(spec, tuple(dict.fromkeys((*references(route.inject), *references_of_signers(route.sign)))))
    sealed = seal_now(needs, rig.parts.secrets)
    if sealed is None:
        raise AssertionError("the secret is cold")
    records = []
    for secret in sealed.secrets:
        record = rig.parts.audit.open_now(opening(facts_of(exchange), secret))
        if record is None:
            raise AssertionError("the audit has to be waited for")
        records.append(record)
    return unseal(sealed, Openings(tuple(records))), tuple(records), needs


def _steps(rig: Rig) -> list[Cost]:
    policy, clock = rig.parts.in_force.policy, rig.parts.clock
    exchange = rig.serve(rig.flow(), parse_answer(ANSWER, to_head=False)[0])
    costs: list[Cost] = []
    bench, profile, aws = (policy.routes[name] for name in ("bench", "profile", "aws"))
    credential, records, needs = _credential(rig, bench, exchange)
    plan, authority = plan_for(bench), Authority("api.test", 443)
    head = RequestHead("GET", b"/1k", FIELDS, http2=False)

    # What building the head costs with a credential in it; the caller's fields are stripped with or without one.
    costs.append(
        _measured(
            "the head that leaves, with a header injected",
            lambda: build_with_credential(plan, plan.injectors, head, authority, credential),
            3,
        )
    )

    def from_cache() -> None:
        sealed = seal_now(needs, rig.parts.secrets)
        if sealed is None:
            raise AssertionError("the secret is cold")
        unseal(sealed, Openings(records))
        sealed.secrets[0].release()

    costs.append(_measured("a secret from cache, sealed and opened", from_cache, 5))
    costs.append(
        _measured("an answer of the policy", lambda: policy.decide(Question("bench", "api.test", 443, "GET", "/1k")))
    )

    sealed = seal_now(needs, rig.parts.secrets)
    if sealed is None:
        raise AssertionError("the secret is cold")
    secret = sealed.secrets[0]

    def recorded() -> None:
        record = rig.parts.audit.open_now(opening(facts_of(exchange), secret))
        if record is None:
            raise AssertionError("the audit has to be waited for")
        rig.parts.audit.close(record, {"outcome": "ok", "ms": 1.234, "status": 200, "bytes_in": 0, "bytes_out": 1024})

    costs.append(_measured("an audit record opened and closed, two writes to a file", recorded))

    signed = RequestHead("POST", b"/v1/pay", ((b"Content-Type", b"application/json"), *FIELDS[1:]), http2=False)
    body = b"y" * 2048
    for route, title, sent, goal_us in (
        (profile, "HMAC profile over 2 KB", (signed, body), 15.0),
        (aws, "AWS SigV4, no body", (RequestHead("GET", b"/?Action=ListQueues", FIELDS[1:], http2=False), b""), 60.0),
    ):
        signing = Signing(route.sign, 1 << 20)
        key, _, _ = _credential(rig, route, exchange)
        caller, held = sent
        host = route.hosts[0].text.encode()

        def sign(
            signing: Signing = signing,
            key: Credential = key,
            caller: RequestHead = caller,
            held: bytes = held,
            host: bytes = host,
        ) -> None:
            request = Outgoing(caller.method, "https", host, caller.target, caller.fields, held, caller, http2=False)
            signing.sign(signing.judge(caller), request, key, clock.wall_s())

        costs.append(_measured(title, sign, goal_us))

    scrub = Scrubs("scrub").of(credential.name, credential.confidential(), ())
    rows = [
        {"id": number, "name": f"item {number}", "url": f"https://api.test/v1/items/{number}"} for number in range(200)
    ]
    text = json.dumps(rows).encode()[:10_240]

    def searched(data: bytes, piece_bytes: int) -> None:
        passing = BodyScrub(scrub, ())
        for at in range(0, len(data), piece_bytes):
            passing.feed(data[at : at + piece_bytes])
        passing.feed(b"")

    costs.append(_measured("10 KB of an answer searched for the credential", lambda: searched(text, 10_240), 30))
    large = (text * 103)[: 1 << 20]
    costs.append(_measured("1 MB of an answer, in pieces of 16 KiB", lambda: searched(large, 16_384), batch=5))
    return costs


async def _run(folder: Path) -> list[Cost]:
    (folder / "policy.yaml").write_text(POLICY)
    policy = load_policy([folder / "policy.yaml"])
    clock, metrics = SystemClock(), Metrics()
    audit = AuditLog(AuditConfig((FileSink(folder / "audit.jsonl"),), reserve_bytes=0), metrics, clock)
    await audit.start()
    try:
        rig = _rig(policy, audit, metrics, clock)
        for _, spec in policy.secret_refs():
            ref = SecretRef(
                path=spec.path, mount=spec.mount, version=spec.version, kv=spec.kv, namespace=spec.namespace
            )
            await rig.parts.secrets.read(ref, ttl_s=600, max_stale_s=0)
        return [_whole(rig), *_steps(rig)]
    finally:
        await audit.stop()


def costs() -> list[Cost]:
    """Measures everything; a few seconds."""
    with tempfile.TemporaryDirectory(prefix="ostiary-bench-") as folder:
        return asyncio.run(_run(Path(folder)))


def table(found: Sequence[Cost]) -> list[str]:
    """As Markdown."""
    lines = ["| step | us | function calls | goal | met |", "|---|---|---|---|---|"]
    for one in found:
        goal = "" if one.goal_us is None else f"<= {one.goal_us:g} us"
        met = "" if one.goal_us is None else "yes" if one.us <= one.goal_us else "**no**"
        lines.append(f"| {one.title} | {one.us:.1f} | {one.calls} | {goal} | {met} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table(costs())))
