"""Certificates of SNS: fetched once, from where they may lie, and never without bound."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from addons.egress import Destination
from addons.exchange import Authority
from addons.refusal import Code, Refusal
from addons.verifying.certificates import AT_ONCE, FAILED_S, KEPT, KEPT_S, MAX_BYTES, MOST_S, Certificates, roots
from tests.harness.pki import Pki
from tests.harness.ports import refusing_port
from tests.harness.senders import Sns
from tests.harness.upstream import Seen, Upstream, Wire, serving


class Clock:
    def __init__(self) -> None:
        self.at_s = 0.0
        self.wall = dt.datetime.now(dt.UTC).timestamp()

    def monotonic_s(self) -> float:
        return self.at_s

    def wall_s(self) -> float:
        return self.wall + self.at_s


class Served:
    """A host that answers what a test wants."""

    def __init__(self, pki: Pki, names: tuple[str, ...] = (Sns.host,)) -> None:
        self.sns = Sns(days=3)
        self.answer = b""
        self.clock = Clock()
        self.kept = Certificates(self.clock, deadline_s=5)
        self.roots = pki.ca_file
        self.host = Upstream(pki.context(*names), self._script)

    def _script(self, seen: Seen, wire: Wire) -> None:
        if self.answer:
            wire.send(self.answer)
            wire.close()
        else:
            wire.answer(200, self.sns.pem)

    async def key(self, path: str = Sns.path, port: int = 0) -> object:
        destination = Destination(Authority(Sns.host, 443), (("127.0.0.1", port or self.host.port),))
        return await self.kept.key_of(destination, path, self.context)

    def context(self) -> ssl.SSLContext:
        return roots(self.roots)

    async def refused(self, code: Code = Code.UPSTREAM_UNREACHABLE, path: str = Sns.path, port: int = 0) -> None:
        with pytest.raises(Refusal) as refusal:
            await self.key(path, port)
        assert refusal.value.code is code


@pytest.fixture
def served(pki: Pki) -> Iterator[Served]:
    one = Served(pki)
    with serving(one.host):
        yield one


async def test_many_wait_for_one_fetch_and_it_is_kept_for_a_day(served: Served) -> None:
    keys = await asyncio.gather(*(served.key() for _ in range(20)))
    numbers = served.sns.private.public_key().public_numbers()
    assert {key.public_numbers() == numbers for key in keys} == {True}  # type: ignore[attr-defined]  # RSA keys
    served.clock.at_s = KEPT_S - 1
    await served.key()
    assert [seen.target for seen in served.host.requests] == [Sns.path]
    served.clock.at_s = KEPT_S + 1
    await served.key()
    assert len(served.host.requests) == 2


async def test_one_who_leaves_ends_it_for_nobody(served: Served) -> None:
    first = asyncio.create_task(served.key())
    await asyncio.sleep(0)
    second = asyncio.create_task(served.key())
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert len(served.host.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 X\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 302 X\r\nLocation: https://evil.test/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\nno",
        b"HTTP/1.1 200 X\r\n\r\nno",
        b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % (MAX_BYTES + 1),
        b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 X\r\nX: " + b"x" * (MAX_BYTES + 10),
        b"not HTTP\r\n\r\n",
    ],
)
async def test_what_is_no_certificate_is_refused_and_not_asked_for_again_at_once(served: Served, answer: bytes) -> None:
    served.answer = answer
    await served.refused()
    served.answer = b""
    await served.refused()
    assert len(served.host.requests) == 1
    served.clock.at_s = FAILED_S + 1
    await served.key()


async def test_the_host_must_prove_its_name(pki: Pki, tmp_path: Path) -> None:
    other = Served(pki, ("other.test",))
    with serving(other.host):
        await other.refused()
        assert other.host.requests == []
    known = Served(pki)
    known.roots = Pki.make(tmp_path / "unknown").ca_file
    with serving(known.host):
        await known.refused()
        assert known.host.requests == []


async def test_a_certificate_that_is_not_good_today(served: Served) -> None:
    await served.key()
    served.clock.wall += 4 * 86_400
    await served.refused(Code.SIGNATURE_INVALID)
    served.clock.wall -= 40 * 86_400
    await served.refused(Code.SIGNATURE_INVALID)


async def test_fetches_and_what_is_kept_are_bounded(served: Served) -> None:
    await served.key()
    hanging = await asyncio.start_server(lambda *_: asyncio.sleep(30), "127.0.0.1", 0)
    port = hanging.sockets[0].getsockname()[1]
    waiting = [asyncio.create_task(served.key(f"/{number}.pem", port)) for number in range(AT_ONCE)]
    await asyncio.sleep(0)
    await served.refused(path="/more.pem", port=port)
    await served.key()
    for one in waiting:
        one.cancel()
    flights = list(served.kept._flights.values())
    for flight in flights:
        flight.cancel()
    await asyncio.gather(*waiting, *flights, return_exceptions=True)
    hanging.close()
    served.answer = b"HTTP/1.1 404 X\r\nContent-Length: 2\r\n\r\nno"
    for number in range(KEPT + 5):
        served.kept._landed((Sns.host, f"/{number}"), await _failed())
    assert len(served.kept._kept) == KEPT
    await served.key()
    assert [seen.target for seen in served.host.requests] == [Sns.path]


async def test_what_is_known_serves_while_strangers_keep_all_fetches_busy(served: Served) -> None:
    """And while its host is away: for a week, and not once the host has said no."""
    await served.key()
    served.clock.at_s = KEPT_S + 1
    hanging = await asyncio.start_server(lambda *_: asyncio.sleep(30), "127.0.0.1", 0)
    port = hanging.sockets[0].getsockname()[1]
    waiting = [asyncio.create_task(served.key(f"/{number}.pem", port)) for number in range(AT_ONCE)]
    await asyncio.sleep(0)
    await served.key()
    flights = list(served.kept._flights.values())
    for one in (*waiting, *flights):
        one.cancel()
    await asyncio.gather(*waiting, *flights, return_exceptions=True)
    hanging.close()
    with refusing_port() as away:
        await served.key(port=away)
        # It was asked a moment ago.
        await served.key()
        assert len(served.host.requests) == 1
        served.clock.at_s = MOST_S + 1
        await served.refused(port=away)


async def test_one_that_its_host_has_no_more_serves_no_longer(served: Served) -> None:
    await served.key()
    served.answer = b"HTTP/1.1 404 X\r\nContent-Length: 2\r\n\r\nno"
    served.clock.at_s = KEPT_S + 1
    await served.refused()
    await served.refused()
    assert len(served.host.requests) == 2


async def _failed() -> asyncio.Task[x509.Certificate]:
    async def fails() -> x509.Certificate:
        raise OSError

    task = asyncio.create_task(fails())
    await asyncio.wait([task])
    return task
