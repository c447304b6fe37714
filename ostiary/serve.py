"""The composition root: builds every part once, opens the sockets, says that it is ready, and ends in order.

Order of the start: CA, secret store, state, sockets, audit, engine. What fails says why and gives the process its exit code:
78 for settings and CA, 71 for a listener, 74 for an audit sink. Order of the end: stop accepting, let requests finish,
close the audit, then the store, whose own login is revoked last.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import uvloop

from addons.audit import AuditConfig, AuditLog, FileSink, SinkError
from addons.boundary import Boundary
from addons.buffers import Buffers
from addons.clock import Clock, SystemClock
from addons.edge import HeadLimits
from addons.egress import EgressRules, SystemResolver, networks
from addons.evidence import Evidence
from addons.exchange import Listener
from addons.parts import Deadlines, Parts, PolicyInForce
from addons.state import StateError, StateStore, StateUnavailable, open_state
from addons.telemetry import Metrics
from addons.user_addon import UserAddon
from ostiary import __version__, user_addons
from ostiary.admin import Health, start_listeners
from ostiary.ca import CaError, LeafStore, load_or_create
from ostiary.certificate import CertificateFault
from ostiary.control import control_of
from ostiary.descriptors import carried, raise_limit, sockets
from ostiary.engines.fast.engine import FastEngine
from ostiary.engines.listener_tls import Certificates, ListenerTls
from ostiary.engines.mitm.engine import ConnectionLimits, MitmEngine
from ostiary.listeners import listener_of
from ostiary.reload import Reloader
from ostiary.settings.admin import is_loopback
from ostiary.settings.listen import judge_routes
from ostiary.settings.model import AdminSetting, Bound, EngineName, Limits, ListenSetting, Settings
from ostiary.sockets import BindFailed, address_of, open_socket
from ostiary.store_addresses import OwnListener, StoreAddresses
from policies import Place, Policy
from policies.faults import Faults
from vault.cache import SecretCache
from vault.sealed import SealedFile, SealedFileError, SealedStore, read_key
from vault.store import SecretStore, StoreError

_log = logging.getLogger("ostiary.serve")

EXIT_OK: Final = 0
EXIT_BIND: Final = 71
EXIT_AUDIT: Final = 74
EXIT_SETTINGS: Final = 78


ENGINES: Final[Mapping[EngineName, type[MitmEngine]]] = {"fast": FastEngine, "mitmproxy": MitmEngine}


class StoreFailed(Exception):
    """A store cannot be opened with these settings."""


@dataclass(frozen=True, slots=True)
class Private:
    """A private proxy of `exec`: one loopback listener that serves whoever has the key, for one workload."""

    workload: str
    key_sha256: str


@dataclass(slots=True)
class Opened:
    """Sockets, by what they are for."""

    listeners: list[tuple[Listener, socket.socket]] = field(default_factory=list)
    admin: socket.socket | None = None
    probes: socket.socket | None = None
    paths: list[Path] = field(default_factory=list)
    """Files of Unix sockets."""

    def all(self) -> list[socket.socket]:
        return [opened for _, opened in self.listeners] + [
            opened for opened in (self.admin, self.probes) if opened is not None
        ]

    def close(self) -> None:
        """Closes what is still open; the engine may have closed some of them, and asyncio may have removed their
        files.
        """
        for opened in self.all():
            opened.close()
        for path in self.paths:
            path.unlink(missing_ok=True)


def main(
    settings: Settings,
    policy: Policy,
    *,
    environ: Mapping[str, str],
    private: Private | None = None,
    addons: tuple[UserAddon, ...] = (),
) -> int:
    """Runs until a signal; returns the exit code."""
    try:
        chosen = private_settings(settings, private) if private else settings
        return asyncio.run(_run(chosen, policy, environ, private, addons), loop_factory=uvloop.new_event_loop)
    except (CaError, CertificateFault, StoreFailed, OwnListener, user_addons.AddonFailed) as error:
        sys.stderr.write(f"ostiary: {error}\n")
        return EXIT_SETTINGS
    except BindFailed as error:
        sys.stderr.write(f"ostiary: {error}\n")
        return EXIT_BIND
    except SinkError as error:
        sys.stderr.write(f"ostiary: {error.strerror}\n")
        return EXIT_AUDIT


def private_settings(settings: Settings, private: Private) -> Settings:
    """The same settings with one loopback listener and audit files of its own: two processes never write one file."""
    sinks = tuple(
        FileSink(sink.path.with_name(f"{sink.path.stem}.exec-{os.getpid()}{sink.path.suffix}"))
        for sink in settings.audit.sinks
        if isinstance(sink, FileSink)
    )
    if not sinks:
        raise SinkError(0, "exec needs an audit sink that is a file: standard output belongs to the command")
    listener = ListenSetting("private", Bound("127.0.0.1", 0), None, Place("exec"))
    audit = AuditConfig(sinks, settings.audit.durability, settings.audit.wait_s, settings.audit.reserve_bytes)
    _log.info("private proxy for workload %s", private.workload)
    return replace(settings, listen=(listener,), admin=None, audit=audit)


def open_store(settings: Settings, environ: Mapping[str, str], metrics: Metrics) -> SecretStore:
    """The secret store of the settings, not yet logged in.

    Raises:
        StoreFailed: the embedded store does not open.
    """
    if settings.store == "vault" and settings.vault is not None:
        from vault.hashicorp.store import VaultStore

        return VaultStore(settings.vault, metrics)
    if settings.secrets_file is None or settings.secrets_key is None:
        raise StoreFailed("the settings name no secret store")
    try:
        file = SealedFile(settings.secrets_file, read_key(settings.secrets_key, environ))
        file.check()
    except SealedFileError as error:
        raise StoreFailed(str(error)) from None
    return SealedStore(file)


def open_sockets(settings: Settings) -> Opened:
    """Every socket, or none.

    Raises:
        BindFailed: names the listener.
    """
    opened = Opened()
    try:
        for listen in settings.listen:
            bound = open_socket(listen.name, listen.bind, listen.socket_mode)
            opened.listeners.append((listener_of(listen, bound), bound))
            if listen.bind.path is not None:
                opened.paths.append(listen.bind.path)
        if settings.admin is not None:
            _open_admin(settings.admin, opened)
    except BindFailed:
        opened.close()
        raise
    return opened


def _open_admin(admin: AdminSetting, opened: Opened) -> None:
    if admin.bind is not None:
        opened.admin = open_socket("admin", admin.bind, admin.socket_mode)
        opened.paths += [admin.bind.path] if admin.bind.path is not None else []
        # The settings have judged what is written; what `localhost` stands for is the machine's to say.
        if admin.bind.path is None and not is_loopback(opened.admin.getsockname()[0]):
            raise BindFailed(f"listener admin: {admin.bind} is no loopback address here")
    if admin.probes is not None:
        opened.probes = open_socket("probes", admin.probes)
        opened.paths += [admin.probes.path] if admin.probes.path is not None else []


async def _open_state(settings: Settings, clock: Clock, metrics: Metrics) -> StateStore | None:
    """The state store of the settings. A server that is down does not keep the process from starting; a file that cannot
    be used does.

    Raises:
        StoreFailed: with what to do.
    """
    if settings.state is None:
        return None
    try:
        state = await open_state(settings.state, clock, metrics)
    except StateUnavailable as error:
        raise StoreFailed(f"state: {error.reason}") from None
    try:
        await state.probe()
    except StateError as error:
        _log.error("state: %s; it is asked until it works", error.reason)
    return state


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
) -> Parts:
    """The parts that stages are given."""
    limits = settings.limits
    evidence = Evidence(audit, metrics, clock)
    return Parts(
        in_force=PolicyInForce(policy),
        secrets=SecretCache(store, clock.monotonic_s, evidence),
        store_observer=evidence,
        audit=audit,
        metrics=metrics,
        clock=clock,
        boundary=Boundary(audit, metrics, clock),
        resolver=SystemResolver(clock),
        egress=rules,
        heads=HeadLimits(limits.request_line, limits.header_bytes, limits.header_count),
        deadlines=Deadlines(
            limits.connect_timeout, limits.first_byte_timeout, limits.idle_timeout, limits.total_timeout
        ),
        connections_per_workload=limits.connections_per_workload,
        buffers=Buffers(metrics, limits.buffers),
        buffered_body_bytes=limits.buffered_body,
        user_addons=addons,
        extra_keys=extra_keys,
    )


async def _run(
    settings: Settings,
    policy: Policy,
    environ: Mapping[str, str],
    private: Private | None,
    addons: tuple[UserAddon, ...],
) -> int:
    clock = SystemClock()
    metrics = Metrics(__version__)
    authority = load_or_create(settings.ca_dir, dt.datetime.now(dt.UTC))
    leaves = LeafStore(authority, lambda: dt.datetime.now(dt.UTC))
    async with contextlib.AsyncExitStack() as ending:
        # Ended in reverse: sockets, audit, store. Each is ended whatever happens to the others.
        store = open_store(settings, environ, metrics)
        ending.push_async_callback(store.close)
        state = await _open_state(settings, clock, metrics)
        if state is not None:
            ending.push_async_callback(state.close)
        audit = AuditLog(settings.audit, metrics, clock)
        ending.push_async_callback(audit.stop)
        opened = open_sockets(settings)
        ending.callback(opened.close)
        await audit.start()
        await _log_in(store)
        guard = StoreAddresses(settings, opened.all(), getattr(store, "peers", tuple))
        await guard.start()
        ending.push_async_callback(guard.stop)
        rules = EgressRules(networks(settings.egress.allow), settings.egress.resolve, guard.forbidden)
        extra_keys = {private.key_sha256: private.workload} if private else {}
        parts = build_parts(settings, policy, store, audit, metrics, clock, rules, extra_keys, addons)
        if isinstance(parts.store_observer, Evidence):
            looking = asyncio.get_running_loop().create_task(parts.store_observer.keep_looking())
            ending.callback(looking.cancel)
        await user_addons.running(addons, clock)
        ending.push_async_callback(user_addons.done, addons, clock)
        limits = settings.limits
        descriptors = raise_limit()
        engine = ENGINES[settings.engine](
            parts,
            leaves,
            settings.egress.ca_file,
            ConnectionLimits(
                carried(limits.connections, descriptors, asked=limits.connections != Limits().connections),
                limits.connections_per_source,
                sockets(descriptors),
                limits.header_timeout,
                limits.idle_timeout,
                limits.first_byte_timeout,
            ),
        )
        # The one listener of a private proxy is not among those of the settings, which routes may name.
        judge = functools.partial(judge_routes, settings.listen) if private is None else None
        await _serve(settings, parts, engine, opened, store, state, judge)
    return EXIT_OK


async def _log_in(store: SecretStore) -> None:
    """Logs in to Vault. A Vault that is down does not keep the process from starting: it is not ready until Vault is
    there.
    """
    start = getattr(store, "start", None)
    if start is None:
        return
    try:
        await start()
    except StoreError as error:
        _log.error("%s; requests are refused until it works", error.reason)


async def _serve(
    settings: Settings,
    parts: Parts,
    engine: MitmEngine,
    opened: Opened,
    store: SecretStore,
    state: StateStore | None,
    judge: Callable[[Policy, Faults], None] | None,
) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    certificates = {
        one.name: ListenerTls(one.name, one.tls, loop.time) for one in settings.listen if one.tls is not None
    }
    looked_after = Certificates(tuple(certificates.values()))
    looked_after.keep_looking()
    reloader = Reloader(
        settings.policies,
        settings.variables,
        parts,
        judge=judge,
        before=looked_after.read_again,
    )
    loop.add_signal_handler(signal.SIGHUP, reloader.signalled)
    health = Health(store, parts.audit, parts.clock, lambda: parts.in_force.policy.version, state)
    for listener, bound in opened.listeners:
        bound.setblocking(False)
        await engine.listen(listener, bound, certificates.get(listener.name))
    tokens = settings.admin.tokens if settings.admin is not None else ()
    control = control_of(parts, reloader, health)
    listeners = start_listeners(opened.admin, opened.probes, tokens, control, parts.clock)
    ready: dict[str, object] = {
        "event": "ready",
        "listeners": [
            {"name": listener.name, "address": address_of(bound)}
            | ({"mode": "reverse"} if listener.reverse is not None else {})
            | ({"tls": True} if listener.name in certificates else {})
            for listener, bound in opened.listeners
        ],
        "pid": os.getpid(),
    }
    if opened.admin is not None:
        ready["admin"] = address_of(opened.admin)
    if opened.probes is not None:
        ready["probes"] = address_of(opened.probes)
    sys.stdout.write(json.dumps(ready, separators=(",", ":")) + "\n")
    sys.stdout.flush()
    reloader.loaded(parts.in_force.policy)
    # What lives now lives to the end: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    await ended.wait()
    looked_after.stop()
    health.draining = True
    await engine.drain(settings.limits.drain_timeout)
    await listeners.end()
