"""Reverse, TLS and Unix listeners of several workers: each worker serves each, by the same rules, with the same certificate."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509

from ostiary.cli.key import key_hash, new_key
from tests.e2e.test_workers import Crew, until
from tests.harness.canaries import canary
from tests.harness.client import Answer, Raw, tunnel
from tests.harness.http2 import Http2
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.ports import free_port
from tests.harness.upstream import Upstream

KEY = new_key()
POLICY = f"""
workloads:
  app: {{proofs: {{any: true}}}}
  keyed: {{proofs: {{key_hash: "sha256:{key_hash(KEY)}"}}}}
routes:
  api:
    match: {{host: api.test, paths: ["/v1/**"]}}
    listener: [local, keyed, socket, secure]
    allow: [app, keyed]
    secret: {{path: secret/egress/api, field: key}}
    inject: {{bearer: "{{secret}}"}}
  itself: {{match: {{host: [127.0.0.1, localhost, 0.0.0.0, "::ffff:127.0.0.1"], port: PORT}}, allow: app}}
  round: {{match: {{paths: /round}}, listener: local, upstream: "https://localhost:PORT", allow: app}}
"""
LISTEN = """[{name: sidecar, bind: "127.0.0.1:0", workload: app}, {name: local, bind: "127.0.0.1:0", mode: reverse, workload: app},
  {name: keyed, bind: "127.0.0.1:0", mode: reverse, hosts: [gateway.test], tls: {cert: tls.pem, key: tls.pem}},
  {name: secure, bind: "127.0.0.1:PORT", mode: reverse, workload: app, hosts: [gateway.test], tls: {cert: tls.pem, key: tls.pem}},
  {name: socket, bind: "unix:reverse.sock", mode: reverse, workload: app}]"""
CLEAR, ALL = ("local", "socket"), ("local", "socket", "secure")
EACH = 24
"""Asked so often, one of two workers is left out once in eight million times."""


class Way:
    """One process, and how its listeners are asked."""

    def __init__(self, proxy: Ostiary, pki: Pki) -> None:
        self.proxy = proxy
        self.pki = pki
        self.asked = 0

    @contextlib.contextmanager
    def open(self, name: str, alpn: tuple[str, ...] = ("http/1.1",)) -> Iterator[Raw]:
        with Raw(self.proxy.address(name)) as raw:
            if name not in CLEAR:
                raw.tls(self.pki.ca_file, "gateway.test", alpn)
            yield raw

    def ask(self, name: str, *fields: str, path: str = "") -> Answer:
        self.asked += not path
        host = self.proxy.address(name) if name == "local" else "gateway.test"
        head = (f"GET {path or f'/v1/{name}/{self.asked}'} HTTP/1.1", f"Host: {host}", *fields, "", "")
        with self.open(name) as raw:
            return raw.request("\r\n".join(head))

    def serials(self, name: str) -> set[int]:
        found = set()
        for _ in range(EACH):
            with self.open(name) as raw:
                assert isinstance(raw.sock, ssl.SSLSocket)
                found.add(x509.load_der_x509_certificate(raw.sock.getpeercert(binary_form=True) or b"").serial_number)
        return found


def serial_of(file: Path) -> int:
    return x509.load_pem_x509_certificates(file.read_bytes())[0].serial_number


def test_p2_all_listeners_of_all_workers(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], pki: Pki
) -> None:
    api, port = upstream(), str(free_port())
    before, after, last = (pki.certificate("gateway.test") for _ in range(3))
    proxy = ostiary(
        POLICY.replace("PORT", port),
        start=False,
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/api": {"key": canary()}},
        listen=LISTEN.replace("PORT", port),
        egress=f'egress: {{allow: ["0.0.0.0/0", "::/0"], resolve: {{"api.test:443": "127.0.0.1:{api.port}"}}, ca_file: {pki.ca_file}}}',
        settings="workers: 2\nlimits: {header_timeout: 2s, connections_per_source: 40}\n",
        patience_s=60,
    )
    proxy.canaries.append(KEY)
    served = proxy.folder / "tls.pem"
    served.write_bytes(before.read_bytes())
    proxy.run()
    both, way = Crew(proxy), Way(proxy, pki)
    until(lambda: both.pids(0) and both.pids(1), "the log has come")
    entries = {entry["name"]: entry for entry in proxy.ready["listeners"]}
    assert (entries["secure"]["mode"], entries["secure"]["tls"], proxy.ready["workers"]) == ("reverse", True, 2)

    def listeners(number: int) -> set[str]:
        return {str(record["listener"]) for record in both.records(number, "credential.opened")}

    # Each worker serves each listener.
    for _ in range(EACH):
        for name in ALL:
            assert way.ask(name).status == 200
    assert listeners(0) == listeners(1) == set(ALL)
    with way.open("secure", ("h2",)) as raw:
        client = Http2(raw)
        assert client.answer(client.send("GET", "/v1/h2", authority="gateway.test")).headers[":status"] == "200"
    asked = way.asked + 1

    # And each by the same rules, whichever the kernel chooses.
    for _ in range(EACH // 2):
        assert way.ask("keyed", path="/v1/no").code == "proof_required"
        assert way.ask("keyed", f"Proxy-Authorization: Bearer {KEY}", path="/v1/no").code == "proof_required"
        assert way.ask("secure", "Origin: https://evil.test", path="/v1/no").code == "access_denied"
        with Raw(proxy.address("secure")) as raw:
            raw.send(b"GET /v1/no HTTP/1.1\r\nHost: gateway.test\r\n\r\n")  # cleartext
            assert raw.closed()
        assert way.ask("local", path="/round").code == "egress_denied"
        for host in ("127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"):
            with tunnel(proxy.address("sidecar"), proxy.ca, f"{host}:{port}", sni=None) as raw:
                assert raw.request(f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n").code == "egress_denied"
    assert way.ask("keyed", f"X-Ostiary-Authorization: Bearer {KEY}", path="/v1/keyed").status == 200
    asked += 1
    assert len(api.requests) == asked
    assert not [seen for seen in api.requests if "ostiary" in repr(seen.headers).lower()]
    assert KEY.encode() not in api.raw

    # What both counted is added up.
    def counted(name: str) -> float:
        text = proxy.get("/metrics")[1].decode()
        return sum(float(found) for found in re.findall(rf"^{name} (\S+)$", text, re.MULTILINE))

    until(
        lambda: counted(r'ostiary_requests_total\{outcome="ok",route="api",workload="(?:app|keyed)"\}') == asked, "all"
    )
    with contextlib.ExitStack() as held:
        # Handshakes that do not go on are connections of whichever worker has them, and none for ever.
        for number in range(6):
            raw = held.enter_context(way.open("secure"))
            assert raw.request(f"GET /v1/kept/{number} HTTP/1.1\r\nHost: gateway.test\r\n\r\n").status == 200
            asked += 1
        silent = [held.enter_context(Raw(proxy.address("secure"))) for _ in range(8)]
        assert all(raw.closed() for raw in silent)
        gauge = r"ostiary_connections\{[^}]*downstream[^}]*\}"
        until(lambda: counted(gauge) == 6, "those that are open, of both workers")
    until(lambda: counted(gauge) == 0, "no slot is kept")

    # A certificate is changed in all of them by one signal, and by none where it cannot serve.
    assert way.serials("secure") == way.serials("keyed") == {serial_of(before)}
    served.write_bytes(after.read_bytes())
    proxy.reload()
    assert way.serials("secure") == way.serials("keyed") == {serial_of(after)}
    served.write_bytes(last.read_bytes()[:-200])
    proxy.reload()
    assert way.serials("secure") == {serial_of(after)}

    # Nothing that a worker was told on its way is there to be read.
    for number in (0, 1):
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{both.pids(number)[-1]}/{name}").read_bytes()
            assert not [value for value in proxy.canaries if value.encode() in shown]
    # Keys of a terminal reach every process there; of a worker they make nothing.
    pids = [both.pids(0)[-1], both.pids(1)[-1]]
    for pid in pids:
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGINT)
    # One falls. Its sockets are served by the other, TLS and all, until the next one serves with what is on the disk.
    served.write_bytes(last.read_bytes())
    proxy.reload()
    os.kill(pids[1], signal.SIGKILL)
    while len(both.pids(1)) < 2:
        for name in ALL:
            assert way.ask(name).status == 200
            asked += 1
    assert way.serials("secure") == {serial_of(last)}
    assert both.pids(0) == pids[:1]
    for name in ALL:
        assert way.ask(name).status == 200
        asked += 1
    assert len(api.requests) == asked

    assert proxy.stop() == 0
    assert not (proxy.folder / "reverse.sock").exists()
    for number in (0, 1):
        opened = [record["id"] for record in both.records(number, "credential.opened")]
        closed = [record["id"] for record in both.records(number, "credential.closed")]
        assert sorted(opened) == sorted(closed)
    outcomes = [record["outcome"] for number in (0, 1) for record in both.records(number, "credential.closed")]
    assert outcomes.count("ok") == len(outcomes) == asked, json.dumps(outcomes)
