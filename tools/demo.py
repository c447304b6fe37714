"""The demonstration behind `make run` and `make demo-vault`.

Starts an upstream of its own, the real `ostiary run`, and sends one keyless request with curl. Shows what left the
client, what reached the upstream (credential masked), the answer and the two audit records; then keeps serving. Without
a terminal, or with ONCE=1, it ends after that: 0 if everything held, 1 if anything did not. With --vault the secret
lives in a real OpenBao, and a rotation is shown.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import http.server
import json
import os
import secrets
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from ostiary.ca import LeafStore, load_or_create

ROOT = Path(__file__).parents[1]
HOST = "api.demo.test"
POLICY = """\
# One route: the workload "demo" may GET api.demo.test, and gets its key.
workloads:
  demo: {proofs: [{any: true}]}
routes:
  demo-api:
    match: {host: api.demo.test, methods: [GET], paths: ["/v1/**"]}
    allow: demo
    secret: {path: secret/egress/demo, field: api_key, ttl: 2s}
    inject: {bearer: "{secret}"}
"""


class DemoFailed(Exception):
    """Something did not hold; the message says what."""


class _Api(http.server.BaseHTTPRequestHandler):
    """The upstream: wants a key, remembers what it was sent."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, list[tuple[str, str]]]]
    accepted: set[str]

    def do_GET(self) -> None:
        self.seen.append((self.requestline, list(self.headers.items())))
        ok = self.headers.get("Authorization", "").removeprefix("Bearer ") in self.accepted
        body = json.dumps({"greeting": "hello, keyless workload"} if ok else {"error": "no valid key"}).encode() + b"\n"
        self.send_response(200 if ok else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing: the demonstration shows what arrived itself."""


class Upstream:
    """A TLS server on loopback whose certificate is signed by a CA of its own."""

    def __init__(self, folder: Path, accepted: set[str]) -> None:
        authority = load_or_create(folder, dt.datetime.now(dt.UTC))
        leaf = LeafStore(authority, lambda: dt.datetime.now(dt.UTC)).leaf(HOST)
        pem = folder / "server.pem"
        key = leaf.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        pem.write_bytes(key + leaf.cert.public_bytes(serialization.Encoding.PEM))
        self.ca_file = folder / "ca.pem"
        self.seen: list[tuple[str, list[tuple[str, str]]]] = []
        self.accepted = accepted
        handler = type("Api", (_Api,), {"seen": self.seen, "accepted": accepted})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = int(self.server.server_address[1])
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def settings(upstream: Upstream, store: str) -> str:
    """ostiary.yaml of the demonstration."""
    return f"""\
listen:
  - {{name: sidecar, bind: "127.0.0.1:{os.environ.get("PORT", "0")}", workload: demo}}
ca: {{dir: ca}}
{store}
audit: {{sinks: [{{file: audit.jsonl}}]}}
admin: {{bind: "127.0.0.1:0"}}
policies: [policy.yaml]
# The demo upstream lives on loopback: an address that the egress guard refuses unless it is listed.
egress:
  allow: ["127.0.0.0/8"]
  resolve: {{"{HOST}:443": "127.0.0.1:{upstream.port}"}}
  ca_file: {upstream.ca_file}
"""


def ostiary(folder: Path, *arguments: str, value: str | None = None) -> None:
    """Runs a command of Ostiary, as a person would."""
    shown = f"$ ostiary {' '.join(arguments)}" + ("   < (the key, on stdin)" if value else "")
    print(shown)
    done = subprocess.run(
        [sys.executable, "-m", "ostiary", *arguments],
        cwd=folder,
        input=(value or "").encode(),
        check=False,
        env=clean(),
    )
    if done.returncode:
        raise DemoFailed(f"{shown} ended with {done.returncode}")


def clean() -> dict[str, str]:
    """The environment without proxy settings of this machine."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return {**kept, "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, Any]]:
    """`ostiary run`, until the block ends."""
    print("$ ostiary run")
    with (folder / "ostiary.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ostiary", "run"], cwd=folder, stdout=subprocess.PIPE, stderr=log, env=clean()
        )
        try:
            line = process.stdout.readline() if process.stdout else b""
            if not line:
                raise DemoFailed(f"ostiary did not start: {(folder / 'ostiary.log').read_text()}")
            print(line.decode().strip())
            yield json.loads(line)
        finally:
            process.terminate()
            if process.wait(20):
                raise DemoFailed(f"ostiary ended with {process.returncode}")


