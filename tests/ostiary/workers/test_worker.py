"""What a worker does on the sockets that it is handed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ostiary.settings.load import Texts
from ostiary.settings.model import Bound, ListenSetting
from ostiary.workers.beginning import Beginning
from ostiary.workers.worker import Worker
from policies.faults import Place


class Listening:
    """A proxy that only listens, and has no room for so many."""

    def __init__(self) -> None:
        self.room = 1
        self.open: list[Any] = []
        self.closed: list[Any] = []
        self.engine = SimpleNamespace(unlisten=self.unlisten)

    async def listen(self, _: object, bound: socket.socket) -> object:
        if len(self.open) >= self.room:
            raise OSError(24, "Too many open files")
        self.open.append(bound)
        return bound

    def unlisten(self, server: Any) -> None:
        self.open.remove(server)
        self.closed.append(server)
        server.close()


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    made = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    yield made
    for one in made:
        one.close()


async def test_f5_a_sibling_is_covered_wholly_or_not_at_all(sockets: list[socket.socket]) -> None:
    """Where no descriptor is left for its second listener, the next attempt begins anew: half of it is not enough."""
    one, two, three, four = (opened.fileno() for opened in sockets)
    beginning = Beginning("1", 0, 2, Path("o.yaml"), Texts(b""), frozenset(), ((one, two), (three, four)))
    listen = [ListenSetting(name, Bound("127.0.0.1", 0), None, Place("o.yaml")) for name in ("a", "b")]
    proxy = Listening()
    worker = Worker(beginning, cast("Any", SimpleNamespace(listen=listen)), cast("Any", proxy), asyncio.Event())
    cover = worker.answers()["cover"]
    with pytest.raises(OSError, match="Too many"):
        await cover({"of": 1})
    assert (proxy.open, len(proxy.closed)) == ([], 1)
    proxy.room = 2
    await cover({"of": 1})
    assert len(proxy.open) == 2
    await cover({"of": 1})
    assert len(proxy.open) == 2, "once is enough"
    await worker.answers()["uncover"]({"of": 1})
    assert proxy.open == []
