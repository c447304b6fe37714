"""G27, V7, U5 on two workers: what a crowd, a `ttl` and a key that is killed at once cost, as Vault's own audit and the
upstream count it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.harness.canaries import canary
from tests.harness.client import get
from tests.harness.openbao import openbao_server
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, Upstream, Wire

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  cold:
    match: {host: cold.test}
    allow: billing
    secret: {path: secret/egress/cold, field: key, kv: 2, ttl: 1h}
    inject: {bearer: "{secret}"}
  short:
    match: {host: short.test}
    allow: billing
    secret: {path: secret/egress/short, field: key, kv: 2, ttl: 500ms}
    inject: {bearer: "{secret}"}
  killed:
    match: {host: killed.test}
    allow: billing
    secret: {path: secret/egress/killed, field: key, kv: 2, ttl: 1h}
    inject: {bearer: "{secret}"}
"""
HOSTS = ("cold.test", "short.test", "killed.test")
WORKERS = 2
TTL_S = 0.5
REFRESH_AT = 0.8
"""Of a ttl: when it is read again, ahead of its end."""


class Upstreams:
    """Takes every key but those of `killed.test`, where one is good, and which may hold what it is asked."""

    def __init__(self) -> None:
        self.good = ""
        self.rejected = 0
        self.held = 0
        self.free = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, seen: Seen, wire: Wire) -> None:
        if seen.get("Host") != "killed.test":
            wire.answer(200, b"ok")
            return
        if seen.target == "/held" and not self.free.is_set():
            with self._lock:
                self.held += 1
            self.free.wait(60)
        good = seen.get("Authorization") == f"Bearer {self.good}"
        with self._lock:
            self.rejected += not good
        wire.answer(200 if good else 401, b"ok" if good else b"rejected")


def reads(log: Path, name: str) -> int:
    """Reads of a secret, as Vault itself has written them down."""
    found = 0
    for line in log.read_bytes().split(b"\n")[:-1]:
        entry = json.loads(line)
        asked = entry["request"]
        found += entry["type"] == "request" and (asked["operation"], asked["path"]) == (
            "read",
            f"secret/data/egress/{name}",
        )
    return found


def opened(proxy: Ostiary, route: str) -> list[list[dict[str, Any]]]:
    """What each worker has opened for a route."""
    found = []
    for name in ("audit.jsonl", "audit.w1.jsonl"):
        lines = (proxy.folder / name).read_bytes().split(b"\n")[:-1]
        records = [json.loads(line) for line in lines]
        found.append([one for one in records if one["event"] == "credential.opened" and one["route"] == route])
    return found


def test_g27_u5_what_crowds_and_dead_keys_cost(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], tmp_path: Path
) -> None:
    script = Upstreams()
    api = upstream(script, names=HOSTS)
    keys = {name: canary(name) for name in ("cold", "short", "killed")}
    with openbao_server(tmp_path / "bao", sealable=True) as bao, ThreadPoolExecutor(50) as pool:
        log = bao.keep_audit()
        for name, key in keys.items():
            bao.put(f"egress/{name}", key=key)
        bao.policy("reads", 'path "secret/data/egress/*" { capabilities = ["read"] }')
        role, secret_id = bao.approle("crew", "reads", secret_id_num_uses=1)
        proxy = ostiary(
            POLICY,
            start=False,
            upstreams={f"{host}:443": api.port for host in HOSTS},
            store=f'vault:\n  addresses: ["{bao.address}"]\n'
            f"  auth: {{method: approle, role_id: {role}, secret_id_file: secret-id}}",
            settings=f"workers: {WORKERS}\n",
            patience_s=60,
        )
        (proxy.folder / "secret-id").write_text(secret_id)
        proxy.canaries += [*keys.values(), secret_id]
        proxy.run()

        def ask(host: str, path: str = "/v1", method: str = "GET", body: bytes = b"") -> int:
            return get(
                proxy.address("sidecar"), proxy.ca, path, authority=f"{host}:443", method=method, body=body
            ).status

        # A hundred cold callers: one read of each worker.
        assert set(pool.map(lambda _: ask("cold.test"), range(100))) == {200}
        assert [len(records) > 0 for records in opened(proxy, "cold")] == [True] * WORKERS
        assert reads(log, "cold") == WORKERS

        # A crowd that does not end: one read of each worker in each ttl.
        began_s, asked = time.monotonic(), 0
        while time.monotonic() - began_s < 2:
            asked += len([status for status in pool.map(lambda _: ask("short.test"), range(20)) if status == 200])
        elapsed_s = time.monotonic() - began_s
        assert asked == sum(map(len, opened(proxy, "short")))
        assert asked >= 20
        assert WORKERS <= reads(log, "short") <= WORKERS * (elapsed_s / TTL_S / REFRESH_AT + 1)
        assert reads(log, "cold") == WORKERS

        # The key is changed and the old one killed at once, while some calls are on the wire with it.
        script.good = keys["killed"]
        assert set(pool.map(lambda _: ask("killed.test"), range(20))) == {200}
        assert reads(log, "killed") == WORKERS
        small = [pool.submit(ask, "killed.test", "/held") for _ in range(12)]
        large = [pool.submit(ask, "killed.test", "/held", "POST", b"x" * 200_000) for _ in range(4)]
        ends_s = time.monotonic() + 60
        while script.held < 16:
            assert time.monotonic() < ends_s
            time.sleep(0.02)
        new = canary("killed")
        proxy.canaries.append(new)
        bao.put("egress/killed", key=new)
        script.good = new
        script.free.set()
        # What can be sent again is, and its caller has not noticed; what cannot be has the upstream's own 401, and that is all.
        assert [one.result() for one in small] == [200] * 12
        assert [one.result() for one in large] == [401] * 4
        assert set(pool.map(lambda _: ask("killed.test"), range(40))) == {200}
        # Rejected were those on the wire, and at most the first one of a worker that had none.
        assert 16 <= script.rejected <= 16 + WORKERS - 1
        assert reads(log, "killed") == 2 * WORKERS
        versions = [[record["secret_version"] for record in records] for records in opened(proxy, "killed")]
        for of_worker in versions:
            # A worker that has the new version never takes the old one again.
            assert of_worker == sorted(of_worker)
            assert of_worker[-1] == "2"
        assert sum(one.count("1") for one in versions) == 20 + script.rejected
