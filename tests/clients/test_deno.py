"""Deno's fetch, unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.test_python import version
from tests.harness.report import measuring
from tests.harness.two_ways import PLACEHOLDER, PROGRAMS, WAYS, Served, with_roots


def program(client_python: Path) -> tuple[str, ...]:
    return (
        str(client_python.with_name("deno")),
        "run",
        "--quiet",
        "--allow-env",
        "--allow-net",
        str(PROGRAMS / "deno.ts"),
    )


@pytest.mark.parametrize("way", WAYS)
def test_fetch(served: Callable[..., Served], client_python: Path, tmp_path: Path, way: str) -> None:
    one = served(None, "api.example.com", alpn=("h2", "http/1.1"))
    facts = {"language": "Deno", "version": version(client_python, "deno"), "set": "-"}
    with measuring("Deno fetch", way, **facts):
        done = one.run(way, *program(client_python), API_KEY=PLACEHOLDER, DENO_DIR=str(tmp_path / "deno"))
        one.assert_injected(done)
        assert done.stdout.startswith("200 ")


def test_where_the_roots_are_read(served: Callable[..., Served], client_python: Path, tmp_path: Path) -> None:
    one = served(None, "api.example.com")
    with measuring("Deno fetch", "roots", "`DENO_CERT`"):
        for kept, works in (("SSL_CERT_FILE", False), ("DENO_CERT", True)):
            done = one.run(
                "environment",
                *with_roots(kept),
                *program(client_python),
                API_KEY=PLACEHOLDER,
                DENO_DIR=str(tmp_path / "deno"),
            )
            assert (done.code == 0) == works, done.stderr
    assert [json.loads(seen.body) for seen in one.api.requests] == [{"question": "deno"}]
