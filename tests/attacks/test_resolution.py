"""G22-G24, G41, G60: what names resolve to, in the real process with a resolver that answers as a script says and notes what it was
asked. Vault, the admin listener and every address of our own listeners are no destinations."""

from __future__ import annotations

import http.server
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.harness.canaries import canary
from tests.harness.client import Raw, get, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.scripted_vault import scripted, send
from tests.harness.upstream import Upstream

ROOT = Path(__file__).parents[2]
POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  api: {match: {host: [HOSTS], port: PORT}, allow: billing, secret: {path: secret/egress/api, field: key}, inject: {bearer: "{secret}"}}
"""
RESOLVER = """
import json, socket, uvloop

answers, turns_taken = json.load(open("answers.json")), {}

class Loop(uvloop.Loop):
    async def getaddrinfo(self, host, port, **kwargs):
        if not host.endswith(".test"):
            return await super().getaddrinfo(host, port, **kwargs)
        with open("asked", "a") as handle:
            handle.write(host + "\\n")
        turns = answers.get(host)
        if turns is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        turn = turns_taken[host] = turns_taken.get(host, -1) + 1
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port or 0))
            for one in turns[min(turn, len(turns) - 1)]
        ]

uvloop.new_event_loop = Loop
"""


def start(
    ostiary: Callable[..., Ostiary], answers: dict[str, list[list[str]]], port: int, egress: str, **given: Any
) -> Ostiary:
    """The real process, with the loop's resolver replaced before anything of ours is imported."""
    hosts, token = ", ".join(given.pop("hosts", ["api.test"])), given.pop("token", False)
    if not token:
        given["secrets"] = {"secret/egress/api": {"key": canary()}}
    proxy = ostiary(
        POLICY.replace("HOSTS", hosts).replace("PORT", str(port)),
        start=False,
        egress=egress,
        **given,
    )
    if token:
        (proxy.folder / "vault-token").write_text(canary("token"))
    extra = proxy.folder / "extra"
    extra.mkdir()
    (extra / "sitecustomize.py").write_text(RESOLVER)
    (proxy.folder / "answers.json").write_text(json.dumps(answers))
    proxy.environ = {"PYTHONPATH": f"{extra}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    return proxy.run()


def asked(proxy: Ostiary) -> list[str]:
    path = proxy.folder / "asked"
    return path.read_text().split() if path.exists() else []


INSIDE = (
    ["127.0.0.1"],
    ["10.0.0.1"],
    ["172.16.0.1"],
    ["192.168.1.1"],
    ["169.254.169.254"],
    ["100.64.0.1"],
    ["0.0.0.0"],
    ["255.255.255.255"],
    ["224.0.0.1"],
    ["198.18.0.1"],
    ["::1"],
    ["::"],
    ["fe80::1"],
    ["fd00:ec2::254"],
    ["fec0::1"],
    ["ff02::1"],
    ["::ffff:169.254.169.254"],
    ["::ffff:10.0.0.1"],
    ["::127.0.0.1"],
    ["64:ff9b::a9fe:a9fe"],
    ["64:ff9b:1::a00:1"],
    ["2002:a9fe:a9fe::1"],
    ["2001:0:4136:e378:8000:63bf:5601:5601"],
    ["93.184.215.14", "127.0.0.1"],
    ["2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:127.0.0.1"],
)


def test_g22_g23_names_that_resolve_inside(ostiary: Callable[..., Ostiary]) -> None:
    """One inside address among many is enough."""
    names = {f"n{index}.test": [addresses] for index, addresses in enumerate(INSIDE)}
    proxy = start(ostiary, names, 443, "egress: {}", hosts=list(names))
    for index, addresses in enumerate(INSIDE):
        answer = get(proxy.address("sidecar"), proxy.ca, authority=f"n{index}.test:443")
        assert (answer.status, answer.code) == (403, "egress_denied"), addresses
    assert asked(proxy) == list(names)
    assert not proxy.audit("credential.opened")
    assert {record["code"] for record in proxy.wait_audit("request.refused", len(INSIDE))} == {"egress_denied"}


def test_g22_what_was_vetted_is_what_is_dialled(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], pki: Pki
) -> None:
    """The name changes its mind after the check: nobody asks it again for this request, and the next one is refused."""
    api = upstream()
    answers = {"api.test": [["127.0.0.1"], ["127.0.0.2"]]}
    egress = f'egress: {{allow: ["127.0.0.1/32"], ca_file: {pki.ca_file}}}'
    proxy = start(ostiary, answers, api.port, egress)
    authority = f"api.test:{api.port}"
    assert get(proxy.address("sidecar"), proxy.ca, authority=authority).status == 200
    assert (asked(proxy), len(api.requests)) == (["api.test"], 1)
    codes: list[str | None] = []
    for _ in range(60):  # past the few seconds for which an answer is remembered
        codes.append(get(proxy.address("sidecar"), proxy.ca, authority=authority).code)
        if codes[-1] is not None:
            break
        time.sleep(0.2)
    assert codes[-1] == "egress_denied"
    assert len(api.requests) == len(codes)


