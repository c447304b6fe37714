"""How each client shows the caller key: at once, or after a 407, on the same connection or the next (G46)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.registries import cargo, npm, pages
from tests.harness.relay import AFTER_407, AT_ONCE, ON_THE_NEXT, relaying
from tests.harness.report import client as stated
from tests.harness.two_ways import NODE, NPM, PLACEHOLDER, PROGRAMS, Served
from tests.harness.upstream import Script
from tests.harness.versions import usable

HOST = "api.example.com"
REFS = b"0123456789012345678901234567890123456789\trefs/heads/main\n"
GIT = pages(
    {
        "/r.git/info/refs?service=git-upload-pack": ("text/plain", REFS),
        "/r.git/HEAD": ("text/plain", b"ref: refs/heads/main\n"),
    }
)
CLIENTS: dict[str, tuple[tuple[str, ...], list[list[bool]], Script | None]] = {
    "curl": (("curl", "-sSf", f"https://{HOST}/"), AT_ONCE, None),
    "curl-anyauth": (("curl", "-sSf", "--proxy-anyauth", f"https://{HOST}/"), AFTER_407, None),
    "git": (("git", "ls-remote", f"https://{HOST}/r.git"), AFTER_407, GIT),
    "node": ((NODE, str(PROGRAMS / "fetch.mjs")), AT_ONCE, None),
    "npm": ((NODE, NPM, "view", "keyless", "version", "--registry", f"https://{HOST}"), AT_ONCE, npm(HOST)),
    "go": (("client",), AT_ONCE, None),
    "java": (("java", str(PROGRAMS / "java" / "Keyed.java")), ON_THE_NEXT, None),
    "cargo": (("cargo", "fetch"), AT_ONCE, cargo(HOST)),
}

NAMES = {
    "curl": "curl",
    "git": "git (clone, push)",
    "node": "fetch",
    "npm": "npm (install)",
    "go": "net/http",
    "java": "HttpClient",
    "cargo": "cargo (fetch, sparse registry)",
}
"""As docs/guides/clients.md has them."""
WORDS = {
    str(AT_ONCE): "at once",
    str(AFTER_407): "after a 407, on the same connection",
    str(ON_THE_NEXT): "after a 407, on the next connection",
}


@pytest.mark.parametrize("client", list(CLIENTS))
def test_g46_the_key_at_once_or_after_a_407(
    served: Callable[..., Served], tmp_path: Path, request: pytest.FixtureRequest, client: str
) -> None:
    command, expected, script = CLIENTS[client]
    if client == "go":
        command = (str(request.getfixturevalue("go_client")),)
    elif usable(command[0]) is None:
        pytest.skip(f"no {command[0]} on this machine")
    work = tmp_path / "work"
    shutil.copytree(PROGRAMS / "cargo", work)
    one = served(script, HOST, inject='{header: Authorization, value: "{secret}"}')
    with relaying(one.proxy.address("sidecar")) as relay:
        done = one.run(
            "environment", *command, cwd=work, listener=relay.address, CARGO_HOME=str(tmp_path / "cargo-home"), API_KEY=PLACEHOLDER,
            CARGO_REGISTRIES_PRIVATE_INDEX=f"sparse+https://{HOST}/index/", npm_config_cache=str(tmp_path / "npm-cache"),
        )  # fmt: skip
        one.assert_injected(done, value="{}")
        assert relay.connects[: len(expected)] == expected
        # Whatever follows on connections of its own passes, too.
        assert all(keys[-1] for keys in relay.connects[len(expected) :])
    refusals = [record for record in done.events("request.refused") if record["code"] == "proof_required"]
    assert bool(refusals) == (expected != AT_ONCE)
    if client in NAMES:
        stated(NAMES[client], key=WORDS[str(expected)])
