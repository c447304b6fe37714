"""One worker: the proxy of one process, on sockets that the supervisor has opened, doing what the supervisor asks.

It begins to accept when it is told to, and takes a policy in two steps: `prepare` makes it and changes nothing, `commit`
puts it in force and cannot fail. When the supervisor goes away, whatever the reason, the worker drains and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Final

from addons.user_addon import UserAddon
from ostiary import __version__, keepers
from ostiary.admin import AdminRefusal
from ostiary.control import record_refusal
from ostiary.life import EXIT_OK, run_to_the_end, settle
from ostiary.listeners import listener_of
from ostiary.logs import set_up
from ostiary.proxy import Proxy, begin, build
from ostiary.reload import load_texts_or_faults, tell_loaded, tell_rejected
from ostiary.settings.load import load_texts_to_run
from ostiary.settings.model import Settings
from ostiary.settings.workers import share_of
from ostiary.workers.beginning import Beginning, policy_texts
from ostiary.workers.channel import Answer, Body, Channel, ChannelClosed, read_first
from ostiary.workers.login import asking, shares_login
from ostiary.workers.secrets import found_body, statuses_body
from policies import Policy

_log = logging.getLogger("ostiary.workers")

EXIT_OTHER_VERSION: Final = 70


def main(descriptor: int, environ: Mapping[str, str]) -> int:
    """Runs one worker; `descriptor` is its end of the channel."""
    os.set_inheritable(descriptor, False)
    end = socket.socket(fileno=descriptor)
    try:
        beginning = Beginning.of(read_first(end))
    except (ChannelClosed, OSError):
        return EXIT_OK  # the supervisor has gone already
    set_up(worker=beginning.number)
    for group in beginning.sockets:
        for number in group:
            os.set_inheritable(number, False)
    if beginning.version != __version__:
        sys.stderr.write(
            f"ostiary: a worker of {__version__} cannot serve under {beginning.version}: restart ostiary\n"
        )
        return EXIT_OTHER_VERSION
    settings, policy, addons = load_texts_to_run(beginning.file, environ, beginning.texts, beginning.workers)
    return run_to_the_end(lambda: _run(beginning, end, settings, policy, environ, addons))


async def _run(
    beginning: Beginning,
    end: socket.socket,
    whole: Settings,
    policy: Policy,
    environ: Mapping[str, str],
    addons: tuple[UserAddon, ...],
) -> int:
    settings = share_of(whole, beginning.number)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    # Of a terminal's keys, and a hang-up, the supervisor makes what is to be made.
    terminal = (signal.SIGINT, signal.SIGHUP)
    for number in terminal:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, terminal)  # blocked so far: nothing that it starts is to inherit that
    async with contextlib.AsyncExitStack() as ending:
        # There from the start: the login is asked for over it. The supervisor asks nothing before `built`.
        answers: dict[str, Answer] = {}
        channel = Channel(answers)
        await channel.open(end)
        running = loop.create_task(channel.run())
        running.add_done_callback(lambda _: ended.set())
        begun = await begin(settings, environ, ending, asking(channel) if shares_login(whole) else None)
        # Its own sockets, and those of every sibling, to be served when that one falls.
        held = len({number for group in beginning.sockets for number in group})
        proxy = await build(begun, policy, beginning.own, ending, extra_keys={}, addons=addons, held=held)
        worker = Worker(beginning, settings, proxy, ended)
        answers.update(worker.answers())
        channel.tell("built", policy=policy.version)
        await ended.wait()
        channel.tell("draining")
        worker.let_go()
        proxy.health.draining = True
        await proxy.engine.drain(settings.limits.drain_timeout)
        # What was counted to the end, for sums that outlive this process.
        channel.tell("ended", metrics=await asyncio.to_thread(worker.exposition))
        await channel.flush()
        channel.close()
        await running
    return EXIT_OK


class Worker:
    """What the supervisor may ask of a worker.

    Args:
        beginning: what it was told first.
        settings: its share of them.
        proxy: that serves.
        ended: set to end it.
    """

    def __init__(self, beginning: Beginning, settings: Settings, proxy: Proxy, ended: asyncio.Event) -> None:
        self._number = beginning.number
        self._groups = beginning.sockets
        self._settings = settings
        self._proxy = proxy
        self._ended = ended
        self._prepared: Policy | None = None
        self._preparing = asyncio.Lock()
        self._covered: dict[int, list[asyncio.Server]] = {}

    def answers(self) -> dict[str, Answer]:
        return {
            "accept": self._accept,
            "cover": self._cover,
            "uncover": self._uncover,
            "prepare": self._prepare,
            "commit": self._commit,
            "abandon": self._abandon,
            "reopen": self._reopen,
            "rejected": self._rejected,
            "refused": self._refused,
            "metrics": self._metrics,
            "readiness": self._readiness,
            "secrets": self._secrets,
            "refresh": self._refresh,
            "ping": self._ping,
            "drain": self._drain,
        }

    def exposition(self) -> str:
        body, _ = self._proxy.parts.metrics.render("")
        return body.decode()

    # --- accepting ---

    def let_go(self) -> None:
        """Closes every descriptor of a listener: a port must not seem open because a worker still drains."""
        for descriptor in {number for group in self._groups for number in group}:
            os.close(descriptor)
        self._groups = ()

    async def _accept(self, _: Body) -> Body:
        """Accepts on its own sockets. Their descriptors, and those of its siblings, are kept for later."""
        settle()  # before anybody waits
        await self._listen(self._number)
        tell_loaded(self._proxy.parts, self._proxy.parts.in_force.policy, "")
        return {}

    async def _cover(self, body: Body) -> None:
        """Accepts on the sockets of a sibling that has fallen, so that nobody who was sent there waits."""
        if body["of"] not in self._covered:
            await self._listen(body["of"])

    async def _uncover(self, body: Body) -> None:
        for server in self._covered.pop(body["of"], ()):
            self._proxy.engine.unlisten(server)

    async def _listen(self, number: int) -> None:
        if not self._groups:
            return  # it has let go of them
        with contextlib.ExitStack() as undo:
            servers: list[asyncio.Server] = []
            for listen, descriptor in zip(self._settings.listen, self._groups[number], strict=True):
                if number != self._number and listen.bind.path is not None:
                    continue  # one socket for all of them
                bound = socket.socket(fileno=os.dup(descriptor))
                undo.callback(bound.close)
                servers.append(await self._proxy.listen(listener_of(listen, bound), bound))
                undo.callback(self._proxy.engine.unlisten, servers[-1])
            # Half of them would count as all, and whoever is sent to the rest would wait.
            undo.pop_all()
        self._covered[number] = servers

    # --- the policy ---

    async def _prepare(self, body: Body) -> Body:
        texts = policy_texts(body["policy"])
        # One after the other: one that nobody waits for any longer must not come after the next.
        async with self._preparing:
            found = await asyncio.to_thread(
                load_texts_or_faults, texts, self._settings.policies, self._settings.variables
            )
            if not isinstance(found, Policy):
                return {"faults": [str(fault) for fault in found]}
            self._prepared = found
        return {"version": found.version}

    async def _commit(self, body: Body) -> Body:
        policy, self._prepared = self._prepared, None
        if policy is None or policy.version != body["version"]:
            raise LookupError
        self._proxy.parts.in_force.policy = policy
        if not body.get("quietly"):
            tell_loaded(self._proxy.parts, policy, body["by"])
        return {"version": policy.version}

    async def _abandon(self, _: Body) -> None:
        self._prepared = None

    async def _reopen(self, _: Body) -> None:
        await self._proxy.looked_after.read_again()
        await self._proxy.parts.audit.reopen()

    # --- records of the supervisor, which has no audit of its own ---

    async def _rejected(self, body: Body) -> None:
        tell_rejected(self._proxy.parts, body["version"], body["reason"], body["by"])

    async def _refused(self, body: Body) -> None:
        record_refusal(self._proxy.parts, AdminRefusal(**body))

    # --- what it is asked for ---

    async def _metrics(self, _: Body) -> Body:
        return {"metrics": await asyncio.to_thread(self.exposition)}

    async def _readiness(self, _: Body) -> Body:
        return {"problems": await self._proxy.health.problems()}

    async def _secrets(self, _: Body) -> Body:
        return statuses_body(keepers.statuses(self._proxy.parts))

    async def _refresh(self, body: Body) -> Body:
        return found_body(await keepers.refresh(self._proxy.parts, body["name"], body["by"]))

    async def _ping(self, _: Body) -> Body:
        return {}

    async def _drain(self, _: Body) -> None:
        self._ended.set()
