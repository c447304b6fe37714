"""The real process: written settings, `python -m ostiary run`, its output, its audit, its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.canaries import files_below, scan
from tests.harness.client import REFUSALS, Raw
from tests.harness.warm import ROOT, Forked, forks, warm
from vault.sealed import KeyFile, SealedFile, read_key
from vault.secret import Secret

HIDDEN = ("secrets.sealed", "secrets.key", "ca.key", "vault-token", "secret-id", "caller-key", "policy.yaml")
"""Files that hold secrets by design."""

ENGINES = tuple(os.environ.get("OSTIARY_TEST_ENGINES", "mitmproxy,fast").split(","))
"""Every end-to-end test runs on each of these."""


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without what would change a client's or our own behaviour."""
    dropped = ("PROXY", "OSTIARY", "VAULT", "SSL_CERT", "CA_BUNDLE", "PYTHON", "NODE_EXTRA")
    kept = {name: value for name, value in os.environ.items() if not any(part in name.upper() for part in dropped)}
    return {**kept, **extra}


def command(
    *arguments: str, cwd: Path, stdin: bytes = b"", environ: Mapping[str, str] | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[bytes]:
    """Runs `ostiary …` to its end."""
    environment = clean_environment(**{"PYTHONPATH": str(ROOT), **(environ or {})})
    if forks(environment):
        return warm().run(arguments, cwd, environment, stdin, timeout)
    return subprocess.run(
        [sys.executable, "-m", "ostiary", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        env=environment,
        timeout=timeout,
        check=False,
    )


@dataclass
class Ostiary:
    """One process with its folder.

    `policy` and `settings` are YAML text; `settings` is appended to what every test needs (CA, sealed store, audit,
    admin, egress to loopback).
    """

    folder: Path
    policy: str
    upstreams: Mapping[str, int] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ca_file: Path | None = None
    listen: str = '[{name: sidecar, bind: "127.0.0.1:0", workload: billing}]'
    settings: str = ""
    store: str = "secrets_file: secrets.sealed\nsecrets_key: {file: secrets.key}"
    audit_block: str = "audit: {sinks: [{file: audit.jsonl}]}"
    egress: str | None = None
    admin: str = '{bind: "127.0.0.1:0"}'
    environ: Mapping[str, str] = field(default_factory=dict)
    engine: str = ENGINES[0]
    prefix: tuple[str, ...] = ()
    canaries: list[str] = field(default_factory=list)
    preexec: Callable[[], None] | None = None
    direct: bool = False
    """Start from nothing, never by a fork of the warm process."""
    patience_s: float = 20.0
    """How long the start may take."""

    process: subprocess.Popen[bytes] | Forked | None = None
    ready: dict[str, Any] = field(default_factory=dict)
    stderr: bytearray = field(default_factory=bytearray)
    stdout: bytearray = field(default_factory=bytearray)
    told: list[tuple[str, bytes]] = field(default_factory=list)
    """What the admin listener answered to this test."""

    # --- files ---

    def write(self) -> Ostiary:
        """Writes settings, policy and secrets."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "policy.yaml").write_text(self.policy)
        resolve = ", ".join(f'"{name}": "127.0.0.1:{port}"' for name, port in self.upstreams.items())
        roots = f", ca_file: {self.ca_file}" if self.ca_file else ""
        egress = (
            self.egress
            if self.egress is not None
            else f'egress: {{allow: ["127.0.0.0/8"]{", resolve: {" + resolve + "}" if resolve else ""}{roots}}}'
        )
        text = f"listen: {self.listen}\nca: {{dir: ca}}\n{self.store}\n{self.audit_block}\nadmin: {self.admin}\npolicies: [policy.yaml]\n{egress}\nengine: {self.engine}\n"
        (self.folder / "ostiary.yaml").write_text(text + self.settings)
        if "secrets_file" in self.store and not (self.folder / "secrets.sealed").exists():
            SealedFile.create(self.folder / "secrets.sealed", self.folder / "secrets.key")
        for path, fields in self.secrets.items():
            for name, value in fields.items():
                self.set_secret(path, name, value)
        return self

    def set_secret(self, path: str, name: str, value: str) -> None:
        self.canaries.append(value)
        # In this process: the command line has tests of its own, and each start of it costs a third of a second.
        SealedFile(self.folder / "secrets.sealed", read_key(KeyFile(self.folder / "secrets.key"), {})).set(
            path, name, Secret(value)
        )

    # --- life ---

    def start(self) -> Ostiary:
        self.write()
        return self.run()

    def run(self) -> Ostiary:
        """Starts the process and waits until it is ready."""
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        arguments = ("run", "--config", "ostiary.yaml")
        # Temporary files land where the scan for canaries finds them.
        environment = clean_environment(**{"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), **self.environ})
        if not self.direct and not self.prefix and self.preexec is None and forks(environment):
            self.process = warm().start(arguments, self.folder, environment)
        else:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "ostiary", *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                preexec_fn=self.preexec,
            )
        first = threading.Event()
        self.stdout = bytearray()
        threading.Thread(target=self._pump, args=(self.process.stdout, self.stdout, first), daemon=True).start()
        threading.Thread(target=self._pump, args=(self.process.stderr, self.stderr, None), daemon=True).start()
        assert first.wait(self.patience_s), f"not ready: {self.stderr.decode()}"
        line = bytes(self.stdout).split(b"\n")[0]
        assert line.startswith(b'{"event":"ready"'), f"{line!r} {self.stderr.decode()}"
        self.ready = json.loads(line)
        return self

    @staticmethod
    def _pump(stream: Any, into: bytearray, first: threading.Event | None) -> None:
        while data := os.read(stream.fileno(), 65536):
            into += data
            if first is not None and b"\n" in into:
                first.set()
        if first is not None:
            first.set()

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    # --- what it says ---

    def reload(self, policy: str | None = None) -> None:
        """SIGHUP, and waits until it is done."""
        assert self.process is not None
        if policy is not None:
            (self.folder / "policy.yaml").write_text(policy)
        self.wait_audit("policy.loaded")  # that of the start, which follows the ready line
        before = len(self.audit("policy.loaded")) + len(self.audit("policy.rejected"))
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 5
        while len(self.audit("policy.loaded")) + len(self.audit("policy.rejected")) == before:
            assert time.monotonic() < deadline, "the reload was not recorded"
            time.sleep(0.01)

    @property
    def port(self) -> int:
        return int(self.address("sidecar").rpartition(":")[2])

    def address(self, name: str) -> str:
        return str(next(entry["address"] for entry in self.ready["listeners"] if entry["name"] == name))

    @property
    def ca(self) -> Path:
        return self.folder / "ca" / "ca.pem"

    def audit(self, event: str | None = None) -> list[dict[str, Any]]:
        path = self.folder / "audit.jsonl"
        records = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        return [record for record in records if event is None or record["event"] == event]

    def wait_audit(self, event: str, count: int = 1, timeout: float = 5.0) -> list[dict[str, Any]]:
        """Records of an event, once there are as many."""
        deadline = time.monotonic() + timeout
        while len(found := self.audit(event)) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(found) >= count, f"{len(found)} of {count} {event}: {self.audit()}"
        return found

    def get(self, path: str) -> tuple[int, bytes]:
        """GET on the admin listener, without a token."""
        if str(self.ready["admin"]).startswith("unix:"):
            with Raw(self.ready["admin"]) as raw:
                answer = raw.request(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.told.append((path, answer.body))
            return answer.status, answer.body
        request = urllib.request.Request(f"http://{self.ready['admin']}{path}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as answer:
                found = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            found = error.code, error.read()
        self.told.append((path, found[1]))
        return found

    def rss_bytes(self) -> int:
        return self._memory_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """The most that was ever resident."""
        return self._memory_bytes("VmHWM")

    def _memory_bytes(self, name: str) -> int:
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {name}")

    def leaks(self) -> list[str]:
        """Places that show a canary: what was printed (tracebacks too), every file it left (audit, temporary files, cores), what the
        admin listener says, refusals that clients of the harness were given, and what `/proc` shows to others of the same user.
        """
        blobs = [("stdout", bytes(self.stdout)), ("stderr", bytes(self.stderr)), *files_below(self.folder, HIDDEN)]
        blobs += self.told
        blobs += [("refusal", raw) for raw in tuple(REFUSALS)]
        if self.process is not None and self.process.poll() is None:
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    blobs.append((f"/proc/{name}", Path(f"/proc/{self.process.pid}/{name}").read_bytes()))
            if "admin" in self.ready:
                for path in ("/metrics", "/readyz", "/healthz"):
                    with contextlib.suppress(OSError):
                        blobs.append((path, self.get(path)[1]))
        # What a test itself hands over in the environment is no leak there.
        given = set(self.environ.values())
        return scan(blobs, [value for value in self.canaries if value not in given])
