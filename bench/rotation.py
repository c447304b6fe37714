"""Rotations under load: a key that changes every few seconds in a real OpenBao, callers that never pause, and an upstream
that knows which keys are good.

Of each three rotations two have an overlap (the old key works for a while), one has none: the old key dies as the new one
is written. `python -m bench.rotation` prints the figures of docs/rotation.md; `make test-slow` runs a minute on each
engine and asserts that nothing failed.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.client import Raw, tunnel
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.upstream import Seen, Upstream, Wire
from vault.cache import SecretCache
from vault.secret import Secret
from vault.store import Described, SecretRef, SecretVersion

EVERY_S = 5.0
OVERLAP_S = 4.0
TTL_S = 2.0
CALLERS = 4
RECONNECT = 200
"""Requests on one connection, with several workers."""
PATH = "egress/api"
POLICY = f"""
workloads: {{billing: {{proofs: {{any: true}}}}}}
routes:
  api:
    match: {{host: api.test}}
    allow: billing
    secret: {{path: secret/{PATH}, field: key, ttl: {TTL_S:g}s}}
    inject: {{bearer: "{{secret}}"}}
"""


@dataclass
class Figures:
    """What one run found."""

    engine: str
    workers: int = 1
    seconds: float = 0.0
    requests: int = 0
    failed: list[str] = field(default_factory=list)
    rotations: int = 0
    killed: int = 0
    """Rotations without an overlap."""
    sent_again: int = 0
    until_new_s: list[float] = field(default_factory=list)
    """For each rotation, from the write to the first request that carries the new key."""
    until_all_s: list[float] = field(default_factory=list)
    """For each rotation, from the write to the last request that carries the key before: then every worker has the new one."""
    vault_reads: int = 0
    """As Vault's own audit has it."""
    served_by: int = 0
    """Workers that have opened the secret."""
    logins: int = 0
    """As Vault's own audit has it; 0 where the token is given."""

    def row(self) -> str:
        latest, all_of_them = (
            f"{statistics.median(found):.2f} / {max(found):.2f}" if found else "-"
            for found in (self.until_new_s, self.until_all_s)
        )
        return (
            f"| {self.engine} | {self.workers} | {self.seconds:.0f} | {self.requests} | {len(self.failed)} | {self.rotations} ({self.killed}) | "
            f"{self.sent_again} | {latest} | {all_of_them} | {self.vault_reads / self.seconds * 60:.1f} |"
        )


class Keys:
    """The upstream's side: which keys are good, and when each was seen first."""

    def __init__(self) -> None:
        self.good: set[str] = set()
        self.first_s: dict[str, float] = {}
        self.last_s: dict[str, float] = {}

    def __call__(self, seen: Seen, wire: Wire) -> None:
        key = (seen.get("Authorization") or "").removeprefix("Bearer ")
        self.last_s[key] = now_s = time.monotonic()
        self.first_s.setdefault(key, now_s)
        good = key in self.good
        wire.answer(200 if good else 401, b"hello" if good else b"rejected")


def _call(proxy: Ostiary, ended: threading.Event, figures: Figures, number: int) -> None:
    """One caller on a kept connection: GET and POST in turn."""
    count = 0
    while not ended.is_set():
        try:
            with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
                # With several workers a connection ends now and then: the kernel chooses anew who serves the next one.
                last = count + RECONNECT if figures.workers > 1 else 0
                while not ended.is_set() and (count != last or not count):
                    status = _ask(raw, count)
                    count += 1
                    if status != 200:
                        figures.failed.append(f"caller {number}: request {count} got {status}")
        except (OSError, AssertionError) as error:
            figures.failed.append(f"caller {number}: {type(error).__name__}")
            time.sleep(0.1)
    figures.requests += count


