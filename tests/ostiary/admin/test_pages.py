"""Which Host, Origin and Sec-Fetch-Site count."""

from __future__ import annotations

import pytest

from ostiary.admin.pages import ANY_HOST, loopback
from ostiary.admin.problems import Kind

OURS = loopback(("127.0.0.1", 9901))


@pytest.mark.parametrize("host", ["127.0.0.1:9901", "localhost:9901", "LOCALHOST:9901", "[::1]:9901"])
def test_own_hosts(host: str) -> None:
    assert OURS.judge([host], [], []) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.test",
        "evil.test:9901",
        "127.0.0.1",
        "localhost",
        "127.0.0.1:9902",
        "127.0.0.1.evil.test:9901",
        "localhost.:9901",
        "x@localhost:9901",
        "127.1:9901",
        "0.0.0.0:9901",
    ],
)
def test_g53_other_hosts(host: str) -> None:
    problem = OURS.judge([host], [], [])
    assert problem is not None
    assert problem.kind is Kind.HOST_MISMATCH


def test_the_own_address_counts_and_the_default_port_may_be_left_out() -> None:
    assert loopback(("127.0.0.9", 80)).judge(["127.0.0.9"], [], []) is None
    assert loopback(("::1", 80)).judge(["[::1]"], [], []) is None
    assert loopback(("127.0.0.9", 9901)).judge(["127.0.0.9"], [], []) is not None
    assert OURS.judge(["127.0.0.1:9901", "127.0.0.1:9901"], [], []) is not None
    assert OURS.judge([], [], []) is not None


@pytest.mark.parametrize("origin", ["http://127.0.0.1:9901", "HTTP://LocalHost:9901"])
def test_own_origins(origin: str) -> None:
    assert OURS.judge(["127.0.0.1:9901"], [origin], []) is None


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.test",
        "https://127.0.0.1:9901",
        "http://127.0.0.1:3000",
        "http://127.0.0.1",
        "127.0.0.1:9901",
        "http://127.0.0.1:9901.evil.test",
        "http://127.0.0.1:9901/",
    ],
)
def test_g53_other_origins(origin: str) -> None:
    for pages in (OURS, ANY_HOST):
        problem = pages.judge(["127.0.0.1:9901"], [origin], [])
        assert problem is not None
        assert problem.kind is Kind.CROSS_SITE


def test_g53_what_the_browser_says_of_the_page() -> None:
    for site in ("same-origin", "none"):
        assert OURS.judge(["127.0.0.1:9901"], [], [site]) is None
    for site in ("cross-site", "same-site", "Cross-Site", "", "anything"):
        assert OURS.judge(["127.0.0.1:9901"], [], [site]) is not None
    assert OURS.judge(["127.0.0.1:9901"], [], ["same-origin", "cross-site"]) is not None


def test_any_host_is_for_what_no_page_can_reach_or_whoever_scrapes() -> None:
    assert ANY_HOST.judge(["pod-7.cluster.test"], [], []) is None
    assert ANY_HOST.judge([], [], []) is None
    # A page has an origin of its own wherever it is.
    assert ANY_HOST.judge(["pod-7.cluster.test"], ["http://pod-7.cluster.test"], []) is not None
