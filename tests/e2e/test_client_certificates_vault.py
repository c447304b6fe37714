"""Client certificates from a real Vault: rotated under load, issued, renewed and refused."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.test_client_certificates import HEAD, cert, fields, named, route, send
from tests.harness.client import get, tunnel
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.ostiary_process import Ostiary, command
from tests.harness.pki import Pki
from tests.harness.upstream import Upstream, serving

MAY = """
path "secret/data/egress/*" { capabilities = ["read"] }
path "secret/subkeys/egress/*" { capabilities = ["read"] }
path "pki/sign/egress" { capabilities = ["update"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "sys/capabilities-self" { capabilities = ["update"] }
"""


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with openbao_server(tmp_path_factory.mktemp("bao")) as server:
        server.api("POST", "sys/mounts/pki", {"type": "pki"})
        root = {"common_name": "Vault CA", "ttl": "24h", "key_type": "ec", "key_bits": 256}
        server.api("POST", "pki/root/generate/internal", root)
        role = {"ttl": "1h", "allow_any_name": True, "enforce_hostnames": False, "key_type": "ec", "client_flag": True}
        server.api(
            "POST",
            "pki/roles/egress",
            {**role, "allow_any_name": False, "allowed_domains": "billing", "allow_bare_domains": True},
        )
        yield server


def start(ostiary: Callable[..., Ostiary], bao: OpenBao, policy: str, port: int) -> Ostiary:
    store = f'vault:\n  addresses: ["{bao.address}"]\n  auth: {{method: token_file, file: vault-token}}'
    proxy = ostiary(policy, start=False, upstreams={"api.test:443": port}, store=store)
    bao.policy("shows", MAY)
    token = bao.new_token("shows")
    (proxy.folder / "vault-token").write_text(token)
    proxy.canaries.append(token)
    return proxy.run()


def test_a_certificate_is_rotated_under_load(
    ostiary: Callable[..., Ostiary], pki: Pki, bao: OpenBao, engine: str
) -> None:
    """No request fails; after the change none shows the old one, and no connection shows two."""
    pairs = [pki.client(f"{engine}-{number}") for number in range(3)]
    bao.put(f"egress/{engine}", **fields(pairs[0]))
    with serving(Upstream(pki.asking("api.test"), named)) as api:
        proxy = start(ostiary, bao, HEAD + route("one", "api.test", "one", cert(engine)), api.port)
        proxy.canaries += [line for pair in pairs for line in pair[1].splitlines()[1:-1]]
        ended, failures, counts = threading.Event(), list[object](), [0, 0, 0]

        def load(place: int) -> None:
            with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
                while not ended.is_set():
                    status, body = send(raw, "/one/a")
                    if status != 200:
                        failures.append((status, body))
                    counts[place] += 1

        def more() -> None:
            """Every caller has sent at least three further requests."""
            before, deadline = list(counts), time.monotonic() + 20
            while any(now < then + 3 for now, then in zip(counts, before, strict=True)):
                assert time.monotonic() < deadline
                time.sleep(0.01)

        threads = [threading.Thread(target=load, args=(place,)) for place in range(3)]
        for thread in threads:
            thread.start()
        try:
            more()
            for pair in pairs[1:]:
                bao.put(f"egress/{engine}", **fields(pair))
                more()
        finally:
            ended.set()
            for thread in threads:
                thread.join(20)
        assert not failures
        assert get(proxy.address("sidecar"), proxy.ca, "/one/a").body == f"{engine}-2".encode()
        # Before it was there no request has shown a certificate, behind it each shows the newest.
        shown = [str(seen.client) for seen in api.requests]
        assert set(shown) == {f"{engine}-{number}" for number in range(3)}
        by_connection: dict[int, set[str | None]] = {}
        for seen in api.requests:
            by_connection.setdefault(seen.connection, set()).add(seen.client)
        assert all(len(who) == 1 for who in by_connection.values())
        opened = proxy.wait_audit("credential.opened", len(shown))
        assert {record["secret_version"] for record in opened} == {"1", "2", "3"}
        assert len(proxy.wait_audit("secret.version_changed", 2)) == 2
        assert len(proxy.wait_audit("secret.last_use_of_version", 2)) == 2


def test_certificates_that_vault_issues(
    ostiary: Callable[..., Ostiary], pki: Pki, bao: OpenBao, tmp_path: Path
) -> None:
    roots = tmp_path / "vault-ca.pem"
    roots.write_text(bao.api("GET", "pki/cert/ca")["data"]["certificate"])
    clients = Pki(tmp_path, pki.key, pki.cert)
    (tmp_path / "upstream-ca.pem").write_bytes(roots.read_bytes())

    def issued(role: str, name: str) -> str:
        return f"{{client_cert: {{pki: {{role: {role}, common_name: {name}}}}}}}"

    policy = HEAD + route("long", "api.test", "long", issued("egress", "billing"))
    policy += route("other", "api.test", "other", issued("egress", "somebody-else"))
    policy += route("closed", "api.test", "closed", issued("closed", "billing"))
    with serving(Upstream(pki.asking("api.test", clients=clients), named)) as api:
        proxy = start(ostiary, bao, policy, api.port)
        address = proxy.address("sidecar")
        with tunnel(address, proxy.ca) as raw:
            assert [send(raw, "/long/a") for _ in range(3)] == [(200, b"billing")] * 3
            assert api.connections == 1
        dialled = api.connections
        for path in ("/other/a", "/closed/a"):
            answer = get(address, proxy.ca, path)
            assert (answer.status, answer.code) == (502, "secret_denied"), answer.body
        assert api.connections == dialled
        opened = [record for record in proxy.audit("credential.opened") if record["route"] == "long"]
        assert {record["secret"] for record in opened} == {"pki/sign/egress#billing"}
        assert [record["cache"] for record in opened] == ["miss", "hit", "hit"]
        serial = opened[0]["secret_version"]
        held = bao.api("GET", f"pki/cert/{'-'.join(f'{serial:0>40}'[at : at + 2] for at in range(0, 40, 2))}")
        assert held["data"]["certificate"].startswith("-----BEGIN CERTIFICATE")
        metrics = proxy.get("/metrics")[1].decode()
        assert 'secret="pki/sign/egress#billing"' in metrics
        told = command("vault", "policy", "--config", "ostiary.yaml", cwd=proxy.folder).stdout.decode()
        assert 'path "pki/sign/egress" { capabilities = ["update"] }' in told
        live = command("check", "--live", "--json", "--config", "ostiary.yaml", cwd=proxy.folder)
        found = json.loads(live.stdout)
        assert live.returncode == 78
        assert found["faults"][0] == "the Vault token may not update pki/sign/closed"
        assert b"PRIVATE KEY" not in b"".join(path.read_bytes() for path in proxy.folder.rglob("*.jsonl"))
