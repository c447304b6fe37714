"""curl, unchanged."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.report import measuring
from tests.harness.two_ways import WAYS, Served, with_roots
from tests.harness.versions import told_by

COMMAND = ("curl", "-sS", "https://api.example.com/v1")


@pytest.mark.parametrize("way", WAYS)
def test_both_ways(served: Callable[..., Served], way: str) -> None:
    one = served(None, "api.example.com")
    with measuring("curl", way, language="Command line", version=told_by("curl", "--version"), set="-"):
        done = one.run(way, *COMMAND)
        one.assert_injected(done)
        assert done.stdout == "hello"


def test_where_the_roots_are_read(served: Callable[..., Served]) -> None:
    one = served(None, "api.example.com")
    with measuring("curl", "roots", "`CURL_CA_BUNDLE` or `SSL_CERT_FILE`"):
        assert one.run("environment", *with_roots(), *COMMAND).code == 60
        for kept in ("CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            one.assert_injected(one.run("environment", *with_roots(kept), *COMMAND))
