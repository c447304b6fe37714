"""git over smart HTTP: clone and push, unchanged."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.git_server import git, git_server, repository
from tests.harness.report import measuring
from tests.harness.two_ways import WAYS, Served, with_roots
from tests.harness.versions import told_by

NAME = "git (clone, push)"
HOST = "git.example.com"
INJECT = '{basic: {username: x-token, password: "{secret}"}}'
NOBODY = ("env", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_TERMINAL_PROMPT=0")


def basic(one: Served) -> str:
    return f"Basic {base64.b64encode(f'x-token:{one.secret}'.encode()).decode()}"


@pytest.mark.parametrize("way", WAYS)
def test_clone_and_push(served: Callable[..., Served], tmp_path: Path, way: str) -> None:
    root = repository(tmp_path)
    one = served(git_server(root), HOST, inject=INJECT)
    with measuring(NAME, way, language="Command line", version=told_by("git", "--version"), set="-"):
        done = one.run(way, *NOBODY, "git", "clone", "-q", f"https://{HOST}/r.git", "cloned", cwd=tmp_path)
        one.assert_injected(done, value=basic(one))
        cloned = tmp_path / "cloned"
        (cloned / "notes").write_text("line\n" * 2000)
        git("add", "notes", cwd=cloned)
        git("commit", "-q", "-m", "second", cwd=cloned)
        pushed = one.run(way, *NOBODY, "git", "push", "-q", "origin", "main", cwd=cloned)
        assert pushed.code == 0, pushed.stderr
    assert git("log", "--format=%s", "main", cwd=root / "r.git") == "second\nfirst\n"
    assert {seen.get("Authorization") for seen in one.api.requests} == {basic(one)}
    assert [seen.target for seen in one.api.requests][-1] == "/r.git/git-receive-pack"


def test_where_the_roots_are_read(served: Callable[..., Served], tmp_path: Path) -> None:
    one = served(git_server(repository(tmp_path)), HOST, inject=INJECT)
    with measuring(NAME, "roots", "`GIT_SSL_CAINFO`"):
        for kept, works in ((("SSL_CERT_FILE", "CURL_CA_BUNDLE"), False), (("GIT_SSL_CAINFO",), True)):
            done = one.run(
                "environment", *with_roots(*kept), *NOBODY, "git", "ls-remote", f"https://{HOST}/r.git", cwd=tmp_path
            )
            assert (done.code == 0) == works, done.stderr
            assert bool(one.api.requests) == works
