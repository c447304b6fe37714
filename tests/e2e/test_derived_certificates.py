"""Token endpoints that want a client certificate (RFC 8705), in the real process: read from the store or issued by a Vault."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.test_client_certificates import fields
from tests.e2e.test_client_certificates_vault import MAY
from tests.e2e.test_derived import asked, flights, until
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.token_server import TokenServer, new_key
from tests.harness.upstream import Upstream, serving

CERT = "{path: secret/egress/NAME, cert: cert_pem, key: key_pem, ttl: 0}"


def credential(name: str, client: str, *, url: str = "https://login.test/token", secret: str = "") -> str:
    return (
        f"  {name}:\n{secret}    derive:\n"
        f'      client_credentials: {{token_url: "{url}", client_id: {client}, {{AUTH}}}}\n'
    )


def by_certificate(name: str, client: str, *, url: str = "https://login.test/token") -> str:
    return credential(name, client, url=url).replace("{AUTH}", f"auth: mtls, client_cert: {CERT.replace('NAME', name)}")


def route(name: str, more: str = "") -> str:
    return (
        f'  {name}:\n    match: {{host: api.test, paths: "/{name}/**"}}\n    allow: billing\n'
        f'    credential: {name}\n    inject: {{bearer: "{{token}}"}}\n{more}'
    )


def test_certificates_that_are_stored(ostiary: Callable[..., Ostiary], pki: Pki, tmp_path: Path) -> None:
    other = Pki.make(tmp_path / "other")
    pairs = {
        "good": pki.client("billing"),
        "next": pki.client("billing"),
        "signed": pki.client("partner"),
        "wrong": pki.client("someone"),
        "stranger": other.client("billing"),
        "expired": pki.client("billing", expired=True),
        "own": pki.client("billing"),
    }
    key, pem = new_key("ec")
    server = TokenServer(
        secrets={"plain": "plain-secret-81"},
        certificates={"billing-app": "billing"},
        keys={"partner-app": (key.public_key(), "ES256")},
    )
    # Asked for, not demanded: what is missing must be missed by the token.
    optional = pki.asking("api.test")
    optional.verify_mode = ssl.CERT_OPTIONAL
    policy = "workloads: {billing: {proofs: {any: true}}}\ncredentials:\n"
    policy += "".join(by_certificate(name, "billing-app") for name in ("good", "wrong", "stranger", "expired", "gone"))
    policy += by_certificate("own", "billing-app", url="https://own.test/token")
    policy += credential(
        "signed", "partner-app", secret="    secret: {path: secret/egress/signed-key, field: private_key}\n"
    ).replace("{AUTH}", f'key: "{{secret}}", algorithm: ES256, client_cert: {CERT.replace("NAME", "signed")}')
    policy += credential("plain", "plain", secret="    secret: {path: secret/egress/plain, field: key}\n").replace(
        "{AUTH}", 'client_secret: "{secret}"'
    )
    policy += "routes:\n" + route("good", f"    tls: {{client_cert: {CERT.replace('NAME', 'good')}}}\n")
    policy += "".join(route(name) for name in ("wrong", "stranger", "expired", "gone", "plain"))
    policy += route("signed", f"    tls: {{client_cert: {CERT.replace('NAME', 'signed')}}}\n")
    policy += route("own", "    tls: {ca_file: roots.pem}\n")
    with (
        serving(Upstream(pki.asking("login.test"), server)) as login,
        serving(Upstream(other.context("own.test"), server)) as own,
        serving(Upstream(optional, server.api)) as api,
    ):
        proxy = ostiary(
            policy,
            start=False,
            upstreams={"login.test:443": login.port, "api.test:443": api.port, "own.test:443": own.port},
            secrets={
                **{f"secret/egress/{name}": fields(pair) for name, pair in pairs.items()},
                "secret/egress/signed-key": {"private_key": pem},
                "secret/egress/plain": {"key": "plain-secret-81"},
            },
        )
        roots = proxy.folder / "roots.pem"
        roots.write_bytes(pki.ca_file.read_bytes())
        proxy.run()
        proxy.canaries += [line for pair in pairs.values() for line in pair[1].splitlines()[1:-1]]
        # --- the certificate is the proof: the form has the client's name and nothing else, no header
        answer = asked(proxy, "/good/x")
        assert answer.status == 200, (answer.body, server.refused)
        (seen,) = login.requests
        assert (seen.client, seen.get("Authorization"), server.forms) == (
            "billing",
            None,
            [{"client_id": "billing-app"}],
        )
        # --- the token is bound to it, and the route shows the same one: alone it is good for nothing
        assert server.bound == {server.given[0]: "billing"}
        assert (api.requests[-1].client, api.requests[-1].get("Authorization")) == (
            "billing",
            f"Bearer {server.given[0]}",
        )
        proxy.canaries.append(server.given[0])
        assert server.given[0].encode() not in answer.body
        # --- beside an assertion it is shown too
        assert asked(proxy, "/signed/x").status == 200, server.refused
        assert login.requests[-1].client == "partner"
        assert "client_assertion" in server.forms[-1]
        assert "client_secret" not in server.forms[-1]
        # --- a flight is a use of the certificate, and so is each request that has its token
        flight = next(one for one in flights(proxy) if one["secret"] == "secret/egress/good")
        assert (flight["secret_version"], flight["host"], flight["outcome"]) == ("2", "login.test", "ok")
        told = {
            (one["secret"], one["secret_version"])
            for one in proxy.audit("credential.opened")
            if one.get("route") == "good"
        }
        assert told == {("secret/egress/good", "2")}
        # --- not its own, of another CA, run out, none: refused, and what cannot be shown is not dialled for
        assert (asked(proxy, "/wrong/x").status, asked(proxy, "/wrong/x").code) == (502, "secret_denied")
        assert server.refused == ["invalid_client: certificate of someone"]
        requests = len(login.requests)
        for path in ("/stranger/x", "/plain/x"):
            answer = asked(proxy, path)
            assert (answer.status, answer.code) == (502, "secret_denied"), answer.body
            assert b"certificate" in answer.body
        assert len(login.requests) == requests
        dialled = login.connections
        assert (asked(proxy, "/expired/x").code, asked(proxy, "/gone/x").code) == ("secret_malformed", "secret_missing")
        assert login.connections == dialled
        # --- rotated, one field after the other: what does not belong together is not shown, the old token serves
        given = len(server.given)
        proxy.set_secret("secret/egress/good", "cert_pem", pairs["next"][0])
        assert asked(proxy, "/good/x").code == "secret_malformed"  # the route's own
        until(
            lambda: any(
                one.get("code") == "secret_malformed" for one in flights(proxy) if one["secret"].endswith("good")
            )
        )
        assert (len(server.given), login.connections) == (given, dialled)
        proxy.set_secret("secret/egress/good", "key_pem", pairs["next"][1])
        until(lambda: asked(proxy, "/good/x").status == 200)
        until(lambda: len(server.given) == given + 1)
        proxy.canaries += server.given
        # --- roots follow a reload, under the same name: those of before prove nothing
        answer = asked(proxy, "/own/x")
        assert (answer.status, answer.code) == (503, "secret_unavailable"), answer.body
        assert b"by TLS" in answer.body
        roots.write_bytes(other.ca_file.read_bytes() + pki.ca_file.read_bytes())
        proxy.reload(policy)
        # It asks for no certificate, so the client has not proven itself.
        until(lambda: asked(proxy, "/own/x").code == "secret_denied")
        assert own.requests
        assert len(proxy.audit("credential.opened")) == len(proxy.wait_audit("credential.closed"))


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with openbao_server(tmp_path_factory.mktemp("bao")) as server:
        server.api("POST", "sys/mounts/pki", {"type": "pki"})
        root = {"common_name": "Vault CA", "ttl": "24h", "key_type": "ec", "key_bits": 256}
        server.api("POST", "pki/root/generate/internal", root)
        names = {"allowed_domains": "billing", "allow_bare_domains": True, "enforce_hostnames": False}
        server.api("POST", "pki/roles/egress", {"ttl": "1h", "key_type": "ec", "client_flag": True, **names})
        yield server


def test_certificates_that_vault_issues(
    ostiary: Callable[..., Ostiary], pki: Pki, bao: OpenBao, tmp_path: Path
) -> None:
    """One certificate serves the token endpoint and the upstream, so that a token that is bound to it is good."""
    (tmp_path / "upstream-ca.pem").write_text(bao.api("GET", "pki/cert/ca")["data"]["certificate"])
    clients = Pki(tmp_path, pki.key, pki.cert)
    issued = "{pki: {role: egress, common_name: billing}}"
    policy = "workloads: {billing: {proofs: {any: true}}}\ncredentials:\n"
    policy += credential("good", "billing-app").replace("{AUTH}", f"client_cert: {issued}")
    policy += credential("closed", "billing-app").replace(
        "{AUTH}", f"client_cert: {issued.replace('egress', 'closed')}"
    )
    policy += "routes:\n" + route("good", f"    tls: {{client_cert: {issued}}}\n") + route("closed")
    server = TokenServer(certificates={"billing-app": "billing"})
    with (
        serving(Upstream(pki.asking("login.test", clients=clients), server)) as login,
        serving(Upstream(pki.asking("api.test", clients=clients), server.api)) as api,
    ):
        store = f'vault:\n  addresses: ["{bao.address}"]\n  auth: {{method: token_file, file: vault-token}}'
        proxy = ostiary(
            policy, start=False, upstreams={"login.test:443": login.port, "api.test:443": api.port}, store=store
        )
        bao.policy("derives", MAY)
        (proxy.folder / "vault-token").write_text(bao.new_token("derives"))
        proxy.run()
        for _ in range(3):
            assert asked(proxy, "/good/x").status == 200, server.refused
        assert (len(server.given), {seen.client for seen in api.requests}) == (1, {"billing"})
        proxy.canaries.append(server.given[0])
        (flight,) = flights(proxy)
        used = [one for one in proxy.audit("credential.opened") if one.get("route") == "good"]
        assert {(one["secret"], one["secret_version"]) for one in used} == {
            (flight["secret"], flight["secret_version"])
        }
        assert flight["secret"] == "pki/sign/egress#billing"
        assert asked(proxy, "/closed/x").code == "secret_denied"
        assert len(login.requests) == 1
