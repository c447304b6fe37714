"""Go's net/http, unchanged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.report import measuring
from tests.harness.two_ways import PLACEHOLDER, WAYS, Served, with_roots
from tests.harness.versions import told_by

GO = shutil.which("go")
pytestmark = pytest.mark.skipif(GO is None, reason="no Go on this machine")


@pytest.mark.parametrize("way", WAYS)
def test_net_http(served: Callable[..., Served], go_client: Path, way: str) -> None:
    one = served(None, "api.example.com")
    with measuring("net/http", way, language="Go", version=told_by(str(GO), "version"), set="-"):
        done = one.run(way, str(go_client), API_KEY=PLACEHOLDER)
        one.assert_injected(done)
        assert done.stdout.strip() == "200 hello"
    assert json.loads(one.api.requests[0].body) == {"question": "go"}


@pytest.mark.parametrize("way", WAYS)
def test_net_http_over_http2(served: Callable[..., Served], go_client: Path, way: str) -> None:
    one = served(None, "api.example.com", alpn=("h2", "http/1.1"))
    done = one.run(way, str(go_client), API_KEY=PLACEHOLDER)
    one.assert_injected(done)
    assert done.stdout.startswith("200 ")


def test_an_empty_key_is_malformed_over_http2(served: Callable[..., Served], go_client: Path) -> None:
    """`Bearer ` with nothing behind it ends in a blank, which HTTP/2 forbids (RFC 9113 section 8.2.1)."""
    one = served(None, "api.example.com")
    done = one.run("environment", str(go_client), API_KEY="")
    if one.proxy.engine == "fast":  # which speaks HTTP/1.1 with whoever offers both
        one.assert_injected(done)
        return
    assert done.code != 0
    assert "PROTOCOL_ERROR" in done.stderr
    assert one.api.connections == 0


def test_where_the_roots_are_read(served: Callable[..., Served], go_client: Path) -> None:
    one = served(None, "api.example.com")
    with measuring("net/http", "roots", "`SSL_CERT_FILE`"):
        assert one.run("environment", *with_roots(), str(go_client), API_KEY=PLACEHOLDER).code != 0
        assert not one.api.requests
        one.assert_injected(one.run("environment", *with_roots("SSL_CERT_FILE"), str(go_client), API_KEY=PLACEHOLDER))
