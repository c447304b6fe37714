"""V1, V2, V5, T1: what happens to a Vault in its life, under load. The active node of three steps down, is sealed, unsealed
and killed; the token of a login comes to its end again and again; the wall clock jumps. No workload notices.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.harness.canaries import canary
from tests.harness.client import tunnel
from tests.harness.openbao import openbao_server
from tests.harness.openbao_cluster import openbao_cluster
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Upstream
from tests.harness.wall_clock import WallClock
from tests.vault.test_cluster import furnish, write

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  api:
    match: {host: api.test}
    allow: billing
    secret: {path: secret/egress/a, field: key, kv: 2, ttl: 500ms, max_stale: STALE}
    inject: {bearer: "{secret}"}
"""
REQUEST = b"GET /v1 HTTP/1.1\r\nHost: api.test\r\n\r\n"
CALLERS = 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Load:
    """Callers that never pause, and what went wrong for them."""

    def __init__(self, proxy: Ostiary) -> None:
        self.proxy = proxy
        self.failed: list[str] = []
        self.requests = 0

    def _call(self, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                # A connection of 50 requests: the kernel chooses anew which worker serves the next one.
                with tunnel(self.proxy.address("sidecar"), self.proxy.ca) as raw:
                    for _ in range(50):
                        answer = raw.request(REQUEST)
                        self.requests += 1
                        if answer.status != 200:
                            self.failed.append(f"{answer.status} {answer.code}")
                        if ended.is_set():
                            break
            except (OSError, AssertionError) as error:
                self.failed.append(repr(error))
            time.sleep(0.01)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        ended = threading.Event()
        callers = [threading.Thread(target=self._call, args=(ended,), daemon=True) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        try:
            yield
        finally:
            ended.set()
            for caller in callers:
                caller.join(30)


def shown(api: Upstream, key: str) -> None:
    """Waits until the upstream is shown a key."""
    ends_s = time.monotonic() + 60
    while not api.requests or api.requests[-1].get("Authorization") != f"Bearer {key}":
        assert time.monotonic() < ends_s
        time.sleep(0.05)


def test_v1_v2_a_cluster_whose_nodes_come_and_go(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], tmp_path: Path
) -> None:
    api = upstream()
    keys = [canary(f"key-{number}") for number in range(4)]
    with openbao_cluster(tmp_path / "cluster") as cluster:
        proxy = ostiary(
            POLICY.replace("STALE", "10m"),
            start=False,
            upstreams={"api.test:443": api.port},
            store=f"vault:\n  addresses: {json.dumps(cluster.addresses)}\n"
            "  auth: {method: approle, role_id: file:role, secret_id_file: secret-id}",
            settings="workers: 2\n",
            patience_s=60,
        )
        furnish(cluster, proxy.folder)
        proxy.canaries += keys
        write(cluster, keys[0])
        proxy.run()
        load = Load(proxy)
        with load.running():
            shown(api, keys[0])
            # An election, of which nobody but Vault's operators hears; what is written afterwards is in use.
            cluster.active().api("PUT", "sys/step-down", {}, cluster.token)
            write(cluster, keys[1])
            shown(api, keys[1])
            # The active node is sealed; the others go on, and it comes back as a standby.
            sealed = cluster.active()
            sealed.api("PUT", "sys/seal", {}, cluster.token)
            write(cluster, keys[2])
            shown(api, keys[2])
            cluster.unseal(sealed)
            # And one is lost for good.
            cluster.active().stop()
            write(cluster, keys[3])
            shown(api, keys[3])
        assert load.failed == []
        assert load.requests > 100
        states = {record["cache"] for record in proxy.audit("credential.opened")}
        assert "hit" in states
        assert {seen.get("Authorization") for seen in api.requests} == {f"Bearer {key}" for key in keys}


def test_v5_a_token_that_comes_to_its_end_under_load(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], tmp_path: Path
) -> None:
    """Renewed at two thirds, replaced before its greatest age: by the supervisor, for both workers, and without a refusal."""
    api, key = upstream(), canary()
    with openbao_server(tmp_path / "bao", sealable=True) as bao:
        log = bao.keep_audit()
        bao.put("egress/a", key=key)
        rights = {"secret/data/egress/a": "read", "auth/token/renew-self": "update"}
        bao.policy("r", "\n".join(f'path "{path}" {{ capabilities = ["{may}"] }}' for path, may in rights.items()))
        role, secret_id = bao.approle("r", "r", token_ttl="3s", token_max_ttl="6s")
        proxy = ostiary(
            # Without anything stale: were there a moment without a token, somebody would be refused.
            POLICY.replace("STALE", "0").replace("500ms", "0"),
            start=False,
            upstreams={"api.test:443": api.port},
            store=f'vault:\n  addresses: ["{bao.address}"]\n'
            f"  auth: {{method: approle, role_id: {role}, secret_id_file: secret-id}}",
            settings="workers: 2\n",
            patience_s=60,
        )
        (proxy.folder / "secret-id").write_text(secret_id)
        proxy.canaries += [key, secret_id]
        proxy.run()
        load = Load(proxy)
        began_s = time.monotonic()
        with load.running():
            time.sleep(20)
        lived_s = time.monotonic() - began_s
        assert load.failed == []
        assert load.requests > 100
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        asked = [entry["request"]["path"] for entry in entries if entry["type"] == "request"]
        logins = asked.count("auth/approle/login")
        # One for each six seconds, taken early; and never two.
        assert 3 <= logins <= lived_s / 3 + 2
        assert asked.count("auth/token/renew-self") >= 2
        # A read may be the first to hear that a token has ended: the login after it serves that read and all who wait.
        read = [entry for entry in entries if entry["request"]["path"] == "secret/data/egress/a"]
        assert len([entry for entry in read if entry.get("error")]) <= logins * CALLERS
        assert len(read) > 100


