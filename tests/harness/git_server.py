"""A git server: `git http-backend` behind a scripted upstream, as a web server would call it (gitprotocol-http)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.harness.ostiary_process import clean_environment
from tests.harness.upstream import Script, Seen, Wire


def git(*arguments: str, cwd: Path) -> str:
    """Runs git without the proxy and without the user's settings."""
    named = clean_environment(
        GIT_AUTHOR_NAME="T", GIT_AUTHOR_EMAIL="t@example.test", GIT_COMMITTER_NAME="T",
        GIT_COMMITTER_EMAIL="t@example.test", GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null",
    )  # fmt: skip
    done = subprocess.run(
        ["git", *arguments], cwd=cwd, env=named, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def repository(folder: Path) -> Path:
    """A bare repository `r.git` with one commit that takes pushes."""
    work = folder / "seed"
    git("init", "-q", "-b", "main", str(work), cwd=folder)
    git("commit", "-q", "--allow-empty", "-m", "first", cwd=work)
    git("clone", "-q", "--bare", str(work), str(folder / "served" / "r.git"), cwd=folder)
    git("config", "http.receivepack", "true", cwd=folder / "served" / "r.git")
    return folder / "served"


def git_server(root: Path) -> Script:
    """Serves the repositories below a folder."""

    def script(seen: Seen, wire: Wire) -> None:
        path, _, query = seen.target.partition("?")
        environment = clean_environment(
            GIT_PROJECT_ROOT=str(root), GIT_HTTP_EXPORT_ALL="1", REQUEST_METHOD=seen.method, PATH_INFO=path, QUERY_STRING=query,
            CONTENT_TYPE=seen.get("Content-Type") or "", CONTENT_LENGTH=str(len(seen.body)),
            HTTP_CONTENT_ENCODING=seen.get("Content-Encoding") or "", GIT_PROTOCOL=seen.get("Git-Protocol") or "",
        )  # fmt: skip
        assert seen.body_bytes == len(seen.body), "larger than the harness keeps"
        done = subprocess.run(
            ["git", "http-backend"], input=seen.body, env=environment, capture_output=True, check=True, timeout=30
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(fields.pop("Status", "200").split()[0])
        wire.answer(status, body, tuple(fields.items()))

    return script
