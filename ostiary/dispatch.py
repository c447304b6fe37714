"""Dispatches hooks to addons, and fails closed.

mitmproxy's own manager logs an exception in an addon and lets the request pass. Here the first exception ends the run
of that hook and is handed to `on_failure`, which refuses whatever the hook was about. Callables are looked up once a
hook name; answer hooks run in reverse order of the chain.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final, Protocol

from mitmproxy import addonmanager, hooks
from mitmproxy.master import Master

_REVERSED: Final = frozenset({"responseheaders", "response", "error"})


class Failed(Protocol):
    """Told of a hook that did not complete, by its name and its one argument."""

    def __call__(self, name: str, subject: Any, error: BaseException, /) -> None: ...


def _propagate(_name: str, _subject: Any, error: BaseException) -> None:
    raise error


class Dispatcher(addonmanager.AddonManager):
    """The addon manager of our Master.

    `on_failure` raises until the engine sets it: an addon that fails while the process starts must stop the start.
    """

    def __init__(self, master: Master) -> None:
        self._callables: dict[str, tuple[Callable[..., Any], ...]] = {}
        self.on_failure: Failed = _propagate
        super().__init__(master)

    def register(self, addon: Any) -> Any:
        self._forget()
        return super().register(addon)

    def remove(self, addon: Any) -> None:
        super().remove(addon)
        self._forget()

    def add(self, *addons: Any) -> None:
        super().add(*addons)
        self._forget()

    def _forget(self) -> None:
        self._callables.clear()

    def callables(self, name: str) -> tuple[Callable[..., Any], ...]:
        """Hook functions of this name in the order they run."""
        try:
            return self._callables[name]
        except KeyError:
            pass
        found = [
            getattr(addon, name) for addon in addonmanager.traverse(self.chain) if callable(getattr(addon, name, None))
        ]
        if name in _REVERSED:
            found.reverse()
        self._callables[name] = tuple(found)
        return self._callables[name]

    def start(self, name: str, subject: Any) -> Coroutine[Any, Any, None] | None:
        """Runs a hook as far as it goes without waiting.

        A function that has nothing to wait for this time completes here, without a coroutine or a task, which would
        cost as much as most stages.

        Args:
            name: of the hook.
            subject: its one argument.

        Returns:
            The rest of the hook, to be run as a task: None where it has ended. Like this method it never raises: a
            failure, cancellation included, goes to `on_failure`.
        """
        try:
            functions = iter(self._callables.get(name) or self.callables(name))
            for function in functions:
                result = function(subject)
                if result is not None and inspect.isawaitable(result):
                    return self._go_on(name, subject, result, functions)
        except BaseException as error:
            self.on_failure(name, subject, error)
            if not isinstance(error, Exception) and not _is_cancellation(error):
                raise
        return None

    async def _go_on(
        self, name: str, subject: Any, waits: Awaitable[object], functions: Iterator[Callable[..., Any]]
    ) -> None:
        try:
            await waits
            for function in functions:
                result = function(subject)
                if result is not None and inspect.isawaitable(result):
                    await result
        except BaseException as error:
            self.on_failure(name, subject, error)
            if not isinstance(error, Exception) and not _is_cancellation(error):
                raise

    async def run(self, hook: hooks.Hook) -> None:
        """Runs one hook through every addon. Never raises: see `start`."""
        (subject,) = hook.args()
        rest = self.start(hook.name, subject)
        if rest is not None:
            await rest

    def handle_lifecycle(self, event: hooks.Hook) -> Awaitable[None]:  # type: ignore[override]  # a plain function that returns the coroutine
        return self.run(event)

    def trigger_event(self, event: hooks.Hook) -> Awaitable[None]:  # type: ignore[override]  # as above
        return self.run(event)

    def trigger(self, event: hooks.Hook) -> None:
        """Synchronous hooks (`configure`, `load`): a failure stops the start."""
        for addon in self.chain:
            self.invoke_addon_sync(addon, event)


def _is_cancellation(error: BaseException) -> bool:
    import asyncio

    return isinstance(error, asyncio.CancelledError)
