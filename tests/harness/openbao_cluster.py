"""Three real OpenBao nodes over raft storage: an active one, two standbys, and what happens to them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.harness.ostiary_process import clean_environment
from tests.harness.ports import free_port
from tests.harness.vault_binary import vault_binary

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Node:
    """One server."""

    def __init__(self, folder: Path, name: str) -> None:
        binary = vault_binary()
        folder.mkdir(parents=True)
        (folder / "data").mkdir()
        self.address = f"http://127.0.0.1:{free_port()}"
        raft: dict[str, Any] = {"path": str(folder / "data"), "node_id": name, "performance_multiplier": 1}
        within = f"127.0.0.1:{free_port()}"
        listener = {"address": self.address.removeprefix("http://"), "cluster_address": within, "tls_disable": True}
        config = {
            "storage": {"raft": raft},
            "listener": {"tcp": listener},
            "disable_mlock": True,
            "api_addr": self.address,
            "cluster_addr": f"https://{within}",
        }
        (folder / "bao.json").write_text(json.dumps(config))
        self._log = folder / "bao.log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [binary, "server", f"-config={folder / 'bao.json'}"],
                stdout=log,
                stderr=log,
                env=clean_environment(HOME=str(folder)),
            )

    def api(self, method: str, path: str, body: Any = None, token: str = "") -> Any:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"X-Vault-Token": token} if token else {}
        request = urllib.request.Request(f"{self.address}/v1/{path}", data, headers, method=method)
        with _OPENER.open(request, timeout=10) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    def health(self) -> int:
        """200 active, 429 standby, 501 not initialised, 503 sealed, 0 for none."""
        try:
            with _OPENER.open(f"{self.address}/v1/sys/health", timeout=2) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def until(self, *wanted: int, timeout_s: float = 60) -> None:
        ends_s = time.monotonic() + timeout_s
        while self.health() not in wanted:
            assert time.monotonic() < ends_s, (self.health(), self._log.read_text()[-2000:])
            time.sleep(0.1)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


class Cluster:
    """The nodes; `token` is the root token."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.token = self._key = ""

    def start(self, folder: Path) -> None:
        first = self._node(folder, "a")
        first.until(501)
        made = first.api("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self.token, self._key = str(made["root_token"]), str(made["keys"][0])
        first.api("PUT", "sys/unseal", {"key": self._key})
        first.until(200)
        for name in ("b", "c"):
            node = self._node(folder, name)
            node.until(501)
            node.api("PUT", "sys/storage/raft/join", {"leader_api_addr": first.address})
            node.api("PUT", "sys/unseal", {"key": self._key})
            node.until(429)
        first.api("POST", "sys/storage/raft/autopilot/configuration", {"server_stabilization_time": "1s"}, self.token)
        ends_s = time.monotonic() + 60
        while not all(one["voter"] for one in self._members()):
            # Before it votes, a node is no help when another is gone.
            assert time.monotonic() < ends_s
            time.sleep(0.2)

    def _members(self) -> list[dict[str, Any]]:
        told = self.active().api("GET", "sys/storage/raft/configuration", None, self.token)
        return list(told["data"]["config"]["servers"])

    def _node(self, folder: Path, name: str) -> Node:
        node = Node(folder / name, name)
        self.nodes.append(node)
        return node

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(node.address for node in self.nodes)

    def active(self, timeout_s: float = 60) -> Node:
        ends_s = time.monotonic() + timeout_s
        while True:
            for node in self.nodes:
                if node.health() == 200:
                    return node
            assert time.monotonic() < ends_s
            time.sleep(0.1)

    def unseal(self, node: Node) -> None:
        """A node that was sealed comes back, as a standby where another one has become active."""
        node.api("PUT", "sys/unseal", {"key": self._key})
        node.until(200, 429)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


@contextlib.contextmanager
def openbao_cluster(folder: Path) -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.start(folder)
        yield cluster
    finally:
        cluster.stop()