def test_t1_v5_a_wall_clock_that_jumps(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], tmp_path: Path
) -> None:
    """Half an hour ahead, then half an hour behind: ages, the token's life and the pauses between reads go on as before."""
    api, clock, keys = upstream(), WallClock(tmp_path / "clock"), [canary("one"), canary("two")]
    with openbao_server(tmp_path / "bao", sealable=True) as bao:
        log = bao.keep_audit()
        bao.put("egress/a", key=keys[0])
        bao.policy("r", 'path "secret/data/egress/a" { capabilities = ["read"] }')
        # Were the wall clock asked, the token would have ended in the first half hour.
        role, secret_id = bao.approle("r", "r", token_ttl="20m")
        proxy = ostiary(
            POLICY.replace("STALE", "1m").replace("500ms", "1s"),
            start=False,
            upstreams={"api.test:443": api.port},
            store=f'vault:\n  addresses: ["{bao.address}"]\n'
            f"  auth: {{method: approle, role_id: {role}, secret_id_file: secret-id}}",
            environ=clock.environ,
            direct=True,
            patience_s=60,
        )
        (proxy.folder / "secret-id").write_text(secret_id)
        proxy.canaries += [*keys, secret_id]
        proxy.run()
        load = Load(proxy)
        began_s = time.monotonic()
        with load.running():
            shown(api, keys[0])
            for ahead_s in (1800, -1800):
                clock.set(ahead_s)
                before = len(api.requests)
                time.sleep(3)
                assert len(api.requests) > before
            # Behind its own past, it notices a rotation as soon as ever.
            bao.put("egress/a", key=keys[1])
            written_s = time.monotonic()
            shown(api, keys[1])
            assert time.monotonic() - written_s < 1 + 10
        lived_s = time.monotonic() - began_s
        assert load.failed == []
        asked = [
            entry["request"] for entry in map(json.loads, log.read_bytes().splitlines()) if entry["type"] == "request"
        ]
        reads = [one for one in asked if (one["operation"], one["path"]) == ("read", "secret/data/egress/a")]
        assert 3 <= len(reads) <= lived_s / 0.8 + 2
        assert [one["path"] for one in asked].count("auth/approle/login") == 1
        assert {record["cache"] for record in proxy.audit("credential.opened")} <= {"hit", "miss"}
        # The clock was moved indeed.
        times = [datetime.fromisoformat(record["time"]) for record in proxy.audit()]
        assert (max(times) - min(times)).total_seconds() > 3000
