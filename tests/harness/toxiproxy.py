"""A real Toxiproxy: a network between us and a server that is slow, thin, cut or silent at will.

Built once from its published module, which takes half a minute, and kept in `.cache/`; needs Go. What its toxics are
called and take stands in Toxiproxy's README, "Toxics".
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.ostiary_process import clean_environment
from tests.harness.ports import free_port
from tests.harness.two_ways import CACHE

MODULE = "github.com/Shopify/toxiproxy/v2/cmd/server@v2.5.0"
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def toxiproxy_binary() -> Path:
    """The server, built once a version. Skips the test where there is no Go."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Toxiproxy is built with Go, which this machine has not")
    folder = CACHE / f"toxiproxy@{MODULE.rpartition('@')[2]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as held:
        # Two workers want it at once, and a file that is there may not be whole.
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            # The user's own environment: this is the way to the module proxy.
            build = {"GOBIN": str(folder), "GOCACHE": str(CACHE / "go"), "GOTOOLCHAIN": "local"}
            done = subprocess.run(
                ["env", *(f"{name}={value}" for name, value in build.items()), go, "install", MODULE],
                capture_output=True, text=True, timeout=400, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            (folder / ".complete").touch()
    return folder / "server"


class Line:
    """One line through Toxiproxy: `address` (`host:port`) leads to `target`.

    Args:
        api: of the server.
        name: of the line.
        target: `host:port`.
    """

    def __init__(self, api: str, name: str, target: str) -> None:
        self._api, self._name = api, name
        made = self._call("POST", "proxies", {"name": name, "listen": "127.0.0.1:0", "upstream": target})
        self.address = str(made["listen"])

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"{self._api}/{path}", json.dumps(body).encode() if body is not None else None, method=method
        )
        with _OPENER.open(request, timeout=10) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    @contextlib.contextmanager
    def toxic(self, kind: str, *, stream: str = "downstream", **attributes: int) -> Iterator[None]:
        """One fault for as long as the block lasts; `downstream` is on the way of answers, `upstream` on that of requests."""
        told = {"name": "it", "type": kind, "stream": stream, "attributes": attributes}
        self._call("POST", f"proxies/{self._name}/toxics", told)
        try:
            yield
        finally:
            self._call("DELETE", f"proxies/{self._name}/toxics/it")

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Nobody listens, and the connections that were there are closed."""
        self._call("POST", f"proxies/{self._name}", {"enabled": False})
        try:
            yield
        finally:
            self._call("POST", f"proxies/{self._name}", {"enabled": True})


@contextlib.contextmanager
def toxic_line(target: str) -> Iterator[Line]:
    """A Toxiproxy with one line to `target` (`host:port`)."""
    port = free_port()
    process = subprocess.Popen(
        [str(toxiproxy_binary()), "-host", "127.0.0.1", "-port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=clean_environment(),
    )
    try:
        ends_s = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < ends_s, process.poll()
            time.sleep(0.05)
        yield Line(f"http://127.0.0.1:{port}", "line", target)
    finally:
        process.kill()
        process.wait(10)
