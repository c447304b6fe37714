"""Java's HttpClient, from JAVA_TOOL_OPTIONS alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from tests.harness.report import client as stated
from tests.harness.report import measuring
from tests.harness.two_ways import PLACEHOLDER, PROGRAMS, WAYS, Served
from tests.harness.versions import told_by

NAME = "HttpClient"
JAVA = shutil.which("java")
pytestmark = pytest.mark.skipif(JAVA is None, reason="no Java on this machine")


def program(name: str) -> tuple[str, ...]:
    return (str(JAVA), "-XX:TieredStopAtLevel=1", str(PROGRAMS / "java" / f"{name}.java"))


def test_unchanged_on_a_listener_that_asks_for_no_key(served: Callable[..., Served]) -> None:
    one = served(None, "api.example.com")
    done = one.run("environment", *program("Plain"), listener="open", API_KEY=PLACEHOLDER)
    one.assert_injected(done)
    assert done.stdout.strip() == "200 hello"
    assert json.loads(one.api.requests[0].body) == {"question": "java"}


@pytest.mark.parametrize("way", WAYS)
def test_unchanged_where_a_key_is_asked_for_it_is_refused(served: Callable[..., Served], way: str) -> None:
    """HttpClient has no property for a proxy's password: nothing in the environment can help it."""
    one = served(None, "api.example.com")
    done = one.run(way, *program("Plain"), API_KEY=PLACEHOLDER)
    assert "407" in done.stdout + done.stderr
    assert one.api.connections == 0
    stated(NAME, cannot="without an `Authenticator` where a key is asked for: no option names a proxy's password")


@pytest.mark.parametrize("way", WAYS)
def test_g46_an_authenticator_passes_the_407_round(served: Callable[..., Served], way: str) -> None:
    one = served(None, "api.example.com")
    facts = {"language": "Java", "version": told_by(str(JAVA), "-version"), "set": "an `Authenticator`"}
    with measuring(NAME, way, **facts, roots="`JAVA_TOOL_OPTIONS`"):
        done = one.run(way, *program("Keyed"))
        one.assert_injected(done)
        assert done.stdout.strip() == "200 hello"
