"""A key that stays in Vault: what it signs, what the audit says of it, and that nothing leaves where it cannot sign."""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.harness.canaries import canary
from tests.harness.client import Raw, get
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.ostiary_process import Ostiary, command
from tests.harness.senders import now_s
from tests.harness.upstream import Seen, Upstream

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  profile:
    match: {host: api.test, paths: "/v1/**"}
    allow: billing
    sign: {hmac: {transit: {key: egress-mac}, headers: [content-type], host: true}}
  streams:
    match: {host: api.test, paths: "/streams/**"}
    allow: billing
    sign: {hmac: {transit: {key: egress-mac}, template: "{method} {target} {timestamp}"}}
  template:
    match: {host: api.test, paths: "/template/**"}
    allow: billing
    secret: {path: secret/egress/api, field: id}
    inject: {header: X-Key-Id, value: "{secret}"}
    sign:
      - {hmac: {transit: {key: egress-mac}, template: "{timestamp}{header.x-key-id}{body}", algorithm: sha512, encoding: base64}}
      - {http_message: {key_id: k, algorithm: ed25519, transit: {key: egress-ed}, components: ["@method", "@target-uri", "content-digest", x-signature]}}
  pinned:
    match: {host: api.test, paths: /pinned}
    allow: billing
    sign: {hmac: {transit: {key: egress-mac, version: 1}}}
  denied:
    match: {host: api.test, paths: /denied}
    allow: billing
    sign: {hmac: {transit: {key: other}}}
  missing:
    match: {host: api.test, paths: /missing}
    allow: billing
    sign: {hmac: {transit: {key: egress-never}}}
