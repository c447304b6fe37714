"""SDKs as they come, through `ostiary exec` and `use: NAME` alone: no key of theirs, no variable but the preset's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.two_ways import PROGRAMS, Served
from tests.harness.upstream import Script
from tests.harness.vendors import anthropic, gemini, openai, stripe

ROWS: dict[str, tuple[str, Script, str, str, str, str]] = {
    "openai": ("chat.py", openai, "api.openai.com", "Authorization", "Bearer {}", "hello hello"),
    "anthropic": ("messages.py", anthropic, "api.anthropic.com", "x-api-key", "{}", "hello hello"),
    "gemini": ("generate.py", gemini, "generativelanguage.googleapis.com", "x-goog-api-key", "{}", "hello hello"),
    "stripe": ("customers.py", stripe, "api.stripe.com", "Authorization", "Bearer {}", "customer customer"),
}


@pytest.mark.parametrize(
    "name", ["openai", "stripe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("anthropic", "gemini"))]
)
def test_an_sdk_through_its_preset(name: str, served: Callable[..., Served], client_python: Path) -> None:
    program, script, host, header, value, wanted = ROWS[name]
    one = served(
        script, host, routes=f"  api: {{use: {name}, allow: billing, secret: {{path: secret/egress/api, field: key}}}}"
    )
    done = one.run("exec", str(client_python), str(PROGRAMS / "python" / program))
    assert done.code == 0, done.stderr
    assert done.stdout.split() == wanted.split()
    one.assert_injected(done, header=header, value=value)