def _ask(raw: Raw, count: int) -> int:
    body = b"x" * 500 if count % 2 else b""
    method = "POST" if body else "GET"
    raw.send(f"{method} /v1/things HTTP/1.1\r\nHost: api.test\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return raw.answer().status


def _seen(audit: Path, operation: str, path: str) -> int:
    """Requests of one kind in Vault's own audit."""
    found = 0
    for line in audit.read_text().splitlines():
        entry = json.loads(line)
        request = entry.get("request", {})
        found += entry["type"] == "request" and (request.get("operation"), request.get("path")) == (operation, path)
    return found


def rotate(folder: Path, engine: str, seconds: float, every_s: float = EVERY_S, *, workers: int = 1) -> Figures:
    """One run: rotates every `every_s` seconds for as long as is asked. Several workers log in by a secret id of one use,
    a single process has a token.
    """
    figures, keys, pki = Figures(engine, workers), Keys(), Pki.make(folder / "pki")
    api = Upstream(pki.context("api.test", alpn=("http/1.1",)), keys)
    with openbao_server(folder / "bao", sealable=True) as bao:
        audit = bao.keep_audit()
        given = "{method: token_file, file: vault-token}"
        once = '{method: approle, role_id: "file:role-id", secret_id_file: secret-id}'
        store = f'vault:\n  addresses: ["{bao.address}"]\n  auth: {given if workers == 1 else once}'
        proxy = Ostiary(
            folder / engine,
            POLICY,
            ca_file=pki.ca_file,
            engine=engine,
            upstreams={"api.test:443": api.port},
            store=store,
            settings=f"workers: {workers}\n",
        ).write()
        (proxy.folder / "vault-token").write_text(bao.token)
        bao.policy("rotated", f'path "secret/data/{PATH}" {{ capabilities = ["read"] }}')
        role, secret_id = bao.approle("crew", "rotated", token_ttl="1h", secret_id_num_uses=1)  # noqa: S106 - a duration
        (proxy.folder / "role-id").write_text(role)
        (proxy.folder / "secret-id").write_text(secret_id)
        proxy.run()
        try:
            _under_load(figures, keys, proxy, bao, seconds, every_s)
        finally:
            proxy.stop()
            api.stop()
        figures.vault_reads = _seen(audit, "read", f"secret/data/{PATH}")
        figures.logins = _seen(audit, "update", "auth/approle/login")
    for file in proxy.folder.glob("audit*.jsonl"):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        closed = [record for record in records if record["event"] == "credential.closed"]
        figures.served_by += bool(closed)
        figures.sent_again += sum(record.get("retries", 0) for record in closed if record["status"] == 200)
    return figures


def _under_load(figures: Figures, keys: Keys, proxy: Ostiary, bao: OpenBao, seconds: float, every_s: float) -> None:
    current = secrets.token_hex(16)
    keys.good = {current}
    bao.put(PATH, key=current)
    ended = threading.Event()
    callers = [
        threading.Thread(target=_call, args=(proxy, ended, figures, number), daemon=True) for number in range(CALLERS)
    ]
    began_s = time.monotonic()
    for caller in callers:
        caller.start()
    written_s: dict[str, float] = {}
    ended_s: dict[str, float] = {}
    while (time.monotonic() - began_s) + every_s <= seconds:
        new = secrets.token_hex(16)
        kills = figures.rotations % 3 == 2
        keys.good = {current, new}
        bao.put(PATH, key=new)
        written_s[new] = ended_s[current] = time.monotonic()
        if not kills:
            time.sleep(min(OVERLAP_S, every_s * 0.8))
        keys.good = {new}
        figures.killed += kills
        figures.rotations += 1
        current = new
        time.sleep(max(written_s[new] + every_s - time.monotonic(), 0.0))
    ended.set()
    for caller in callers:
        caller.join(30)
    figures.seconds = time.monotonic() - began_s
    figures.until_new_s = [max(keys.first_s[key] - at, 0.0) for key, at in written_s.items() if key in keys.first_s]
    figures.until_all_s = [max(keys.last_s[key] - at, 0.0) for key, at in ended_s.items() if key in keys.last_s]


class _Still:
    """A store that always has the same thing."""

    name = "sealed"

    async def fetch(self, ref: SecretRef) -> SecretVersion:  # noqa: ARG002 - a store's signature
        return SecretVersion({"key": Secret("x" * 40)}, "1")

    async def probe(self) -> None: ...

    async def fields_of(self, ref: SecretRef) -> frozenset[str]: ...  # type: ignore[empty-body]  # not asked here

    async def unchanged(self, ref: SecretRef, known: SecretVersion) -> bool: ...  # type: ignore[empty-body]  # not asked here

    async def describe(self, ref: SecretRef) -> Described: ...  # type: ignore[empty-body]  # not asked here

    async def close(self) -> None: ...


async def cached_read_us(rounds: int = 200_000) -> float:
    """Microseconds that a read from memory takes."""
    cache, ref = SecretCache(_Still(), time.monotonic), SecretRef("secret/a")  # type: ignore[arg-type]  # `name` is one of its literals
    await cache.read(ref, ttl_s=3600, max_stale_s=0)
    began_s = time.perf_counter()
    for _ in range(rounds):
        cache.read_now(ref, ttl_s=3600)
    return (time.perf_counter() - began_s) / rounds * 1e6


def main() -> None:
    import asyncio

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=EVERY_S)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--engine", choices=("fast", "mitmproxy"), action="append")
    options = parser.parse_args()
    print(
        "| engine | workers | seconds | requests | failed | rotations (without overlap) | sent again | s to the new key, median / most | s to the last use of the old one | Vault reads per minute |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for engine in options.engine or ("fast", "mitmproxy"):
        with tempfile.TemporaryDirectory() as folder:
            print(
                rotate(Path(folder), engine, options.seconds, options.every, workers=options.workers).row(), flush=True
            )
    print(f"\na read from memory: {asyncio.run(cached_read_us()):.2f} us")


if __name__ == "__main__":
    main()
