"""Dialling: the first vetted address that answers, one deadline, TLS proven against the bound name, no slot lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from addons.egress import Destination
from addons.exchange import Authority
from addons.refusal import Code, Refusal
from ostiary.engines.fast import sessions
from ostiary.engines.fast.dialling import dial
from ostiary.engines.fast.link import Link
from ostiary.engines.fast.pool import Pool
from ostiary.engines.fast.sessions import Resumable, Sessions, session_of
from ostiary.engines.fast.tls import UpstreamContexts
from ostiary.engines.mitm.dialling import Bound, PoolKey
from tests.harness.pki import Pki
from tests.harness.ports import free_port


@pytest.fixture
def event_loop_policy() -> Any:
    """The loop that the process runs on."""
    return uvloop.EventLoopPolicy()


class Metrics:
    def __init__(self) -> None:
        self.open = 0

    def upstream_connection(self, _host: str, _state: str, change: int) -> None:
        self.open += change


class Engine:
    """What a dial asks of an engine."""

    def __init__(self, roots: Path | None) -> None:
        self.upstream_contexts = UpstreamContexts(roots)
        self.pool = Pool()
        self.sessions = Sessions()
        self.sockets = 0
        self.full = False
        self.metrics = Metrics()
        self.parts = self

    def take_socket(self) -> None:
        if self.full:
            raise Refusal(Code.OVERLOADED, "full")
        self.sockets += 1

    def release_socket(self) -> None:
        self.sockets -= 1


@pytest.fixture
def engine(pki: Pki) -> Engine:
    return Engine(pki.ca_file)


def bound(
    *ports: int, host: str = "api.test", cleartext: bool = False, connect_s: float = 3.0, ca_file: Path | None = None
) -> Bound:
    authority = Authority(host, 443, cleartext)
    addresses = tuple(("127.0.0.1", port) for port in ports)
    return Bound(Destination(authority, addresses), PoolKey("billing", authority, addresses, ca_file), connect_s)


type Serve = Callable[[socket.socket], None]


@pytest.fixture
def listen() -> Iterator[Callable[[Serve], int]]:
    """Serves each connection in a thread; gives the port."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def make(serve: Serve) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock, contextlib.suppress(OSError):
                    sock.settimeout(10)
                    serve(sock)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        threads.append(thread)
        return int(listener.getsockname()[1])

    yield make
    for listener in listeners:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(12)


