"""Questions and answers between two processes, here both ends in one."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from ostiary.workers import channel
from ostiary.workers.channel import Answer, Body, Channel, ChannelClosed, NotDone, read_first

type Pair = tuple[Channel, Channel, asyncio.Task[None]]


async def echo(body: Body) -> Body:
    return body


async def fails(_: Body) -> Body:
    raise LookupError("cnry-text")


async def never(_: Body) -> Body:
    await asyncio.Event().wait()
    return {}


@pytest.fixture
async def pair() -> AsyncIterator[Callable[..., Any]]:
    made: list[Any] = []

    async def make(**answers: Answer) -> Pair:
        ours, theirs = socket.socketpair()
        one, two = Channel({}), Channel({"echo": echo, "fails": fails, "never": never, **answers})
        await one.open(ours)
        await two.open(theirs)
        tasks = [asyncio.ensure_future(end.run()) for end in (one, two)]
        made.extend([one, two, *tasks])
        return one, two, tasks[0]

    yield make
    for one in made:
        if isinstance(one, Channel):
            one.close()
    await asyncio.gather(*(one for one in made if isinstance(one, asyncio.Task)))


async def test_many_at_once_each_gets_its_own(pair: Callable[..., Any]) -> None:
    one, _, _ = await pair()
    slow = asyncio.ensure_future(one.ask("never", 5))
    found = await asyncio.gather(*(one.ask("echo", 5, number=number, text="ü" * 1000) for number in range(50)))
    assert [body["number"] for body in found] == list(range(50))
    assert found[0]["text"] == "ü" * 1000
    # More than a socket's buffer holds, both ways.
    policy = [["a.yaml", "x" * 3_000_000, 0]]
    assert (await one.ask("echo", 20, policy=policy))["policy"] == policy
    slow.cancel()


async def test_what_fails_is_told_by_its_type(pair: Callable[..., Any]) -> None:
    one, _, _ = await pair()
    with pytest.raises(NotDone, match=r"^LookupError$"):
        await one.ask("fails", 5)
    with pytest.raises(NotDone, match=r"^KeyError$"):
        await one.ask("nothing", 5)
    with pytest.raises(TimeoutError):
        await one.ask("never", 0.05)
    assert await one.ask("echo", 5, a=1) == {"a": 1}


async def test_the_end_of_one_is_told_to_all_who_wait(pair: Callable[..., Any]) -> None:
    one, two, running = await pair()
    waiting = [asyncio.ensure_future(one.ask("never", 30)) for _ in range(3)]
    await asyncio.sleep(0.05)
    two.close()
    for one_of in waiting:
        with pytest.raises(ChannelClosed):
            await one_of
    await asyncio.wait_for(running, 5)
    with pytest.raises(ChannelClosed):
        await one.ask("echo", 5)
    assert not one.tell("echo")


async def test_what_was_told_before_the_end_arrives(pair: Callable[..., Any]) -> None:
    heard: list[Any] = []

    async def hear(body: Body) -> None:
        heard.append(body)

    one, _, _ = await pair(hear=hear)
    assert one.tell("hear", metrics="x" * 100_000)
    await one.flush()
    one.close()
    async with asyncio.timeout(5):
        while not heard:
            await asyncio.sleep(0.01)
    assert len(heard[0]["metrics"]) == 100_000


async def test_a_peer_that_does_not_read_is_told_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_UNREAD_BYTES", 10_000)
    ours, theirs = socket.socketpair()
    one = Channel({})
    await one.open(ours)
    told = 0
    while one.tell("refused", text="x" * 1000):
        told += 1
        assert told < 100_000
    assert told > 10
    one.close()
    theirs.close()


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("!I", 300 * 1024 * 1024),
        struct.pack("!I", 2) + b"[]",
        struct.pack("!I", 3) + b"nix",
        struct.pack("!I", 2) + b"{}",
        b"\x00\x00",
    ],
)
async def test_what_is_no_frame_ends_it(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    one = Channel({})
    await one.open(ours)
    running = asyncio.ensure_future(one.run())
    theirs.sendall(raw)
    theirs.shutdown(socket.SHUT_WR)
    await asyncio.wait_for(running, 5)
    with pytest.raises(ChannelClosed):
        await one.ask("echo", 1)
    theirs.close()


def test_the_first_question_is_read_without_a_loop() -> None:
    ours, theirs = socket.socketpair()
    raw = json.dumps({"ask": "begin", "with": {"number": 1}}).encode()
    ours.sendall(struct.pack("!I", len(raw)) + raw + b"behind it")
    assert read_first(theirs) == {"number": 1}
    # What comes behind it is left for the loop.
    assert theirs.recv(100) == b"behind it"
    ours.close()
    with pytest.raises(ChannelClosed):
        read_first(theirs)
    theirs.close()
