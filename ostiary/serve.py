"""The composition root: builds every part once, opens the sockets, says that it is ready, and ends in order.

Order of the start: CA, secret store, state, sockets, audit, engine. What fails says why and gives the process its exit code:
78 for settings and CA, 71 for a listener, 74 for an audit sink. Order of the end: stop accepting, let requests finish,
close the audit, then the store, whose own login is revoked last.

With more than one worker the process is a supervisor (`workers/supervisor.py`), and none of this is built in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace

from addons.audit import AuditConfig, FileSink, SinkError
from addons.user_addon import UserAddon
from ostiary.admin import start_listeners
from ostiary.control import control_of
from ostiary.life import EXIT_OK, on_hang_up, run_to_the_end, settle, tell_ready
from ostiary.listening import Opened, open_sockets, written
from ostiary.proxy import Proxy, begin, build
from ostiary.reload import Judge, Reloader
from ostiary.settings.load import judge_reloaded
from ostiary.settings.model import Bound, ListenSetting, Settings
from ostiary.settings.workers import share_of
from policies import Place, Policy

_log = logging.getLogger("ostiary.serve")


@dataclass(frozen=True, slots=True)
class Private:
    """A private proxy of `exec`: one loopback listener that serves whoever has the key, for one workload."""

    workload: str
    key_sha256: str


def main(
    settings: Settings,
    policy: Policy,
    *,
    environ: Mapping[str, str],
    private: Private | None = None,
    addons: tuple[UserAddon, ...] = (),
) -> int:
    """Runs until a signal; returns the exit code."""
    return run_to_the_end(lambda: _run(settings, policy, environ, private, addons))


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
    return replace(settings, listen=(listener,), admin=None, audit=audit, workers=1)


async def _run(
    given: Settings,
    policy: Policy,
    environ: Mapping[str, str],
    private: Private | None,
    addons: tuple[UserAddon, ...],
) -> int:
    settings = private_settings(given, private) if private else share_of(given, 0)
    async with contextlib.AsyncExitStack() as ending:
        # Ended in reverse: sockets, audit, store. Each is ended whatever happens to the others.
        begun = await begin(settings, environ, ending)
        opened = open_sockets(settings)
        ending.callback(opened.close)
        extra_keys = {private.key_sha256: private.workload} if private else {}
        own = opened.own() | (await asyncio.to_thread(written, given) if private else frozenset())
        proxy = await build(begun, policy, own, ending, extra_keys=extra_keys, addons=addons)
        # The one listener of a private proxy is not among those of the settings, which routes may name.
        judge = functools.partial(judge_reloaded, settings, private=private is not None)
        await _serve(settings, proxy, opened, judge)
    return EXIT_OK


async def _serve(settings: Settings, proxy: Proxy, opened: Opened, judge: Judge | None) -> None:
    parts = proxy.parts
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    reloader = Reloader(settings.policies, settings.variables, parts, judge=judge, before=proxy.looked_after.read_again)
    for listener, (bound,) in opened.listeners:
        await proxy.listen(listener, bound)
    tokens = settings.admin.tokens if settings.admin is not None else ()
    control = control_of(parts, reloader, proxy.health)
    listeners = start_listeners(opened.admin, opened.probes, tokens, control, parts.clock)
    tell_ready(opened)
    reloader.loaded(parts.in_force.policy)
    on_hang_up(loop, reloader.signalled)
    settle()
    await ended.wait()
    proxy.health.draining = True
    await proxy.engine.drain(settings.limits.drain_timeout)
    await listeners.end()
