"""Idle upstream connections: shared only by what may share them, bounded, and gone when they are old (G58)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from addons.egress import Destination
from addons.exchange import Authority
from ostiary.engines.fast.link import Link
from ostiary.engines.fast.pool import IDLE_S, MAX_IDLE, MAX_IDLE_OF_KEY, Pool
from ostiary.engines.mitm.dialling import Bound, PoolKey, TlsTerms

KEY = PoolKey("billing", Authority("api.test", 443), (("192.0.2.1", 443),), None)


def bound(key: PoolKey = KEY) -> Bound:
    return Bound(Destination(key.authority, key.addresses), key, 1.0)


class One:
    """Stands for a connection."""

    def __init__(self, key: PoolKey = KEY) -> None:
        self.bound = bound(key)
        self.pooled = False
        self.idle_since_s = 0.0
        self.usable = True
        self.closed = False

    def close(self) -> None:
        self.closed, self.usable = True, False


def link(key: PoolKey = KEY) -> Any:
    return One(key)


def test_the_one_used_last_is_taken_first() -> None:
    pool, first, second = Pool(), link(), link()
    pool.give(first, 1)
    pool.give(second, 2)
    assert (first.pooled, len(pool)) == (True, 2)
    assert pool.take(KEY) is second
    assert not second.pooled  # type: ignore[union-attr]  # narrowed by the line before
    assert pool.take(KEY) is first
    assert pool.take(KEY) is None
    assert len(pool) == 0


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, workload="other"),
        replace(KEY, authority=Authority("api.test", 8443)),
        replace(KEY, authority=Authority("api2.test", 443)),
        replace(KEY, authority=Authority("api.test", 443, cleartext=True)),
        replace(KEY, addresses=(("192.0.2.2", 443),)),
        replace(KEY, ca_file=Path("roots.pem")),
        replace(KEY, upgrade=True),
        replace(KEY, tls=TlsTerms(identity="secret/a@1:aa")),
        replace(KEY, tls=TlsTerms(pins=frozenset({b"x" * 32}))),
        replace(KEY, tls=TlsTerms(roots="aa")),
    ],
)
def test_g58_nothing_is_shared_across_a_difference(other: PoolKey) -> None:
    pool = Pool()
    pool.give(link(), 0)
    assert pool.take(other) is None
    assert len(pool) == 1


def test_a_connection_that_cannot_be_used_is_passed_over() -> None:
    pool, good, bad = Pool(), link(), link()
    pool.give(good, 0)
    pool.give(bad, 0)
    bad.usable = False
    assert pool.take(KEY) is good
    assert bad.closed
    assert len(pool) == 0


def test_it_is_bounded_by_key_and_in_all() -> None:
    pool = Pool()
    links = [link() for _ in range(MAX_IDLE_OF_KEY + 1)]
    for one in links:
        pool.give(one, 0)
    assert len(pool) == MAX_IDLE_OF_KEY
    assert [one.closed for one in links].count(True) == 1
    for number in range(MAX_IDLE):
        pool.give(link(replace(KEY, workload=f"w{number}")), 0)
    assert len(pool) == MAX_IDLE
    turned_away = link(replace(KEY, workload="late"))
    pool.give(turned_away, 0)
    assert turned_away.closed
    assert not turned_away.pooled
    assert pool.take(turned_away.bound.pool_key) is None
    assert len(pool) == MAX_IDLE


def test_the_old_go() -> None:
    pool, old, young = Pool(), link(), link()
    pool.give(old, 0)
    pool.give(young, IDLE_S)
    pool.sweep(IDLE_S)
    assert len(pool) == 2
    pool.sweep(IDLE_S + 0.1)
    assert (old.closed, old.pooled, young.closed, len(pool)) == (True, False, False, 1)
    assert pool.take(KEY) is young
    pool.sweep(1e9)
    assert len(pool) == 0


def test_what_ends_by_itself_is_forgotten_once() -> None:
    pool, one, stranger = Pool(), link(), link()
    pool.give(one, 0)
    pool.forget(stranger)
    assert len(pool) == 1
    pool.forget(one)
    pool.forget(one)
    assert len(pool) == 0
    assert pool.take(KEY) is None


def test_close_ends_all() -> None:
    pool = Pool()
    links = [link(replace(KEY, workload=f"w{number % 3}")) for number in range(9)]
    for one in links:
        pool.give(one, 0)
    pool.close()
    assert all(one.closed and not one.pooled for one in links)
    assert len(pool) == 0


class Wire:
    """Stands for asyncio's transport."""

    def __init__(self) -> None:
        self.aborted = False

    def set_write_buffer_limits(self, **_: int) -> None:
        pass

    def get_extra_info(self, _name: str) -> tuple[str, int]:
        return "192.0.2.1", 443

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def real_link(pool: Pool) -> tuple[Link, Wire]:
    metrics = SimpleNamespace(upstream_connection=lambda *_: None)
    engine = SimpleNamespace(pool=pool, parts=SimpleNamespace(metrics=metrics), release_socket=lambda: None)
    made, wire = Link(cast("Any", engine), bound()), Wire()
    made.attach(cast("Any", wire))
    return made, wire


def test_a_byte_on_an_idle_connection_ends_it() -> None:
    pool = Pool()
    one, wire = real_link(pool)
    pool.give(one, 0)
    one.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert wire.aborted
    assert pool.take(KEY) is None
    one.connection_lost(None)
    assert len(pool) == 0


def test_an_idle_connection_that_its_upstream_closes_leaves_at_once() -> None:
    pool = Pool()
    one, _ = real_link(pool)
    pool.give(one, 0)
    one.connection_lost(None)
    assert len(pool) == 0
    assert not one.usable
