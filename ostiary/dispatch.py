"""Dispatches hooks to addons, and fails closed.

mitmproxy's own manager logs an exception in an addon and lets the request pass. Here the first exception ends the run
of that hook and is handed to `on_failure`, which refuses whatever the hook was about. Callables are looked up once a
hook name; answer hooks run in reverse order of the chain.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from mitmproxy import addonmanager, hooks
from mitmproxy.master import Master

_REVERSED: Final = frozenset({"responseheaders", "response", "error"})


class Failed(Protocol):
    """Told of a hook that did not complete."""

    def __call__(self, hook: hooks.Hook, error: BaseException, /) -> None: ...


def _propagate(_hook: hooks.Hook, error: BaseException) -> None:
    raise error


class Dispatcher(addonmanager.AddonManager):
    """The addon manager of our Master.

    `on_failure` raises until the engine sets it: an addon that fails while the process starts must stop the start.
    """

    def __init__(self, master: Master) -> None:
        self._callables: dict[str, tuple[Callable[..., Any], ...]] = {}
        self._suspending: set[str] = set()
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
        self._suspending.clear()

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
        if any(inspect.iscoroutinefunction(function) for function in found):
            self._suspending.add(name)
        self._callables[name] = tuple(found)
        return self._callables[name]

    def run_now(self, hook: hooks.Hook) -> bool:
        """Runs a hook at once if all its functions are plain ones; False, with nothing done, where one is a coroutine.

        Most hooks of a request are plain: a task for each would cost as much as the hook.
        """
        found = self.callables(hook.name)
        if not found:
            return True
        if hook.name in self._suspending:
            return False
        (subject,) = hook.args()
        try:
            for function in found:
                result = function(subject)
                if result is not None and inspect.isawaitable(result):
                    raise TypeError(f"{function!r} gave an awaitable without being a coroutine function")  # noqa: TRY301 - as any other failure
        except BaseException as error:
            self.on_failure(hook, error)
            if not isinstance(error, Exception) and not _is_cancellation(error):
                raise
        return True

    async def run(self, hook: hooks.Hook) -> None:
        """Runs one hook through every addon. Never raises: a failure, cancellation included, goes to `on_failure`."""
        found = self.callables(hook.name)
        if not found:
            return
        (subject,) = hook.args()
        try:
            for function in found:
                result = function(subject)
                if result is not None and inspect.isawaitable(result):
                    await result
        except BaseException as error:
            self.on_failure(hook, error)
            if not isinstance(error, Exception) and not _is_cancellation(error):
                raise

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