def curl(folder: Path, proxy: str, *, shown: bool) -> str:
    """One keyless request with curl; the answer's body."""
    command = [
        "curl", "-sS", "--noproxy", "", "--proxy", f"http://{proxy}", "--cacert", "ca/ca.pem", f"https://{HOST}/v1/hello",
    ]  # fmt: skip
    if shown:
        print("$ " + " ".join(part or '""' for part in command))
    done = subprocess.run(
        [*command, "-v"] if shown else command, cwd=folder, capture_output=True, check=False, env=clean()
    )
    if done.returncode:
        raise DemoFailed(f"curl failed: {done.stderr.decode(errors='replace')}")
    if shown:
        sent = [line[2:] for line in done.stderr.decode(errors="replace").splitlines() if line.startswith("> ")]
        inner = sent[next(index for index, line in enumerate(sent) if line.startswith("GET ")) :]
        print("\nWhat left the client (no key):")
        print_block(line for line in inner if line.strip())
        if any("authorization" in line.lower() for line in sent):
            raise DemoFailed("the client sent an Authorization header")
    return done.stdout.decode()


def print_block(lines: Any) -> None:
    for line in lines:
        print(f"    {line}")


def show(folder: Path, upstream: Upstream, key: str, body: str) -> None:
    """Prints both ends of the request, and checks them."""
    line, headers = upstream.seen[-1]
    masked = [f"{name}: {value.replace(key, key[:4] + '…' + '*' * 12)}" for name, value in headers]
    print("\nWhat reached the upstream (credential masked here, not there):")
    print_block([line, *masked])
    if not got(upstream, key):
        raise DemoFailed("the upstream did not receive the credential")
    print("\nThe answer:")
    print_block(body.splitlines())
    if "hello, keyless workload" not in body:
        raise DemoFailed("the upstream did not accept the request")
    records = wait_for_records(folder, 2)
    print("\nThe audit (audit.jsonl):")
    print_block(json.dumps(record) for record in records[-2:])
    text = (folder / "audit.jsonl").read_text() + (folder / "ostiary.log").read_text()
    if key in text:
        raise DemoFailed("the key stands in the audit or the log")


def got(upstream: Upstream, key: str) -> bool:
    """Whether the last request carried this key."""
    return ("authorization", f"Bearer {key}") in {(name.lower(), value) for name, value in upstream.seen[-1][1]}


def wait_for_records(folder: Path, count: int) -> list[dict[str, Any]]:
    """The credential records of the last exchange, once both are there."""
    for _ in range(200):
        lines = (folder / "audit.jsonl").read_text().splitlines()
        records = [record for record in map(json.loads, lines) if record["event"].startswith("credential.")]
        if len(records) >= count and records[-1]["event"] == "credential.closed":
            return records
        time.sleep(0.02)
    raise DemoFailed("the audit records are not complete")


# --- the two stores ---------------------------------------------------------------------------------------------------


def embedded(folder: Path) -> str:
    """The demonstration on the embedded store."""
    key = f"demo-{secrets.token_hex(16)}"
    upstream = Upstream(folder / "upstream", {key})
    (folder / "policy.yaml").write_text(POLICY)
    (folder / "ostiary.yaml").write_text(
        settings(upstream, "secrets_file: secrets.sealed\nsecrets_key: {file: secrets.key}")
    )
    ostiary(folder, "secret", "init")
    ostiary(folder, "secret", "set", "secret/egress/demo", "api_key", value=key)
    with running(folder) as ready:
        proxy = ready["listeners"][0]["address"]
        body = curl(folder, proxy, shown=True)
        show(folder, upstream, key, body)
        print("\nIt held: the client has no key, the upstream got one, and the audit tells both.")
        keep_serving(folder, proxy, ready)
    return key