def tls(context: ssl.SSLContext, version: list[str | None] | None = None) -> Serve:
    def serve(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as secured:
            if version is not None:
                version.append(secured.version())
            secured.recv(1)

    return serve


async def test_the_loop_is_that_of_the_process() -> None:
    assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")


async def dialled(engine: Engine, to: Bound, *, with_tls: bool = True) -> Link:
    return await dial(cast("Any", engine), to, tls=with_tls)


@contextlib.asynccontextmanager
async def no_slot_is_lost(engine: Engine) -> AsyncIterator[None]:
    yield
    for _ in range(200):
        if not engine.sockets and not engine.metrics.open:
            break
        await asyncio.sleep(0.01)
    assert (engine.sockets, engine.metrics.open) == (0, 0)


async def refused(engine: Engine, to: Bound) -> Refusal:
    async with no_slot_is_lost(engine):
        with pytest.raises(Refusal) as found:
            await dialled(engine, to)
    return found.value


async def test_a_connection_counts_until_it_is_lost(engine: Engine, pki: Pki, listen: Callable[[Serve], int]) -> None:
    version: list[str | None] = []
    port = listen(tls(pki.context("api.test"), version))
    async with no_slot_is_lost(engine):
        link = await dialled(engine, bound(port))
        assert link.usable
        assert (engine.sockets, engine.metrics.open) == (1, 1)
        assert link.server.peername == ("127.0.0.1", port)
        while not version:
            await asyncio.sleep(0.01)
        link.close()
        assert not reread(link).usable
    assert version == ["TLSv1.3"]


def reread(link: Link) -> Link:
    """The same; a type checker believes that what was true of it stays so."""
    return link


async def test_the_first_address_that_answers(engine: Engine, pki: Pki, listen: Callable[[Serve], int]) -> None:
    port = listen(tls(pki.context("api.test")))
    async with no_slot_is_lost(engine):
        link = await dialled(engine, bound(free_port(), free_port(), port))
        assert link.server.peername == ("127.0.0.1", port)
        link.close()


async def test_u1_nobody_answers(engine: Engine) -> None:
    assert (await refused(engine, bound(free_port(), free_port()))).code is Code.UPSTREAM_UNREACHABLE
    assert (await refused(engine, bound())).code is Code.UPSTREAM_UNREACHABLE


async def test_no_descriptor_left(engine: Engine) -> None:
    engine.full = True
    assert (await refused(engine, bound(free_port()))).code is Code.OVERLOADED


async def test_u7_what_tls_does_not_prove(
    engine: Engine, pki: Pki, listen: Callable[[Serve], int], tmp_path: Path
) -> None:
    for context in (
        pki.context("other.test"),
        pki.context("api.test", expired=True),
        pki.context("api.test", self_signed=True),
        Pki.make(tmp_path / "other").context("api.test"),
    ):
        refusal = await refused(engine, bound(listen(tls(context))))
        assert refusal.code is Code.UPSTREAM_TLS
        assert "handshake failed" not in refusal.message


async def test_u7_an_address_is_proven_by_an_address(engine: Engine, pki: Pki, listen: Callable[[Serve], int]) -> None:
    good, bad = listen(tls(pki.context("127.0.0.1"))), listen(tls(pki.context("127.0.0.2", "api.test")))
    async with no_slot_is_lost(engine):
        (await dialled(engine, bound(good, host="127.0.0.1"))).close()
    assert (await refused(engine, bound(bad, host="127.0.0.1"))).code is Code.UPSTREAM_TLS


async def test_u7_the_name_that_is_proven_is_that_of_the_route(
    engine: Engine, pki: Pki, listen: Callable[[Serve], int]
) -> None:
    """The right certificate at a second address does not mend the wrong one at the first."""
    wrong, right = listen(tls(pki.context("other.test"))), listen(tls(pki.context("api.test")))
    assert (await refused(engine, bound(wrong, right))).code is Code.UPSTREAM_TLS


async def test_roots_of_a_route(engine: Engine, listen: Callable[[Serve], int], tmp_path: Path) -> None:
    other = Pki.make(tmp_path / "other")
    port = listen(tls(other.context("api.test")))
    async with no_slot_is_lost(engine):
        (await dialled(engine, bound(port, ca_file=other.ca_file))).close()
    assert (await refused(engine, bound(port))).code is Code.UPSTREAM_TLS
    assert (await refused(engine, bound(port, ca_file=tmp_path / "missing"))).code is Code.UPSTREAM_TLS


def silent(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


@pytest.mark.parametrize("cleartext_first", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail\r\n"])
async def test_u7_what_is_no_tls_server(engine: Engine, listen: Callable[[Serve], int], cleartext_first: bytes) -> None:
    def speaks(sock: socket.socket) -> None:
        if cleartext_first:
            sock.sendall(cleartext_first)

    refusal = await refused(engine, bound(listen(speaks)))
    assert refusal.code is Code.UPSTREAM_TLS


async def test_u2_an_upstream_that_never_shakes_hands(engine: Engine, listen: Callable[[Serve], int]) -> None:
    refusal = await refused(engine, bound(listen(silent), connect_s=0.3))
    assert refusal.code is Code.UPSTREAM_TIMEOUT


async def test_u2_an_address_that_does_not_answer(engine: Engine) -> None:
    """A backlog that is full swallows the SYN."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        try:
            for one in fillers:
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    one.connect(address)
            await asyncio.sleep(0.05)
            refusal = await refused(engine, bound(address[1], connect_s=0.4))
            assert refusal.code is Code.UPSTREAM_TIMEOUT
        finally:
            for one in fillers:
                one.close()


async def test_a_dial_that_is_given_up(engine: Engine, pki: Pki, listen: Callable[[Serve], int]) -> None:
    for to in (bound(listen(silent)), bound(listen(tls(pki.context("api.test"))))):
        for after in (0.0, 0.001, 0.005, 0.02):
            async with no_slot_is_lost(engine):
                task = asyncio.get_running_loop().create_task(dialled(engine, to))
                await asyncio.sleep(after)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    (await task).close()


def _flight_and_end(context: ssl.SSLContext) -> Serve:
    """Sends its whole flight and, in the same segment, its end."""

    def serve(sock: socket.socket) -> None:
        into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        end = context.wrap_bio(into, out, server_side=True)
        while not out.pending:
            into.write(sock.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        sock.sendall(out.read())
        sock.shutdown(socket.SHUT_WR)

    return serve


async def test_an_upstream_that_ends_with_its_last_flight(
    engine: Engine, pki: Pki, listen: Callable[[Serve], int]
) -> None:
    """The connection may be lost before whoever dialled it has it: it must not be counted for ever, nor used."""
    port = listen(_flight_and_end(pki.context("api.test")))
    codes: set[Code] = set()
    for _ in range(20):
        async with no_slot_is_lost(engine):
            try:
                link = await dialled(engine, bound(port))
            except Refusal as refusal:
                codes.add(refusal.code)
                continue
            link.close()
    assert codes <= {Code.UPSTREAM_TLS, Code.UPSTREAM_UNREACHABLE}


async def test_lost_before_it_is_attached(engine: Engine) -> None:
    link = Link(cast("Any", engine), bound(1))
    engine.take_socket()
    link.connection_lost(None)
    with pytest.raises(Refusal) as found:
        link.attach(cast("Any", None))
    engine.release_socket()  # by whoever dialled
    assert found.value.code is Code.UPSTREAM_UNREACHABLE
    assert (engine.sockets, engine.metrics.open) == (0, 0)


async def test_cleartext_and_unopened_tunnels_have_no_tls(engine: Engine, listen: Callable[[Serve], int]) -> None:
    first: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        first.append(sock.recv(65536))

    port = listen(serve)
    for to, with_tls in ((bound(port, cleartext=True), True), (bound(port), False)):
        async with no_slot_is_lost(engine):
            link = await dialled(engine, to, with_tls=with_tls)
            link.write(b"as it is")
            await asyncio.sleep(0.05)
            link.close()
    assert first == [b"as it is", b"as it is"]


async def test_an_upstream_that_resets_at_once(engine: Engine, listen: Callable[[Serve], int]) -> None:
    def reset(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    port = listen(reset)
    for _ in range(10):
        assert (await refused(engine, bound(port))).code in {Code.UPSTREAM_TLS, Code.UPSTREAM_UNREACHABLE}
        async with no_slot_is_lost(engine):
            with contextlib.suppress(Refusal):
                link = await dialled(engine, bound(port, cleartext=True))
                await asyncio.sleep(0.02)
                assert not link.usable


@pytest.fixture
def read_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a Python that loses memory each time."""
    monkeypatch.setattr(sessions, "LEAKS", False)


@pytest.mark.usefixtures("read_sessions")
async def test_a_session_is_offered_once_and_a_broken_handshake_forgets_its_kind(
    engine: Engine, pki: Pki, listen: Callable[[Serve], int]
) -> None:
    context = pki.context("api.test")
    seen: list[bool] = []

    def serve(sock: socket.socket) -> None:
        if len(seen) == 2:
            sock.recv(65536)
            seen.append(False)
            return  # breaks off in the handshake
        with context.wrap_socket(sock, server_side=True) as secured:
            seen.append(bool(secured.session_reused))
            secured.recv(1)

    to = bound(listen(serve))

    async def session(link: Link, shaken: int) -> None:
        """Keeps what the upstream gives, as a link does with its first answer."""
        assert link.transport is not None
        while len(seen) < shaken:
            await asyncio.sleep(0.01)
        while (found := session_of(link.transport.get_extra_info("ssl_object"), link.proven_s)) is None:
            await asyncio.sleep(0.01)
        engine.sessions.keep(to.pool_key, found)

    async with no_slot_is_lost(engine):
        first = await dialled(engine, to)
        await session(first, 1)
        first.close()
        second = await dialled(engine, to)
        assert second.proven_s == first.proven_s, "age counts from the proof"
        assert len(engine.sessions) == 0
        await session(second, 2)
        await session(second, 2)
        second.close()
    assert (await refused(engine, to)).code in {Code.UPSTREAM_TLS, Code.UPSTREAM_UNREACHABLE}
    assert len(engine.sessions) == 0
    async with no_slot_is_lost(engine):
        third = await dialled(engine, to)
        assert third.proven_s > first.proven_s
        while len(seen) < 4:
            await asyncio.sleep(0.01)
        third.close()
    assert seen == [False, True, False, False]


async def test_unopened_tunnels_and_cleartext_take_no_session(engine: Engine, listen: Callable[[Serve], int]) -> None:
    port = listen(silent)
    for to, with_tls in ((bound(port, cleartext=True), True), (bound(port), False)):
        engine.sessions.keep(to.pool_key, Resumable(cast("Any", object()), asyncio.get_running_loop().time()))
        async with no_slot_is_lost(engine):
            link = await dialled(engine, to, with_tls=with_tls)
            assert link.proven_s == 0
            link.close()
        assert len(engine.sessions) == 1
        engine.sessions.forget(to.pool_key)
