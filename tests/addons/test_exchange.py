"""Facts of an exchange: put once, asked for by type."""

from __future__ import annotations

from typing import cast

import pytest

from addons.exchange import Authority, Connection, Exchange, FactSetTwice, Listener, MissingFact
from addons.head import RequestHead
from policies import Policy


def exchange() -> Exchange:
    connection = Connection("c", Listener("l", None), "127.0.0.1")
    return Exchange("id", connection, cast("Policy", None), RequestHead("GET", b"/a?b", (), http2=False), 0.0)


def test_a_fact_is_put_once_and_asked_by_type() -> None:
    one = exchange()
    one.put(Authority("api.test", 443))
    assert one.ask(Authority).host == "api.test"
    with pytest.raises(FactSetTwice):
        one.put(Authority("other.test", 443))


def test_a_stage_before_its_turn_fails() -> None:
    with pytest.raises(MissingFact):
        exchange().ask(Authority)


def test_a_forgotten_fact_is_gone() -> None:
    one = exchange()
    one.put(Authority("api.test", 443))
    assert one.forget(Authority) is not None
    assert one.find(Authority) is None


def test_paths_go_without_their_query() -> None:
    assert exchange().head.path == "/a"


@pytest.mark.parametrize(
    ("authority", "field"),
    [
        (Authority("a.test", 443), b"a.test"),
        (Authority("a.test", 8443), b"a.test:8443"),
        (Authority("::1", 443), b"[::1]"),
        (Authority("::1", 1), b"[::1]:1"),
    ],
)
def test_host_header(authority: Authority, field: bytes) -> None:
    assert authority.host_header == field