def vault(folder: Path) -> None:
    """The demonstration on a real OpenBao, with a rotation."""
    first, second = (f"demo-{secrets.token_hex(16)}" for _ in range(2))
    upstream = Upstream(folder / "upstream", {first, second})
    with openbao(folder) as (address, token):
        put_secret(address, token, first)
        (folder / "vault-token").write_text(token)
        (folder / "policy.yaml").write_text(POLICY)
        store = f'vault:\n  addresses: ["{address}"]\n  auth: {{method: token_file, file: vault-token}}'
        (folder / "ostiary.yaml").write_text(settings(upstream, store))
        ostiary(folder, "check", "--live")
        with running(folder) as ready:
            proxy = ready["listeners"][0]["address"]
            show(folder, upstream, first, curl(folder, proxy, shown=True))
            print("\n$ bao kv put secret/egress/demo api_key=(a new one)")
            put_secret(address, token, second)
            began = time.monotonic()
            while not got(upstream, second):
                if time.monotonic() - began > 10:
                    raise DemoFailed("the new version did not arrive within ttl")
                curl(folder, proxy, shown=False)
                time.sleep(0.1)
            print(
                f"The new key is in use after {time.monotonic() - began:.1f} s (ttl 2s): no restart, no failed request."
            )
            print("\nIt held: rotated in Vault, nothing else changed.")
            keep_serving(folder, proxy, ready)


@contextlib.contextmanager
def openbao(folder: Path) -> Iterator[tuple[str, str]]:
    """A real OpenBao in development mode on a free loopback port."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    binary = shutil.which("bao", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if binary is None:
        raise DemoFailed("the bao binary is missing: run make setup")
    token = secrets.token_hex(16)
    with (folder / "openbao.log").open("wb") as log:
        server = subprocess.Popen(
            [binary, "server", "-dev", f"-dev-root-token-id={token}", f"-dev-listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=log, env={**clean(), "HOME": str(folder)},
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(300):
                with contextlib.suppress(OSError):
                    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                        f"{address}/v1/sys/health", timeout=1
                    )
                    break
                time.sleep(0.05)
            print(f"$ bao server -dev   ({address})")
            yield address, token
        finally:
            server.terminate()
            server.wait(10)


def put_secret(address: str, token: str, key: str) -> None:
    request = urllib.request.Request(
        f"{address}/v1/secret/data/egress/demo",
        json.dumps({"data": {"api_key": key}}).encode(),
        {"X-Vault-Token": token, "Content-Type": "application/json"},
        method="POST",
    )
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5).close()


def keep_serving(folder: Path, proxy: str, ready: dict[str, Any]) -> None:
    """With a terminal: goes on until Ctrl-C, and says what to try."""
    if os.environ.get("ONCE") or not sys.stdin.isatty():
        return
    here = os.path.relpath(folder)
    print(f"""
Still serving. In another terminal, try:
    cd {here}
    curl --proxy http://{proxy} --cacert ca/ca.pem https://{HOST}/v1/hello
    curl --proxy http://{proxy} --cacert ca/ca.pem https://{HOST}/admin      # path_denied
    curl --proxy http://{proxy} https://example.com/                         # route_denied
    tail -f audit.jsonl
    curl http://{ready.get("admin", "")}/metrics
    $EDITOR policy.yaml && kill -HUP {ready["pid"]}                           # reload
Ctrl-C ends it.""")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vault", action="store_true", help="keep the secret in a real OpenBao")
    options = parser.parse_args()
    folder = ROOT / ".cache" / ("demo-vault" if options.vault else "demo")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if shutil.which("curl") is None:
        print("the demonstration needs curl", file=sys.stderr)
        return 1
    try:
        (vault if options.vault else embedded)(folder)
    except DemoFailed as error:
        print(f"\nIt did not hold: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
