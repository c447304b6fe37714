"""What mitmproxy would do by itself, and does not here: options, dispatch, order of hooks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from mitmproxy.proxy.layers.http._hooks import HttpRequestHeadersHook, HttpResponseHook
from mitmproxy.test import tflow

from addons.parts import Deadlines
from ostiary.dispatch import Dispatcher
from ostiary.engines.mitm.master import LeanMaster
from ostiary.engines.mitm.options import FORCED, ForbiddenOption, snapshot
from ostiary.engines.mitm.watch import Watch


async def master() -> LeanMaster:
    return LeanMaster(asyncio.get_running_loop())


async def test_forced_options_hold() -> None:
    one = await master()
    for name, value in FORCED.items():
        if name in one.options:
            assert getattr(one.options, name) == value, name
    assert snapshot(one.options, idle_s=300).tcp_timeout == 300


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rawtcp", True),
        ("ssl_insecure", True),
        ("validate_inbound_headers", False),
        ("ignore_hosts", [".*"]),
        ("connection_strategy", "eager"),
        ("body_size_limit", "1m"),
    ],
)
async def test_a_contrary_option_stops_the_start(name: str, value: object) -> None:
    one = await master()

    class Turns:
        def load(self, loader: Any) -> None:
            loader.master.options.update(**{name: value})

    with pytest.raises(ForbiddenOption, match=name):
        one.install([Turns()])


class Recorder:
    def __init__(self, name: str, seen: list[str], fail: BaseException | None = None) -> None:
        self.name, self.seen, self.fail = name, seen, fail

    def requestheaders(self, flow: Any) -> None:
        self.seen.append(self.name)
        if self.fail is not None:
            raise self.fail

    async def response(self, flow: Any) -> None:
        await asyncio.sleep(0)
        self.seen.append(self.name)


async def test_e1_e3_the_first_failure_ends_the_run_and_is_told() -> None:
    dispatcher: Dispatcher = (await master()).addons
    seen: list[str] = []
    told: list[BaseException] = []
    failure = RuntimeError("x")
    dispatcher.on_failure = lambda name, subject, error: told.append(error)
    dispatcher.add(Recorder("one", seen), Recorder("two", seen, failure), Recorder("three", seen))
    await dispatcher.run(HttpRequestHeadersHook(tflow.tflow()))
    assert seen == ["one", "two"]
    assert told == [failure]


async def test_e4_a_cancellation_is_told_too() -> None:
    dispatcher: Dispatcher = (await master()).addons
    told: list[BaseException] = []
    dispatcher.on_failure = lambda name, subject, error: told.append(error)
    dispatcher.add(Recorder("one", [], asyncio.CancelledError()))
    await dispatcher.run(HttpRequestHeadersHook(tflow.tflow()))
    assert isinstance(told[0], asyncio.CancelledError)


async def test_answer_hooks_run_in_reverse() -> None:
    dispatcher: Dispatcher = (await master()).addons
    seen: list[str] = []
    dispatcher.add(Recorder("one", seen), Recorder("two", seen))
    await dispatcher.run(HttpRequestHeadersHook(tflow.tflow()))
    await dispatcher.run(HttpResponseHook(tflow.tflow(resp=True)))
    assert seen == ["one", "two", "two", "one"]


async def test_callables_are_looked_up_once() -> None:
    dispatcher: Dispatcher = (await master()).addons
    first = dispatcher.callables("requestheaders")
    assert dispatcher.callables("requestheaders") is first
    dispatcher.add(Recorder("late", []))
    assert len(dispatcher.callables("requestheaders")) == len(first) + 1


async def expires(times: Deadlines, *steps: tuple[float, str]) -> str | None:
    """Which deadline passes first, in a run of scripted steps."""
    found: list[str] = []
    watch = Watch(asyncio.get_running_loop(), times, found.append)
    for wait_s, step in steps:
        await asyncio.sleep(wait_s)
        if step:
            getattr(watch, step)()
    watch.stop()
    return found[0] if found else None


async def test_watch_first_byte_idle_total() -> None:
    quick = Deadlines(first_byte_s=0.1, idle_s=0.2, total_s=0)
    assert await expires(quick, (0, "request_sent"), (0.15, "")) == "first_byte"
    assert await expires(quick, (0.25, "")) == "idle"
    assert (
        await expires(quick, (0.15, "touch"), (0.15, "touch"), (0.1, "request_sent"), (0.05, "answered"), (0.15, ""))
        is None
    )
    assert await expires(quick, (0, "request_sent"), (0.05, "answered"), (0.25, "")) == "idle"
    assert await expires(Deadlines(first_byte_s=0, idle_s=0, total_s=0.1), (0.15, "")) == "total"
    assert await expires(Deadlines(first_byte_s=0, idle_s=0, total_s=0), (0.15, "")) is None
