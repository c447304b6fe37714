"""Which connections are shared, and what is offered on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from addons.exchange import Authority
from ostiary.engines.mitm.dialling import PoolKey

KEY = PoolKey("billing", Authority("api.test", 443), (("192.0.2.1", 443),), None)


@pytest.mark.parametrize(
    ("word", "upgrade", "speaks", "offered"),
    [
        ("auto", False, True, True),
        ("auto", False, False, False),
        ("prefer", False, True, True),
        ("prefer", False, False, True),
        ("never", False, True, False),
        ("never", False, False, False),
        ("prefer", True, True, False),
        ("auto", True, True, False),
    ],
)
def test_when_http2_is_offered(word: Literal["auto", "prefer", "never"], upgrade: bool, speaks: bool, offered: bool) -> None:  # fmt: skip
    key = replace(KEY, http2=word, upgrade=upgrade)
    assert key.offers_http2(caller_speaks_it=speaks) is offered


def test_connections_of_different_words_differ() -> None:
    assert len({KEY, replace(KEY, http2="prefer"), replace(KEY, http2="never"), replace(KEY, upgrade=True)}) == 4
