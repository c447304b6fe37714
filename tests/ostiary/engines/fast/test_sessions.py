"""TLS sessions with upstreams: used once, by what may share a connection, for a while, and bounded."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from typing import Any, cast

import pytest

from addons.exchange import Authority
from ostiary.engines.fast import sessions
from ostiary.engines.fast.sessions import (
    LIFE_S,
    MAX_KEYS,
    MAX_OF_KEY,
    Offer,
    Resumable,
    ResumingContext,
    Sessions,
    offer,
    session_of,
)
from ostiary.engines.mitm.dialling import PoolKey, TlsTerms
from tests.harness.pki import Pki
from tests.ostiary.engines.fast.test_tls import shake

KEY = PoolKey("billing", Authority("api.test", 443), (("192.0.2.1", 443),), None)


@pytest.fixture(autouse=True)
def read_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a Python that loses memory each time: the rules are the same for all."""
    monkeypatch.setattr(sessions, "LEAKS", False)


def one(proven_s: float = 0.0) -> Resumable:
    return Resumable(cast("Any", object()), proven_s)


def test_the_newest_is_used_once() -> None:
    sessions, first, second = Sessions(), one(1), one(2)
    sessions.keep(KEY, first)
    sessions.keep(KEY, second)
    assert len(sessions) == 2
    assert [sessions.take(KEY, 3) for _ in range(3)] == [second, first, None]
    assert len(sessions) == 0


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, workload="reports"),
        replace(KEY, authority=Authority("api.test", 8443)),
        replace(KEY, authority=Authority("other.test", 443)),
        replace(KEY, addresses=(("192.0.2.2", 443),)),
        replace(KEY, ca_file=cast("Any", "roots.pem")),
        replace(KEY, tls=TlsTerms(identity="secret/a@1:aa")),
        replace(KEY, tls=TlsTerms(roots="aa")),
    ],
)
def test_what_may_not_share_a_connection_shares_no_session(other: PoolKey) -> None:
    sessions = Sessions()
    sessions.keep(KEY, one())
    assert sessions.take(other, 0) is None
    assert sessions.take(KEY, 0) is not None


def test_age_counts_from_the_proof() -> None:
    sessions = Sessions()
    sessions.keep(KEY, one(100))
    assert sessions.take(KEY, 100 + LIFE_S) is None
    assert len(sessions) == 0
    sessions.keep(KEY, one(100))
    sessions.sweep(99 + LIFE_S)
    assert len(sessions) == 1
    sessions.sweep(100 + LIFE_S)
    assert len(sessions) == 0


def test_they_are_bounded() -> None:
    sessions = Sessions()
    for number in range(MAX_OF_KEY + 5):
        sessions.keep(KEY, one(number))
    assert len(sessions) == MAX_OF_KEY
    for number in range(MAX_KEYS):
        sessions.keep(replace(KEY, workload=f"w{number}"), one())
    assert len(sessions) == MAX_KEYS
    assert sessions.take(KEY, 0) is None, "the one that was kept longest ago goes first"


def test_a_failure_forgets_its_kind_alone() -> None:
    sessions, other = Sessions(), replace(KEY, workload="reports")
    for key in (KEY, KEY, other):
        sessions.keep(key, one())
    sessions.forget(KEY)
    sessions.forget(KEY)
    assert sessions.take(KEY, 0) is None
    assert sessions.take(other, 0) is not None
    sessions.keep(KEY, one())
    sessions.close()
    assert len(sessions) == 0


def test_nothing_prints_a_session() -> None:
    secret = Resumable(cast("Any", "the-session"), 1.0)
    assert "the-session" not in repr(secret) + str(secret) + repr(Offer(secret))


# --- the offer ---


@pytest.fixture
def context(pki: Pki) -> ResumingContext:
    made = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(pki.ca_file)
    return made


async def test_an_offer_is_for_one_handshake_of_its_own_context(context: ResumingContext, pki: Pki) -> None:
    server = pki.context("api.test")
    first, _ = shake(server, context, "api.test")
    found = session_of(first, 1.0)
    assert found is not None
    assert not first.session_reused

    async def dialling() -> list[bool | None]:
        offer(found)
        return [shake(server, context, "api.test")[0].session_reused for _ in range(2)]

    async def another() -> bool | None:
        return shake(server, context, "api.test")[0].session_reused

    task, beside = asyncio.create_task(dialling()), asyncio.create_task(another())
    assert await task == [True, False]
    assert await beside is False
    assert await another() is False


async def test_a_server_that_knows_the_session_no_longer_proves_itself_again(
    context: ResumingContext, pki: Pki
) -> None:
    first, _ = shake(pki.context("api.test"), context, "api.test")
    found = session_of(first, 1.0)
    offer(found)
    again, _ = shake(pki.context("api.test"), context, "api.test")
    assert not again.session_reused
    offer(found)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(pki.context("other.test"), context, "api.test")


def test_no_session_where_there_is_none(context: ResumingContext) -> None:
    assert session_of(None, 1.0) is None
    fresh = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="api.test")
    assert session_of(fresh, 1.0) is None


def test_a_python_that_loses_memory_by_it_is_read_no_session(
    context: ResumingContext, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = shake(pki.context("api.test"), context, "api.test")
    monkeypatch.setattr(sessions, "LEAKS", True)
    assert session_of(first, 1.0) is None
