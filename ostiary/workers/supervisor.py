"""The supervisor: opens and keeps the sockets, starts the workers, answers the admin API for all of them, ends them.

It serves no caller, reads no secret and writes no audit: what is to be recorded of it, a worker records. It logs in to
Vault for all (`login.py`). Exit codes are those of a single process; what stops a worker's start stops this one's.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import signal
from collections.abc import Mapping
from typing import Final

from addons.clock import SystemClock
from addons.telemetry import Metrics
from ostiary import __version__
from ostiary.admin import start_listeners
from ostiary.ca import load_or_create
from ostiary.descriptors import raise_limit
from ostiary.life import EXIT_OK, on_hang_up, run_to_the_end, settle, tell_ready
from ostiary.listening import open_sockets
from ostiary.settings.load import Texts, judge_reloaded
from ostiary.settings.model import Settings
from ostiary.stores import open_store
from ostiary.workers.beginning import Beginning
from ostiary.workers.channel import Answer
from ostiary.workers.control import CrewControl
from ostiary.workers.crew import Crew, StartFailed
from ostiary.workers.login import SharedLogin, shares_login
from policies import Policy

EXIT_FAILED: Final = 70
"""A worker did not begin and gave no reason of its own: it was killed."""


def main(settings: Settings, policy: Policy, texts: Texts, *, environ: Mapping[str, str]) -> int:
    """Runs until a signal; returns the exit code."""
    return run_to_the_end(lambda: _run(settings, policy, texts, environ))


async def _run(settings: Settings, policy: Policy, texts: Texts, environ: Mapping[str, str]) -> int:
    # What every worker would stumble over is told once, and two of them never make a CA at the same time.
    load_or_create(settings.ca_dir, dt.datetime.now(dt.UTC))
    if settings.store == "sealed":
        await open_store(settings, environ, Metrics(__version__)).close()
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    raise_limit()  # a socket for each worker and listener
    async with contextlib.AsyncExitStack() as ending:
        opened = ending.enter_context(contextlib.closing(open_sockets(settings, settings.workers)))
        answers: dict[str, Answer] = {}
        if settings.vault is not None and shares_login(settings):
            shared = SharedLogin(settings.vault)
            # Whichever way this ends, the workers have ended before.
            ending.push_async_callback(shared.close)
            answers["login"] = shared.answer
        descriptors = tuple(
            tuple(group[number].fileno() for _, group in opened.listeners) for number in range(settings.workers)
        )
        beginning = Beginning(__version__, 0, settings.workers, settings.file, texts, opened.own(), descriptors)
        crew = Crew(beginning, policy.version, settings.limits.drain_timeout, answers)
        control = CrewControl(
            crew, settings.policies, settings.variables, policy, functools.partial(judge_reloaded, settings)
        )
        on_hang_up(loop, control.turns.signalled)
        starting = loop.create_task(crew.begin())
        stopped = loop.create_task(ended.wait())
        await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            # Asked to end before it was ready.
            await crew.end()
        stopped.cancel()
        try:
            await starting
        except StartFailed as error:
            return EXIT_OK if ended.is_set() else max(error.code, 0) or EXIT_FAILED
        tokens = settings.admin.tokens if settings.admin is not None else ()
        listeners = start_listeners(opened.admin, opened.probes, tokens, control.control(), SystemClock())
        tell_ready(opened, workers=settings.workers)
        settle()
        await ended.wait()
        control.draining = True
        opened.close_listeners()
        await crew.end()
        await listeners.end()
    return EXIT_OK
