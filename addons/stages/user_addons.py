"""Runs users' own addons inside the boundary that our stages run in.

On the request side they stand behind every check and before the secret is opened: they see no request that is not
granted, and never a credential. On the answer's side they come first, so that our own stages clean what they leave.
An addon that raises, hangs, kills the flow or changes what it may not ends the request; its name stands in the record.
An `error` hook tells of a request that has failed already: nothing it does changes that.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from mitmproxy import addonmanager as _addonmanager  # noqa: F401 - it declares hooks
from mitmproxy import hooks, http
from mitmproxy import log as _mitmproxy_log  # noqa: F401 - likewise
from mitmproxy.proxy import layers as _layers  # noqa: F401 - likewise
from mitmproxy.proxy import server_hooks as _server_hooks  # noqa: F401 - likewise

from addons.boundary import place_of
from addons.clock import Clock
from addons.exchange import Exchange, WorkloadIdentity
from addons.identity.caller_key import PROXY_FIELD, REVERSE_FIELD
from addons.injection.places import place
from addons.parts import Parts
from addons.refusal import Answered, Code, Refusal
from addons.stages.registry import Registry
from addons.stages.user_changes import (
    Before,
    Forbidden,
    Killed,
    answer_of,
    judge_answer,
    judge_before_sending,
    restore,
    taken,
)
from addons.user_addon import UserAddon
from addons.verifying.received import keep_sent

_log = logging.getLogger("ostiary.addons")

_PROOFS: Final = frozenset({PROXY_FIELD.lower().encode(), REVERSE_FIELD.lower().encode()})
MITMPROXY_HOOKS: Final = frozenset(hooks.all_hooks)
"""Every hook that mitmproxy knows, ours to offer or not."""

BLOCKED_S: Final = 0.1
"""A hook that keeps the process this long without waiting is told of: every other request stood still meanwhile."""
TELL_EVERY_S: Final = 60.0


class HookTimeout(Exception):
    """A hook waited longer than it may."""


class Exited(Exception):
    """A hook wanted the process to end."""


class Shown:
    """That the addons have been shown this exchange: they see its answer too."""

    __slots__ = ()


class Runner:
    """Calls hooks, each within its deadline. A hook that does not let itself be cancelled is left behind, not waited
    for.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._abandoned: set[asyncio.Task[None]] = set()
        self._told_s: dict[str, float] = {}

    async def call(self, addon: UserAddon, hook: str, *subject: object) -> None:
        """Calls one hook, if the addon has it.

        Raises:
            HookTimeout: it took too long.
            Exception: whatever it raised. `SystemExit` and its kin come as `Exited`.
        """
        function = addon.hooks.get(hook)
        if function is None:
            return
        began_s = self._clock.monotonic_s()
        # Eager: a coroutine that waits for nothing costs no turn of the loop.
        task = asyncio.Task(_contained(function, subject), loop=asyncio.get_running_loop(), eager_start=True)
        try:
            blocked_s = self._clock.monotonic_s() - began_s
            if blocked_s > BLOCKED_S:
                self._tell(addon, hook, blocked_s)
            if not task.done():
                await asyncio.wait({task}, timeout=addon.timeout_s)
        finally:
            # Also when we are cancelled ourselves: nothing of an addon goes on unseen.
            if not task.done():
                self._abandon(task)
            elif not task.cancelled():
                task.exception()
        if not task.done():
            raise HookTimeout
        if task.cancelled():
            raise Exited
        task.result()

    def _abandon(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        # One that will not be cancelled must not keep the process from ending: nothing waits for it, then either.
        asyncio.tasks._unregister_task(task)  # noqa: SLF001 - documented for those who make tasks of their own
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - as asyncio.gather does
        self._abandoned.add(task)
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # seen: nobody prints it

    def _tell(self, addon: UserAddon, hook: str, blocked_s: float) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._told_s.get(addon.name, -TELL_EVERY_S) < TELL_EVERY_S:
            return
        self._told_s[addon.name] = now_s
        _log.warning(
            "addon %s kept every request waiting for %d ms in %s: what takes long must be awaited",
            addon.name,
            round(blocked_s * 1000),
            hook,
        )


async def _contained(function: Callable[..., Any], subject: tuple[object, ...]) -> None:
    try:
        result: Awaitable[object] | None = function(*subject)
        if result is not None and inspect.isawaitable(result):
            await result
    except (SystemExit, KeyboardInterrupt):
        raise Exited from None


class UserAddons:
    """What both stages have in common."""

    def __init__(self, parts: Parts, registry: Registry) -> None:
        self.parts = parts
        self.registry = registry
        self.addons = parts.user_addons
        self.runner = Runner(parts.clock)

    async def run(
        self, exchange: Exchange, addon: UserAddon, hook: str, flow: http.HTTPFlow, judge: Callable[[Before], None]
    ) -> None:
        """One hook of one addon, and what it has done.

        Args:
            exchange: of the flow.
            addon: that has this hook.
            hook: its name.
            flow: what it is shown.
            judge: raises `Forbidden` or `Killed` where it has done what it may not.

        Raises:
            Refusal: `internal`, or `access_denied` for `flow.kill()`.
        """
        before = taken(flow)
        try:
            await self.runner.call(addon, hook, flow)
            judge(before)
        except Killed:
            exchange.addon = addon.name
            restore(before, flow)
            raise Refusal(Code.ACCESS_DENIED, "An addon of this proxy refused the request.", close=True) from None
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the addon's, and it must be named
            exchange.addon = addon.name
            restore(before, flow)
            _log.error(
                "addon %s failed in %s of request %s: %s", addon.name, hook, exchange.request_id, _told(error, addon)
            )
            raise Refusal(Code.INTERNAL, "An addon of this proxy failed.", close=True) from None

    def note_overhead(self, began_s: float) -> None:
        self.parts.metrics.stage_overhead("addons", self.parts.clock.monotonic_s() - began_s)


def _told(error: BaseException, addon: UserAddon) -> str:
    """A failure without the text of a foreign exception, which may hold anything."""
    match error:
        case Forbidden():
            return str(error)
        case HookTimeout():
            return f"it did not end within {addon.timeout_s:g} s"
        case _:
            return f"{type(error).__name__} at {place_of(error)}"


class UserRequestStage:
    """Shows granted requests to the addons, and hears of those that failed. Puts `Shown`."""

    def __init__(self, common: UserAddons) -> None:
        self._common = common
        self._telling: set[asyncio.Task[None]] = set()

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        common = self._common
        exchange = common.registry.exchange(flow)
        began_s = common.parts.clock.monotonic_s()
        # The caller's proof is for this proxy alone.
        flow.request.headers.fields = tuple(
            field for field in flow.request.headers.fields if place(field[0]) not in _PROOFS
        )
        flow.metadata["ostiary.request_id"] = exchange.request_id
        flow.metadata["ostiary.workload"] = exchange.ask(WorkloadIdentity).workload
        flow.metadata["ostiary.route"] = exchange.route
        exchange.put(Shown())
        keep_sent(exchange)
        for addon in common.addons:
            if "requestheaders" in addon.hooks:
                await self._ask(exchange, addon, flow)
        common.note_overhead(began_s)

    async def _ask(self, exchange: Exchange, addon: UserAddon, flow: http.HTTPFlow) -> None:
        answered: list[Answered] = []

        def judge(before: Before) -> None:
            fields = judge_before_sending(before, flow, self._common.parts.heads)
            if flow.response is not None:
                answered.append(Answered(answer_of(flow.response, exchange.request_id)))
            elif fields is not None:
                if exchange.head.http2:
                    fields = tuple((name.lower(), value) for name, value in fields)
                exchange.head = exchange.head._replace(fields=fields)

        await self._common.run(exchange, addon, "requestheaders", flow, judge)
        if answered:
            exchange.addon = addon.name
            raise answered[0]

    def error(self, flow: http.HTTPFlow) -> None:
        common = self._common
        exchange = common.registry.find(flow)
        if exchange is None or exchange.find(Shown) is None or not any("error" in one.hooks for one in common.addons):
            return
        # By itself: the caller's connection may be gone, and with it everything that runs for it.
        task = asyncio.Task(self._tell(exchange, flow), loop=asyncio.get_running_loop(), eager_start=True)
        if not task.done():
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell(self, exchange: Exchange, flow: http.HTTPFlow) -> None:
        for addon in reversed(self._common.addons):
            try:
                await self._common.runner.call(addon, "error", flow)
            except Exception as error:  # noqa: BLE001 - the request has failed and is recorded
                _log.error(
                    "addon %s failed in error of request %s: %s", addon.name, exchange.request_id, _told(error, addon)
                )


class UserReplyStage:
    """Shows answers to the addons, before any stage of ours has touched them; the last addon sees them first."""

    def __init__(self, common: UserAddons) -> None:
        self._common = common

    async def responseheaders(self, flow: http.HTTPFlow) -> None:
        await self._show(flow, "responseheaders", fields_may_change=True)

    async def response(self, flow: http.HTTPFlow) -> None:
        await self._show(flow, "response", fields_may_change=False)

    async def _show(self, flow: http.HTTPFlow, hook: str, *, fields_may_change: bool) -> None:
        common = self._common
        exchange = common.registry.exchange(flow)
        if exchange.find(Shown) is None or exchange.refused is not None or flow.response is None:
            return
        began_s = common.parts.clock.monotonic_s()

        def judge(before: Before) -> None:
            judge_answer(before, flow, fields_may_change=fields_may_change)

        for addon in reversed(common.addons):
            if hook in addon.hooks:
                await common.run(exchange, addon, hook, flow, judge)
        common.note_overhead(began_s)