"""
LEAST = """
path "transit/hmac/egress-*" { capabilities = ["update"] }
path "transit/sign/egress-*" { capabilities = ["update"] }
path "secret/data/egress/*" { capabilities = ["read"] }
path "sys/internal/ui/mounts/secret" { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
"""


@pytest.fixture
def bao(tmp_path: Path) -> Iterator[OpenBao]:
    with openbao_server(tmp_path / "bao", sealable=True) as server:
        server.api("POST", "sys/mounts/transit", {"type": "transit"})
        server.api("POST", "transit/keys/egress-mac", {"type": "hmac", "key_size": 32})
        server.api("POST", "transit/keys/egress-ed", {"type": "ed25519"})
        server.policy("ostiary", LEAST)
        yield server


def verified(bao: OpenBao, text: str, digest: bytes, algorithm: str = "sha2-256", version: int = 1) -> bool:
    """Whether Vault itself knows the HMAC as one of its key."""
    body = {
        "input": base64.b64encode(text.encode()).decode(),
        "hmac": f"vault:v{version}:" + base64.b64encode(digest).decode(),
    }
    return bool(bao.api("POST", f"transit/verify/egress-mac/{algorithm}", body)["data"]["valid"])


def profile(seen: Seen) -> str:
    return "\n".join([
        seen.method, seen.target, "host:api.test", f"content-type:{seen.get('content-type') or ''}",
        f"x-timestamp:{seen.get('x-timestamp')}", seen.body_sha256,
    ])  # fmt: skip


def test_keys_that_stay_in_vault(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    api, name = upstream(alpn=("http/1.1",)), canary()
    bao.put("egress/api", id=name)
    store = f'vault:\n  addresses: ["{bao.address}"]\n  auth: {{method: token_file, file: vault-token}}'
    proxy = ostiary(POLICY, start=False, upstreams={"api.test:443": api.port}, store=store)
    token = bao.new_token("ostiary")
    (proxy.folder / "vault-token").write_text(token)
    proxy.canaries += [token, name]
    proxy.run()

    def send(path: str, *headers: str, method: str = "GET", body: bytes = b"") -> tuple[int, str | None]:
        answer = get(proxy.address("sidecar"), proxy.ca, path, *headers, method=method, body=body)
        return answer.status, answer.code

    # Without a body, with one, and with one that is hashed beside the loop; the caller's own signature does not travel.
    for body in (b"", b"{}", b"x" * 700_000):
        assert send("/v1/x?a=1", "X-Signature: mine", "Content-Type: a/b", method="POST", body=body) == (200, None)
        seen = api.requests[-1]
        assert seen.body_bytes == len(body)
        signature = seen.get("x-signature") or ""
        assert verified(bao, profile(seen), bytes.fromhex(signature.removeprefix("sha256=")))
    assert send("/streams/1", method="POST", body=b"y" * 100_000) == (200, None)
    seen = api.requests[-1]
    text = f"POST /streams/1 {seen.get('x-timestamp')}"
    assert verified(bao, text, bytes.fromhex(seen.get("x-signature") or ""))

    # Two keys, the second over what the first has put, beside a secret that is read.
    assert send("/template/x", method="POST", body=b"[1]") == (200, None)
    seen = api.requests[-1]
    assert seen.get("x-key-id") == name
    made = base64.b64decode(seen.get("x-signature") or "")
    assert verified(bao, f"{seen.get('x-timestamp')}{name}[1]", made, "sha2-512")
    params = (seen.get("signature-input") or "").removeprefix("sig1=")
    digest = base64.b64encode(hashlib.sha256(b"[1]").digest()).decode()
    base = f'"@method": POST\n"@target-uri": https://api.test/template/x\n"content-digest": sha-256=:{digest}:\n"x-signature": {seen.get("x-signature")}\n"@signature-params": {params}'
    public = bao.api("GET", "transit/keys/egress-ed")["data"]["keys"]["1"]["public_key"]
    Ed25519PublicKey.from_public_bytes(base64.b64decode(public)).verify(
        base64.b64decode((seen.get("signature") or "").removeprefix("sig1=:").removesuffix(":")), base.encode()
    )
    records = [record for record in proxy.wait_audit("credential.opened", 7) if record["route"] == "template"]
    assert [(one["secret"], one["secret_version"], one["cache"]) for one in records] == [
        ("secret/egress/api", "1", "miss"), ("transit/keys/egress-mac", "1", "bypass"), ("transit/keys/egress-ed", "1", "bypass"),
    ]  # fmt: skip
    assert len({one["request_id"] for one in records}) == 1

    # A rotation is used at once, and told; a pinned version stays.
    bao.api("POST", "transit/keys/egress-mac/rotate")
    assert send("/v1/y") == (200, None)
    seen = api.requests[-1]
    newer = bytes.fromhex((seen.get("x-signature") or "").removeprefix("sha256="))
    assert verified(bao, profile(seen), newer, version=2)
    changed = proxy.wait_audit("secret.version_changed")[-1]
    assert (changed["secret"], changed["version_before"], changed["secret_version"]) == (
        "transit/keys/egress-mac",
        "1",
        "2",
    )
    assert send("/pinned") == (200, None)
    assert proxy.wait_audit("credential.opened", 9)[-1]["secret_version"] == "1"

    # Many at once: no reads of secrets are shut out, none is lost.
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        paths = ["/v1/many", "/template/many"] * 24
        assert set(pool.map(send, paths)) == {(200, None)}

    # What cannot sign: typed, nothing is sent, and without a record of an opening.
    sent, opened = len(api.requests), len(proxy.audit("credential.opened"))
    assert send("/denied") == (502, "secret_denied")
    assert send("/missing") == (502, "secret_missing")
    assert send("/template/x", method="POST", body=b"x" * 1_100_000) == (413, "body_too_large")
    bao.seal()
    assert send("/v1/z") == (503, "secret_unavailable")
    assert send("/streams/1", method="POST", body=b"y") == (503, "secret_unavailable")
    bao.unseal()
    assert len(api.requests) == sent
    # The secret that stood beside the key in the third request was opened before it, and is closed.
    assert len(proxy.audit("credential.opened")) == opened + 1
    assert {record["code"] for record in proxy.wait_audit("request.refused", 4)} == {
        "secret_denied", "secret_missing", "secret_unavailable",
    }  # fmt: skip
    assert {record["id"] for record in proxy.audit("credential.opened")} == {
        record["id"] for record in proxy.wait_audit("credential.closed", opened + 1)
    }
    metrics = proxy.get("/metrics")[1].decode()
    assert 'ostiary_secret_reads_total{result="denied",store="vault"} 1.0' in metrics
    assert 'ostiary_secret_version{secret="transit/keys/egress-mac"}' in metrics

    # A policy that is put in force while the process runs; keys without a Vault are a fault.
    least = command("vault", "policy", "--config", "ostiary.yaml", cwd=proxy.folder).stdout.decode()
    assert 'path "transit/hmac/egress-mac" { capabilities = ["update"] }' in least
    assert 'path "transit/sign/egress-ed" { capabilities = ["update"] }' in least
    live = command("check", "--live", "--config", "ostiary.yaml", cwd=proxy.folder)
    assert live.returncode == 78 or b"note:" in live.stderr
    shown = json.loads(
        command(
            "explain", "GET", "https://api.test/v1/x", "--json", "--config", "ostiary.yaml", cwd=proxy.folder
        ).stdout
    )
    assert shown["sign"] == ["hmac (sha256) in header X-Signature, with key transit/keys/egress-mac of Vault"]


VERIFYING = """
workloads: {billing: {proofs: {any: true}}}
routes:
  plain:
    match: {host: api.test, paths: "/v1/**"}
    allow: billing
    verify: {hmac: {transit: {key: egress-mac}, host: true}}
  credential:
    match: {host: api.test, paths: "/credential/**"}
    allow: billing
    secrets: {key: {path: secret/egress/api, field: id}, salt: {path: secret/egress/salt, field: salt}}
    inject: {bearer: "{key}"}
    verify: {hmac: {transit: {key: egress-mac}, template: "{salt}{method}{target}{timestamp}{nonce}{body}", algorithm: sha512}}
  pinned:
    match: {host: api.test, paths: /pinned}
    allow: billing
    verify: {hmac: {transit: {key: egress-mac, version: 1}, host: true}}
  denied:
    match: {host: api.test, paths: /denied}
    allow: billing
    verify: {hmac: {transit: {key: other}, host: true}}
  hook: {match: {paths: /hook}, listener: hooks, upstream: "https://api.test", allow: verified, verify: {hmac: {transit: {key: egress-mac}, template: "{timestamp}{nonce}{body}"}}}
"""


def test_signatures_that_vault_judges(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    """Workloads have Vault sign, with the same key: what they send is compared with what Vault makes of what came."""
    api, key, salt = upstream(alpn=("http/1.1",)), canary(), canary()
    bao.put("egress/api", id=key)
    bao.put("egress/salt", salt=salt)
    store = f'vault:\n  addresses: ["{bao.address}"]\n  auth: {{method: token_file, file: vault-token}}'
    listen = (
        '[{name: sidecar, bind: "127.0.0.1:0", workload: billing}, {name: hooks, bind: "127.0.0.1:0", mode: reverse}]'
    )
    proxy = ostiary(VERIFYING, start=False, upstreams={"api.test:443": api.port}, store=store, listen=listen)
    token = bao.new_token("ostiary")
    (proxy.folder / "vault-token").write_text(token)
    proxy.canaries += [token, key, salt]
    proxy.run()

    def signed(text: str, algorithm: str = "sha2-256", version: int = 0) -> str:
        body = {"input": base64.b64encode(text.encode()).decode(), "algorithm": algorithm, "key_version": version}
        told = bao.api("POST", "transit/hmac/egress-mac", body)["data"]["hmac"]
        return base64.b64decode(told.split(":")[2]).hex()

    def fields(path: str, body: bytes = b"", version: int = 0, prefix: str = "sha256=") -> list[str]:
        at, nonce = str(now_s()), secrets.token_hex(12)
        lines = ["POST", path, "host:api.test", f"x-timestamp:{at}", f"x-nonce:{nonce}", hashlib.sha256(body).hexdigest()]  # fmt: skip
        signature = signed("\n".join(lines), version=version)
        return [f"X-Signature: {prefix}{signature}", f"X-Timestamp: {at}", f"X-Nonce: {nonce}"]

    def send(path: str, sent: list[str], body: bytes = b"") -> tuple[int, str | None]:
        answer = get(proxy.address("sidecar"), proxy.ca, path, *sent, method="POST", body=body)
        return answer.status, answer.code

    # What holds, once; of a body that is hashed beside the loop too.
    for body in (b"", b"{}", b"x" * 700_000):
        once = fields("/v1/x?a=1", body)
        assert send("/v1/x?a=1", once, body) == (200, None)
        assert api.requests[-1].get("x-signature") is None
        assert send("/v1/x?a=1", once, body) == (401, "replayed")
    once = fields("/v1/many")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        told = sorted(pool.map(lambda _: send("/v1/many", once), range(8)), key=str)
    assert told == [(200, None), *[(401, "replayed")] * 7]
    sent = len(api.requests)

    # What does not: another body, path, or signature. Its nonce is not used up by that.
    once = fields("/v1/y", b"a")
    assert send("/v1/y", once, b"b") == (401, "signature_invalid")
    assert send("/v1/z", once, b"a") == (401, "signature_invalid")
    opened = len(proxy.wait_audit("credential.opened", 1))
    assert send("/v1/y", ["X-Signature: sha256=00", *once[1:]], b"a") == (401, "signature_invalid")
    assert len(proxy.audit("credential.opened")) == opened, "Vault was asked what it could not know"
    assert len(api.requests) == sent
    assert send("/v1/y", once, b"a") == (200, None)

    # In front of a credential, over a text that names a secret.
    at = str(now_s())
    text = f"{salt}POST/credential/a{at}n-1[1]"
    sealed = [f"X-Signature: {signed(text, 'sha2-512')}", f"X-Timestamp: {at}", "X-Nonce: n-1"]
    assert send("/credential/a", sealed, b"[2]") == (401, "signature_invalid")
    assert send("/credential/a", sealed, b"[1]") == (200, None)
    assert api.requests[-1].get("authorization") == f"Bearer {key}"
    records = [one for one in proxy.audit("credential.opened") if one["route"] == "credential"][-3:]
    assert [(one["secret"], one.get("use"), one["cache"]) for one in records] == [
        ("secret/egress/salt", "verify", "hit"), ("transit/keys/egress-mac", "verify", "bypass"), ("secret/egress/api", None, "miss"),
    ]  # fmt: skip
    hook = [f"X-Signature: {signed(f'{at}n-2event')}", f"X-Timestamp: {at}", "X-Nonce: n-2"]
    for wanted in (200, 401):
        with Raw(proxy.address("hooks")) as raw:
            lines = ["POST /hook HTTP/1.1", f"Host: {proxy.address('hooks')}", "Content-Length: 5", *hook]
            raw.send("".join(f"{line}\r\n" for line in lines).encode() + b"\r\nevent")
            assert raw.answer().status == wanted

    # A rotation: the version before is taken too, until Vault lets nobody use it.
    older = fields("/v1/r")
    bao.api("POST", "transit/keys/egress-mac/rotate")
    assert send("/v1/r", older) == (200, None)
    assert send("/v1/r", fields("/v1/r")) == (200, None)
    assert send("/pinned", fields("/pinned", version=1)) == (200, None)
    assert send("/pinned", fields("/pinned")) == (401, "signature_invalid")
    older = fields("/v1/s", version=1)
    bao.api("POST", "transit/keys/egress-mac/config", {"min_encryption_version": 2})
    assert send("/v1/s", older) == (401, "signature_invalid")

    # What Vault does not tell is not taken for a yes.
    sent = len(api.requests)
    assert send("/denied", fields("/denied")) == (502, "secret_denied")
    large = b"x" * 1_100_000
    assert send("/credential/l", sealed, large) == (413, "body_too_large")
    once = fields("/v1/t")
    bao.seal()
    assert send("/v1/t", once) == (503, "secret_unavailable")
    bao.unseal()
    assert len(api.requests) == sent
    assert send("/v1/t", once) == (200, None)
    records = proxy.audit("credential.opened")
    closed = proxy.wait_audit("credential.closed", len(records))
    assert {record["id"] for record in records} == {record["id"] for record in closed}

    least = command("vault", "policy", "--config", "ostiary.yaml", cwd=proxy.folder).stdout.decode()
    assert 'path "transit/hmac/egress-mac" { capabilities = ["update"] }' in least
    shown = json.loads(
        command(
            "explain", "POST", "https://api.test/v1/x", "--json", "--config", "ostiary.yaml", cwd=proxy.folder
        ).stdout
    )
    assert "key transit/keys/egress-mac of Vault, each nonce once" in shown["verify"]


def test_the_embedded_store_keeps_no_such_keys(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    plain = (
        POLICY.partition("  profile:")[0]
        + """  profile:
    match: {host: api.test}
    allow: billing
    secret: {path: secret/a, field: key}
    sign: {hmac: {key: "{secret}"}}
"""
    )
    proxy = ostiary(plain, upstreams={"api.test:443": upstream().port}, secrets={"secret/a": {"key": canary()}})
    (proxy.folder / "policy.yaml").write_text(POLICY.partition("  template:")[0])
    found = command("check", "--config", "ostiary.yaml", cwd=proxy.folder)
    assert found.returncode == 78
    assert (
        b"route profile signs with the key egress-mac of Vault's Transit engine, and the settings have no Vault"
        in found.stderr
    )
    lent = plain.replace(
        "    secret: {path: secret/a, field: key}\n",
        "    secret: {engine: database, path: database/creds/a, field: password}\n",
    )
    (proxy.folder / "policy.yaml").write_text(lent)
    found = command("check", "--config", "ostiary.yaml", cwd=proxy.folder)
    assert found.returncode == 78
    assert b"route profile uses what Vault's database engine lends, and the settings have no Vault" in found.stderr
    (proxy.folder / "policy.yaml").write_text(VERIFYING.partition("  credential:")[0])
    found = command("check", "--config", "ostiary.yaml", cwd=proxy.folder)
    assert found.returncode == 78
    assert b"route plain verifies with the key egress-mac of Vault's Transit engine" in found.stderr
    # A reload leaves the policy before it in force.
    proxy.reload(POLICY.partition("  template:")[0])
    assert "have no Vault" in proxy.wait_audit("policy.rejected")[0]["reason"]
    assert get(proxy.address("sidecar"), proxy.ca, "/v1").status == 200
