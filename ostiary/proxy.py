"""The proxy of one process, built once: stores, audit, parts, engine, health. It knows no socket and no signal: whoever
runs it (`serve.py`, or a worker of `workers/`) brings them.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from addons.audit import AuditLog
from addons.boundary import Boundary
from addons.buffers import Buffers
from addons.clock import Clock, SystemClock
from addons.credentials import reference_of
from addons.deriving.asking import Asker
from addons.deriving.source import Deriving
from addons.deriving.tokens import Tokens
from addons.edge import HeadLimits
from addons.egress import EgressRules, SystemResolver, networks
from addons.evidence import Evidence
from addons.exchange import Listener
from addons.parts import Deadlines, Parts, PolicyInForce
from addons.state import StateStore
from addons.state.guarded import Guarded
from addons.state.memory import MemoryStore
from addons.telemetry import Metrics
from addons.user_addon import UserAddon
from ostiary import __version__, token_endpoints, user_addons
from ostiary.admin import Health
from ostiary.ca import LeafStore, load_or_create
from ostiary.descriptors import carried, raise_limit, sockets
from ostiary.engines.fast.engine import FastEngine
from ostiary.engines.listener_tls import Certificates, ListenerTls
from ostiary.engines.mitm.engine import ConnectionLimits, MitmEngine
from ostiary.settings.model import EngineName, Settings
from ostiary.settings.workers import says_connections
from ostiary.store_addresses import Own, StoreAddresses
from ostiary.stores import log_in, open_state_of, open_store
from policies import Policy
from vault.cache import SecretCache
from vault.issued import Issuance
from vault.keys import Keys
from vault.leases import Leases, LeasingStore
from vault.store import SecretRef, SecretStore, SecretWriter

if TYPE_CHECKING:
    from vault.hashicorp.handed import Ask  # hvac is loaded only where Vault is used

ENGINES: Final[Mapping[EngineName, type[MitmEngine]]] = {"fast": FastEngine, "mitmproxy": MitmEngine}


@dataclass(frozen=True, slots=True)
class Begun:
    """What is there before any socket is: what can be wrong with it stops the start first."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    leaves: LeafStore
    store: SecretStore
    state: StateStore | None
    audit: AuditLog
    """Not started yet: who opens it takes the files."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """All of it."""

    parts: Parts
    engine: MitmEngine
    health: Health
    certificates: Mapping[str, ListenerTls]
    """Of TLS listeners, by name."""
    looked_after: Certificates
    """The same, as they are read again."""

    async def listen(self, listener: Listener, bound: socket.socket) -> asyncio.Server:
        """Accepts on a bound socket."""
        bound.setblocking(False)
        return await self.engine.listen(listener, bound, self.certificates.get(listener.name))


async def begin(
    settings: Settings, environ: Mapping[str, str], ending: contextlib.AsyncExitStack, ask: Ask | None = None
) -> Begun:
    """CA, stores and audit, each ended by `ending` whatever happens to the others. `ask` is `open_store`'s.

    Raises:
        CaError, StoreFailed: with what to do.
    """
    clock = SystemClock()
    metrics = Metrics(__version__)
    authority = load_or_create(settings.ca_dir, dt.datetime.now(dt.UTC))
    leaves = LeafStore(authority, lambda: dt.datetime.now(dt.UTC))
    store = open_store(settings, environ, metrics, ask)
    ending.push_async_callback(store.close)
    state = await open_state_of(settings, clock, metrics)
    if state is not None:
        ending.push_async_callback(state.close)
    audit = AuditLog(settings.audit, metrics, clock)
    ending.push_async_callback(audit.stop)
    return Begun(settings, clock, metrics, leaves, store, state, audit)


async def build(
    begun: Begun,
    policy: Policy,
    own: Collection[Own],
    ending: contextlib.AsyncExitStack,
    *,
    extra_keys: Mapping[str, str],
    addons: tuple[UserAddon, ...],
    held: int = 0,
) -> Proxy:
    """Everything else. It accepts nothing yet.

    Args:
        begun: what is there.
        policy: to begin with.
        own: addresses that are listened on.
        ending: ends what is built.
        extra_keys: SHA-256 hex of keys of this process alone, to workloads.
        addons: of the user.
        held: descriptors of listeners, beyond what any process keeps in reserve for them.

    Raises:
        SinkError, OwnListener, AddonFailed, CertificateFault: with what to do.
    """
    settings, limits = begun.settings, begun.settings.limits
    await begun.audit.start()
    guard = StoreAddresses(settings, peers=getattr(begun.store, "peers", tuple), own=own)
    await guard.refuse_own()
    await log_in(begun.store)
    await guard.start()
    ending.push_async_callback(guard.stop)
    rules = EgressRules(networks(settings.egress.allow), settings.egress.resolve, guard.forbidden)
    parts = build_parts(
        settings,
        policy,
        begun.store,
        begun.audit,
        begun.metrics,
        begun.clock,
        rules,
        extra_keys,
        addons,
        state=begun.state or own_state(settings, begun.clock, begun.metrics),
    )
    if isinstance(parts.store_observer, Evidence):
        looking = asyncio.get_running_loop().create_task(parts.store_observer.keep_looking())
        ending.callback(looking.cancel)
    if parts.leases is not None:
        ending.push_async_callback(parts.leases.close)
        parts.leases.only(named_by(parts.in_force))
    if isinstance(begun.store, LeasingStore):
        begun.store.keep_login(lambda: any(secret.is_lent for _, secret in parts.in_force.policy.secret_uses()))
    await user_addons.running(addons, begun.clock)
    ending.push_async_callback(user_addons.done, addons, begun.clock)
    descriptors = raise_limit(held)
    if parts.deriving is not None:
        ending.push_async_callback(parts.deriving.close)
    engine = ENGINES[settings.engine](
        parts,
        begun.leaves,
        settings.egress.ca_file,
        ConnectionLimits(
            carried(limits.connections, descriptors, asked=says_connections(settings)),
            limits.connections_per_source,
            sockets(descriptors),
            limits.header_timeout,
            limits.idle_timeout,
            limits.first_byte_timeout,
        ),
    )
    health = Health(begun.store, begun.audit, begun.clock, lambda: parts.in_force.policy.version, begun.state)
    now_s = asyncio.get_running_loop().time
    certificates = {one.name: ListenerTls(one.name, one.tls, now_s) for one in settings.listen if one.tls is not None}
    looked_after = Certificates(tuple(certificates.values()))
    looked_after.keep_looking()
    ending.callback(looked_after.stop)
    return Proxy(parts, engine, health, certificates, looked_after)


def named_by(in_force: PolicyInForce) -> Callable[[SecretRef], bool]:
    """Whether a route of the policy in force has a secret; worked out once for each policy."""
    policy: Policy | None = None
    refs: frozenset[SecretRef] = frozenset()

    def named(ref: SecretRef) -> bool:
        nonlocal policy, refs
        if policy is not in_force.policy:
            policy = in_force.policy
            refs = frozenset(reference_of(spec, route) for route, spec in policy.secret_uses())
        return ref in refs

    return named


def own_state(settings: Settings, clock: Clock, metrics: Metrics) -> StateStore | None:
    """Where the settings name no state, a lone process remembers for itself what was used; several cannot."""
    return Guarded(MemoryStore(clock.monotonic_s), metrics, clock.monotonic_s) if settings.workers == 1 else None


def build_parts(
    settings: Settings,
    policy: Policy,
    store: SecretStore,
    audit: AuditLog,
    metrics: Metrics,
    clock: Clock,
    rules: EgressRules,
    extra_keys: Mapping[str, str],
    addons: tuple[UserAddon, ...] = (),
    *,
    state: StateStore | None = None,
) -> Parts:
    """The parts that stages are given."""
    limits = settings.limits
    evidence = Evidence(audit, metrics, clock)
    secrets = SecretCache(store, clock.monotonic_s, evidence)
    leases = Leases(secrets, store if isinstance(store, LeasingStore) else None, clock.monotonic_s, evidence)
    resolver = SystemResolver(clock)
    deriving = Deriving(
        Tokens(clock, metrics),
        Asker(resolver, rules, token_endpoints.contexts(settings.egress.ca_file)),
        audit,
        clock,
        store if isinstance(store, SecretWriter) else None,
    )
    return Parts(
        in_force=PolicyInForce(policy),
        secrets=secrets,
        made=Issuance(leases, store, clock.monotonic_s, clock.wall_s, evidence),
        leases=leases,
        keys=Keys(store, evidence),
        store_observer=evidence,
        audit=audit,
        metrics=metrics,
        clock=clock,
        boundary=Boundary(audit, metrics, clock),
        resolver=resolver,
        egress=rules,
        heads=HeadLimits(limits.request_line, limits.header_bytes, limits.header_count),
        deadlines=Deadlines(
            limits.connect_timeout, limits.first_byte_timeout, limits.idle_timeout, limits.total_timeout
        ),
        connections_per_workload=limits.connections_per_workload,
        buffers=Buffers(metrics, limits.buffers),
        buffered_body_bytes=limits.buffered_body,
        state=state,
        ca_file=settings.egress.ca_file,
        user_addons=addons,
        deriving=deriving,
        extra_keys=extra_keys,
    )