def test_g24_a_denied_host_is_not_resolved(ostiary: Callable[..., Ostiary]) -> None:
    proxy = start(ostiary, {"denied.test": [["127.0.0.1"]], "api.test": [["127.0.0.1"]]}, 443, "egress: {}")
    with Raw(proxy.address("sidecar")) as raw:
        assert raw.connect("denied.test:443").code == "route_denied"
        assert raw.request("GET http://denied.test/ HTTP/1.1\r\nHost: denied.test\r\n\r\n").code == "route_denied"
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request("GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n").code == "authority_mismatch"
    assert asked(proxy) == []
    assert get(proxy.address("sidecar"), proxy.ca).code == "egress_denied"
    assert asked(proxy) == ["api.test"]


def test_g41_g60_vault_by_every_name(ostiary: Callable[..., Ostiary]) -> None:
    """Vault is configured by name, and asked for by that name, by another one, and by address; all of the network is allowed."""

    def vault(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, {"data": {"ttl": 0}})

    with scripted(vault) as (address, seen):
        port = int(address.rpartition(":")[2])
        proxy = start(
            ostiary,
            {"alias.test": [["127.0.0.1"]]},
            port,
            'egress: {allow: ["0.0.0.0/0", "::/0"]}',
            hosts=["localhost", "alias.test", "127.0.0.1", '"::ffff:127.0.0.1"'],
            store=f'vault:\n  addresses: ["http://localhost:{port}"]\n  auth: {{method: token_file, file: vault-token}}',
            token=True,
        )
        before = len(seen)
        for host in ("localhost", "alias.test", "127.0.0.1", "[::ffff:127.0.0.1]"):
            with tunnel(proxy.address("sidecar"), None, f"{host}:{port}", sni=None) as raw:
                answer = raw.request(f"GET /v1/sys/health HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n")
            assert (answer.status, answer.code) == (403, "egress_denied"), host
        assert not [path for path, _ in seen[before:] if "health" in path]
    assert not proxy.audit("credential.opened")


def test_g41_the_admin_listener_by_every_address(ostiary: Callable[..., Ostiary]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hosts = ["127.0.0.1", '"::ffff:127.0.0.1"', "alias.test"]
    proxy = start(ostiary, {"alias.test": [["127.0.0.1"]]}, port, 'egress: {allow: ["0.0.0.0/0", "::/0"]}', hosts=hosts)
    assert proxy.stop() == 0
    proxy.process = None
    path = proxy.folder / "ostiary.yaml"
    path.write_text(path.read_text().replace('admin: {bind: "127.0.0.1:0"}', f'admin: {{bind: "127.0.0.1:{port}"}}'))
    proxy.run()
    for host in ("127.0.0.1", "[::ffff:127.0.0.1]", "alias.test"):
        name = host.strip("[]")
        with tunnel(proxy.address("sidecar"), None, f"{host}:{port}", sni=None) as raw:
            answer = raw.request(f"GET /metrics HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n")
        assert (answer.status, answer.code) == (403, "egress_denied"), name
    assert not proxy.audit("credential.opened")
