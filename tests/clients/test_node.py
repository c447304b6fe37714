"""Node's fetch, undici, and the openai, stripe and @anthropic-ai/sdk packages, unchanged."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.report import client as stated
from tests.harness.report import measuring
from tests.harness.two_ways import NODE, PLACEHOLDER, WAYS, Served, with_roots
from tests.harness.vendors import anthropic, openai, stripe, websocket
from tests.harness.versions import npm_package, told_by


def node_major() -> int:
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    return int(version.strip().removeprefix("v").partition(".")[0])


def facts(package: str = "", setting: str = "-") -> dict[str, str]:
    version = npm_package(package) if package else told_by(NODE, "--version")
    return {"language": "Node", "version": version, "set": setting}


STRIPE = "stripe for Node (create, list)"
NODE_NAMES = {
    "fetch": ("fetch", "", "-"),
    "undici": ("undici (request)", "undici", "`EnvHttpProxyAgent`"),
    "websocket": ("WebSocket", "", "-"),
    "undici-websocket": ("undici (WebSocket)", "undici", "`EnvHttpProxyAgent`"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", ["fetch", "undici"])
def test_plain_requests(served: Callable[..., Served], packages: Path, program: str, way: str) -> None:
    assert node_major() >= 24
    one = served(None, "api.example.com")
    name, package, setting = NODE_NAMES[program]
    with measuring(name, way, **facts(package, setting)):
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
    with measuring("openai for Node (chat, stream)", way, **facts("openai")):
        done = one.run(way, NODE, "openai.mjs", cwd=packages)
        one.assert_injected(done)
        assert done.stdout.split() == ["hello", "hello"]


@pytest.mark.parametrize("way", WAYS)
def test_anthropic(served: Callable[..., Served], packages: Path, way: str) -> None:
    one = served(anthropic, "api.anthropic.com", inject='{header: x-api-key, value: "{secret}"}')
    with measuring("@anthropic-ai/sdk (messages, stream)", way, **facts("@anthropic-ai/sdk")):
        done = one.run(way, NODE, "anthropic.mjs", cwd=packages)
        one.assert_injected(done, header="x-api-key", value="{}")
        assert done.stdout.split() == ["hello", "hello"]


@pytest.mark.parametrize("way", WAYS)
def test_stripe_over_fetch(served: Callable[..., Served], packages: Path, way: str) -> None:
    one = served(stripe, "api.stripe.com")
    with measuring(STRIPE, way, **facts("stripe", "`createFetchHttpClient()`")):
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
    stated(STRIPE, cannot="as it comes: it makes an agent of its own, which reads no proxy variable")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", ["websocket", "undici-websocket"])
def test_websocket(served: Callable[..., Served], packages: Path, program: str, way: str) -> None:
    one = served(websocket, "api.example.com")
    name, package, setting = NODE_NAMES[program]
    with measuring(name, way, **facts(package, setting)):
        done = one.run(way, NODE, f"{program}.mjs", cwd=packages, API_KEY=PLACEHOLDER)
        one.assert_injected(done)
        assert done.stdout.split() == ["ping"]
    assert [seen.target for seen in one.api.requests] == ["/v1/live"]


def test_where_the_roots_are_read(served: Callable[..., Served], packages: Path) -> None:
    """All of Node reads them in one place."""
    one = served(None, "api.example.com")
    for kept, works in (("SSL_CERT_FILE", False), ("NODE_EXTRA_CA_CERTS", True)):
        done = one.run("environment", *with_roots(kept), NODE, "fetch.mjs", cwd=packages, API_KEY=PLACEHOLDER)
        assert (done.code == 0) == works, done.stderr
        assert bool(one.api.requests) == works
    stated("fetch", roots="`NODE_EXTRA_CA_CERTS`")
    # The others were seen to work with the same runtime, which reads no other variable.
    names = [name for name, _, _ in NODE_NAMES.values() if name != "fetch"]
    for name in (*names, STRIPE, "openai for Node (chat, stream)", "@anthropic-ai/sdk (messages, stream)"):
        stated(name, roots="as `fetch`")
