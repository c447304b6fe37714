"""Node's fetch, undici, and the openai, stripe and @anthropic-ai/sdk packages, unchanged."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.two_ways import NODE, PLACEHOLDER, WAYS, Served
from tests.harness.vendors import anthropic, openai, stripe, websocket


def node_major() -> int:
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    return int(version.strip().removeprefix("v").partition(".")[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", ["fetch", "undici"])
def test_plain_requests(served: Callable[..., Served], packages: Path, program: str, way: str) -> None:
    assert node_major() >= 24
    one = served(None, "api.example.com")
    done = one.run(way, NODE, f"{program}.mjs", cwd=packages, API_KEY=PLACEHOLDER)
    one.assert_injected(done)
    assert done.stdout.strip() == "200 hello"
    assert [json.loads(seen.body) for seen in one.api.requests] == [{"question": program}]


def test_fetch_does_not_find_the_proxy_unless_told(served: Callable[..., Served], packages: Path) -> None:
    """Why NODE_USE_ENV_PROXY is set: without it fetch goes straight out."""
    one = served(None, "api.example.com")
    done = one.run("environment", "env", "-u", "NODE_USE_ENV_PROXY", NODE, "fetch.mjs", cwd=packages)
    assert done.code != 0
    assert "ENOTFOUND" in done.stderr or "EAI_AGAIN" in done.stderr
    assert one.api.connections == 0


@pytest.mark.parametrize("way", WAYS)
def test_openai(served: Callable[..., Served], packages: Path, way: str) -> None:
    one = served(openai, "api.openai.com")
    done = one.run(way, NODE, "openai.mjs", cwd=packages)
    one.assert_injected(done)
    assert done.stdout.split() == ["hello", "hello"]


@pytest.mark.parametrize("way", WAYS)
def test_anthropic(served: Callable[..., Served], packages: Path, way: str) -> None:
    one = served(anthropic, "api.anthropic.com", inject='{header: x-api-key, value: "{secret}"}')
    done = one.run(way, NODE, "anthropic.mjs", cwd=packages)
    one.assert_injected(done, header="x-api-key", value="{}")
    assert done.stdout.split() == ["hello", "hello"]


@pytest.mark.parametrize("way", WAYS)
def test_stripe_over_fetch(served: Callable[..., Served], packages: Path, way: str) -> None:
    one = served(stripe, "api.stripe.com")
    done = one.run(way, NODE, "stripe.mjs", "fetch", cwd=packages)
    one.assert_injected(done)
    assert done.stdout.split() == ["cus_1", "cus_1"]
    assert [seen.method for seen in one.api.requests] == ["POST", "GET"]


@pytest.mark.parametrize("way", WAYS)
def test_stripe_as_it_comes_passes_by_the_proxy(served: Callable[..., Served], packages: Path, way: str) -> None:
    """It makes an `https.Agent` of its own, and Node gives the proxy variables to its global agents alone."""
    one = served(stripe, "api.stripe.com")
    # The name leads nowhere here, so that a request that goes straight out meets no one.
    done = one.run(way, NODE, "--import", "./nowhere.mjs", "stripe.mjs", "node", cwd=packages)
    assert done.code != 0
    assert "StripeConnectionError" in done.stderr
    assert one.api.connections == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", ["websocket", "undici-websocket"])
def test_websocket(served: Callable[..., Served], packages: Path, program: str, way: str) -> None:
    one = served(websocket, "api.example.com")
    done = one.run(way, NODE, f"{program}.mjs", cwd=packages, API_KEY=PLACEHOLDER)
    one.assert_injected(done)
    assert done.stdout.split() == ["ping"]
    assert [seen.target for seen in one.api.requests] == ["/v1/live"]
