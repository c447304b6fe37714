"""V1, V2, V4, V5, V7-V9, G13, G27: the secret store fails, and the caller gets a typed answer while the upstream sees nothing."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.canaries import canary, scan
from tests.harness.client import Answer, get, tunnel
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.ostiary_process import Ostiary
from tests.harness.scripted_vault import scripted, send
from tests.harness.upstream import Upstream

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  api:
    match: {host: api.test}
    allow: billing
    secret: {path: secret/egress/api, field: key, ttl: TTL, max_stale: STALE}
    inject: {bearer: "{secret}"}
"""


@pytest.fixture
def bao(tmp_path: Path) -> Iterator[OpenBao]:
    with openbao_server(tmp_path / "bao", sealable=True) as server:
        yield server


def start(ostiary: Callable[..., Ostiary], bao: OpenBao, api: Upstream, *, ttl: str = "0", stale: str = "0") -> Ostiary:
    store = f'vault:\n  addresses: ["{bao.address}"]\n  auth: {{method: token_file, file: vault-token}}'
    proxy = ostiary(
        POLICY.replace("TTL", ttl).replace("STALE", stale),
        start=False,
        upstreams={"api.test:443": api.port},
        store=store,
    )
    (proxy.folder / "vault-token").write_text(bao.token)
    proxy.canaries.append(bao.token)
    return proxy.run()


def test_v7_a_secret_from_a_real_vault(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    api, key = upstream(), canary()
    bao.put("egress/api", key=key)
    proxy = start(ostiary, bao, api)
    proxy.canaries.append(key)
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    assert api.requests[0].get("Authorization") == f"Bearer {key}"
    # V7: a rotation between two requests; each carries one version, told in the audit.
    new = canary("new")
    bao.put("egress/api", key=new)
    proxy.canaries.append(new)
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    assert api.requests[1].get("Authorization") == f"Bearer {new}"
    assert [record["secret_version"] for record in proxy.wait_audit("credential.opened", 2)] == ["1", "2"]
    assert "ostiary_vault_up 1.0" in proxy.get("/metrics")[1].decode()


def test_v7_rotation_in_flight_never_mixes_versions(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    api = upstream()
    bao.put("egress/api", key="user-1:pass-1", user="user-1")
    policy = POLICY.replace(
        '{bearer: "{secret}"}', '[{header: X-User, value: "{secret.user}"}, {header: X-Pair, value: "{secret}"}]'
    )
    store = f'vault:\n  addresses: ["{bao.address}"]\n  auth: {{method: token_file, file: vault-token}}'
    proxy = ostiary(
        policy.replace("TTL", "50ms").replace("STALE", "0"),
        start=False,
        upstreams={"api.test:443": api.port},
        store=store,
    )
    (proxy.folder / "vault-token").write_text(bao.token)
    proxy.run()
    done = threading.Event()

    def rotate() -> None:
        number = 1
        while not done.is_set():
            number += 1
            bao.put("egress/api", key=f"user-{number}:pass-{number}", user=f"user-{number}")
            time.sleep(0.01)

    rotating = threading.Thread(target=rotate)
    rotating.start()
    try:
        with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
            for _ in range(150):
                assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200
    finally:
        done.set()
        rotating.join()
    pairs = [(seen.get("X-User"), seen.get("X-Pair")) for seen in api.requests]
    assert len({user for user, _ in pairs}) > 3
    for user, pair in pairs:
        assert pair is not None
        assert pair.split(":")[0] == user
    opened = proxy.wait_audit("credential.opened", 150)
    assert [f"user-{record['secret_version']}" for record in opened] == [user for user, _ in pairs]


def test_v1_sealed(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao) -> None:
    api = upstream()
    bao.put("egress/api", key=canary())
    proxy = start(ostiary, bao, api)
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    bao.seal()
    for _ in range(3):
        answer = get(proxy.address("sidecar"), proxy.ca)
        assert (answer.status, answer.code) == (503, "secret_unavailable")
        assert int(answer.get("Retry-After") or 0) >= 1
    assert len(api.requests) == 1
    assert proxy.wait_audit("request.refused")[0]["code"] == "secret_unavailable"
    bao.unseal()
    deadline = time.monotonic() + 10
    while get(proxy.address("sidecar"), proxy.ca).status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_v1_stale_within_its_bound(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    api, key = upstream(), canary()
    bao.put("egress/api", key=key)
    proxy = start(ostiary, bao, api, ttl="200ms", stale="3s")
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    bao.seal()
    time.sleep(0.5)
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    assert proxy.wait_audit("credential.opened", 2)[1]["cache"] == "stale"
    assert 'ostiary_secret_cache_total{result="stale"} 1.0' in proxy.get("/metrics")[1].decode()
    time.sleep(3)
    assert get(proxy.address("sidecar"), proxy.ca).code == "secret_unavailable"
    assert [seen.get("Authorization") for seen in api.requests] == [f"Bearer {key}"] * 2
    assert proxy.wait_audit("request.refused")[0]["code"] == "secret_unavailable"


def test_v4_down(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao) -> None:
    api = upstream()
    proxy = start(ostiary, bao, api)
    bao.stop()
    assert get(proxy.address("sidecar"), proxy.ca).code == "secret_unavailable"
    assert api.connections == 0
    assert proxy.wait_audit("request.refused")[0]["code"] == "secret_unavailable"
    assert not proxy.audit("credential.opened")
    status, body = proxy.get("/readyz")
    assert status == 503 or json.loads(body)["status"] == "ready"  # ready for as long as stale secrets may serve
    assert "ostiary_vault_up 0.0" in proxy.get("/metrics")[1].decode()


def test_v4_down_at_the_start(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    store = 'vault:\n  addresses: ["http://127.0.0.1:9"]\n  auth: {method: token_file, file: vault-token}'
    proxy = ostiary(
        POLICY.replace("TTL", "0").replace("STALE", "0"), start=False, upstreams={"api.test:443": api.port}, store=store
    )
    (proxy.folder / "vault-token").write_text(canary())
    proxy.run()
    assert proxy.get("/readyz")[0] == 503
    assert get(proxy.address("sidecar"), proxy.ca).code == "secret_unavailable"
    assert api.connections == 0
    assert proxy.wait_audit("request.refused")[0]["code"] == "secret_unavailable"
    assert not proxy.audit("credential.opened")


def test_v5_denied(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao) -> None:
    api = upstream()
    bao.put("egress/api", key=canary())
    bao.policy("nothing", 'path "secret/data/other" { capabilities = ["read"] }')
    proxy = start(ostiary, bao, api, ttl="100ms", stale="10m")
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    (proxy.folder / "vault-token").write_text(bao.new_token("nothing"))
    time.sleep(0.2)
    # Never stale after 403.
    for _ in range(3):
        answer = get(proxy.address("sidecar"), proxy.ca)
        assert (answer.status, answer.code) == (502, "secret_denied")
    assert len(api.requests) == 1
    assert {record["code"] for record in proxy.wait_audit("request.refused", 3)} == {"secret_denied"}
    assert len(proxy.audit("credential.opened")) == 1


@pytest.mark.parametrize("how", ["missing", "field", "deleted", "destroyed"])
def test_v8_not_there(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao, how: str
) -> None:
    api = upstream()
    if how != "missing":
        bao.put("egress/api", **{"other" if how == "field" else "key": canary()})
    if how == "deleted":
        bao.delete("egress/api")
    if how == "destroyed":
        bao.destroy("egress/api", 1)
    proxy = start(ostiary, bao, api)
    answer = get(proxy.address("sidecar"), proxy.ca)
    assert (answer.status, answer.code) == (502, "secret_missing")
    assert api.connections == 0
    assert not proxy.audit("credential.opened")
    assert proxy.wait_audit("request.refused")[0]["code"] == "secret_missing"


AFTERWARDS = """
workloads: {billing: {proofs: {any: true}}}
routes:
"""
ROUTE = """  NAME:
    match: {host: api.test, paths: "/NAME"}
    allow: billing
    secret: {path: secret/egress/NAME, field: key, kv: 2, ttl: 200ms, max_stale: STALE}
    inject: {bearer: "{secret}"}
"""


def test_v1_v5_v8_what_becomes_of_a_secret_in_memory(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    """Deleted, destroyed, denied, emptied or spoilt after it was read: not used again, in a tunnel that is open too, for
    all that `max_stale` would allow. Only a Vault that says "too many requests" is an outage, which `max_stale` covers.
    """
    api, keys = upstream(), {}
    ends = {
        "deleted": "secret_missing",
        "destroyed": "secret_missing",
        "gone": "secret_missing",
        "field": "secret_missing",
    }
    ends |= {"denied": "secret_denied", "spoilt": "secret_malformed", "busy": "secret_unavailable"}
    stale = {"busy": "0", "patient": "10m"}
    for name in (*ends, "patient"):
        keys[name] = canary(name)
        bao.put(f"egress/{name}", key=keys[name])
    rule = 'path "secret/data/egress/{}" {{ capabilities = ["read"] }}\n'
    look = 'path "auth/token/lookup-self" { capabilities = ["read"] }\n'
    bao.policy("reads", look + "".join(rule.format(name) for name in keys))
    token = bao.new_token("reads")
    proxy = ostiary(
        AFTERWARDS + "".join(ROUTE.replace("NAME", name).replace("STALE", stale.get(name, "10m")) for name in keys),
        start=False,
        upstreams={"api.test:443": api.port},
        store=f'vault:\n  addresses: ["{bao.address}"]\n  auth: {{method: token_file, file: vault-token}}',
    )
    (proxy.folder / "vault-token").write_text(token)
    proxy.canaries += [token, *keys.values()]
    proxy.run()
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:

        def ask(name: str) -> Answer:
            return raw.request(f"GET /{name} HTTP/1.1\r\nHost: api.test\r\n\r\n")

        assert [ask(name).status for name in keys] == [200] * len(keys)
        bao.delete("egress/deleted")
        bao.destroy("egress/destroyed", 1)
        bao.api("DELETE", "secret/metadata/egress/gone")
        bao.put("egress/field", other="x")
        bao.put("egress/spoilt", key="two\nlines")
        bao.policy("reads", look + "".join(rule.format(name) for name in keys if name != "denied"))
        bao.api("POST", "sys/quotas/config", {"enable_rate_limit_response_headers": True})
        for name in ("busy", "patient"):
            path = f"secret/data/egress/{name}"
            bao.api("POST", f"sys/quotas/rate-limit/{name}", {"rate": 1, "interval": "60s", "path": path})
            # The one call that is left is this one.
            bao.api("GET", path)
        time.sleep(0.25)
        before = len(api.requests)
        for name, code in ends.items():
            answer = ask(name)
            assert (answer.status, answer.code) == (503 if code == "secret_unavailable" else 502, code), name
        assert len(api.requests) == before
        assert [record["code"] for record in proxy.wait_audit("request.refused", len(ends) - 1)] == [
            code for code in ends.values() if code != "secret_malformed"
        ]
        assert proxy.wait_audit("credential.closed", len(keys) + 1)[-1]["code"] == "secret_malformed"
        # As long as Vault asked for.
        assert int(ask("busy").get("Retry-After") or 0) > 1
        assert ask("patient").status == 200
        assert api.requests[-1].get("Authorization") == f"Bearer {keys['patient']}"
        assert proxy.wait_audit("credential.closed", len(keys) + 2)[-1]["secret_version"] == "1"
        assert [record["cache"] for record in proxy.audit("credential.opened")].count("stale") == 1


def test_v2_nodes_that_cannot_serve(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    """A standby, a follower cut off, a node that was removed: the next address is asked once. Where none can serve, a typed
    answer; and wherever a redirect leads, the token does not go there.
    """
    api, key, token = upstream(), canary("key"), canary("token")
    # What each of the two addresses answers; 0 for a good node.
    answers = [0, 0]

    def node(number: int) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            if answers[number]:
                location = {"Location": f"{elsewhere}{handler.path}"} if answers[number] == 307 else {}
                send(handler, answers[number], {"errors": ["standby"]}, **location)
            elif handler.path.endswith("lookup-self"):
                send(handler, 200, {"data": {"ttl": 0}})
            else:
                send(handler, 200, {"data": {"data": {"key": key}, "metadata": {"version": 1}}})

        return answer

    with (
        scripted(lambda handler: send(handler, 200, {})) as (elsewhere, strangers),
        scripted(node(0)) as (first, _),
        scripted(node(1)) as (second, asked),
    ):
        policy = POLICY.replace("field: key", "field: key, kv: 2").replace("TTL", "0").replace("STALE", "0")
        proxy = ostiary(
            policy,
            start=False,
            upstreams={"api.test:443": api.port},
            store=f'vault:\n  addresses: ["{first}", "{second}"]\n  auth: {{method: token_file, file: vault-token}}',
        )
        (proxy.folder / "vault-token").write_text(token)
        proxy.canaries += [key, token]
        proxy.run()
        refused = 0
        for status in (307, 473, 530):  # the others: tests/vault
            answers[:] = [status, 0]
            before = len(asked)
            assert get(proxy.address("sidecar"), proxy.ca).status == 200
            assert api.requests[-1].get("Authorization") == f"Bearer {key}"
            assert [path for path, _ in asked[before:]].count("/v1/secret/data/egress/api") == 1
            answers[:] = [status, status]
            seen = len(api.requests)
            answer = get(proxy.address("sidecar"), proxy.ca)
            refused += 1
            assert (answer.status, answer.code) == (503, "secret_unavailable")
            assert int(answer.get("Retry-After") or 0) >= 1
            assert len(api.requests) == seen
            answers[:] = [0, 0]
            ends_s = time.monotonic() + 20
            while get(proxy.address("sidecar"), proxy.ca).status != 200:
                refused += 1
                assert time.monotonic() < ends_s
                time.sleep(0.1)
        assert {record["code"] for record in proxy.wait_audit("request.refused", refused)} == {"secret_unavailable"}
        assert not strangers


@pytest.mark.parametrize("value", ["", "a\r\nb", "a\x00b"])
def test_v9_malformed(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao, value: str
) -> None:
    api = upstream()
    bao.put("egress/api", key=value)
    proxy = start(ostiary, bao, api)
    answer = get(proxy.address("sidecar"), proxy.ca)
    assert (answer.status, answer.code) == (502, "secret_malformed")
    assert api.connections == 0
    # The version was opened to be looked at: its record is closed as refused.
    (closed,) = proxy.wait_audit("credential.closed")
    assert (closed["outcome"], closed["code"], closed["secret_version"]) == ("refused", "secret_malformed", "1")


def test_g27_a_hundred_cold_requests_cost_one_read(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    api = upstream()
    bao.put("egress/api", key=canary())
    log = bao.keep_audit()
    proxy = start(ostiary, bao, api, ttl="1m")
    with ThreadPoolExecutor(50) as pool:
        statuses = list(pool.map(lambda _: get(proxy.address("sidecar"), proxy.ca).status, range(100)))
    assert set(statuses) == {200}
    assert 'ostiary_secret_reads_total{result="ok",store="vault"} 1.0' in proxy.get("/metrics")[1].decode()
    # Vault's own audit says so too.
    asked = [entry["request"] for entry in map(json.loads, log.read_bytes().splitlines()) if entry["type"] == "request"]
    assert [one["path"] for one in asked if one["operation"] == "read"].count("secret/data/egress/api") == 1
    assert len(api.requests) == 100
    assert {record["secret_version"] for record in proxy.wait_audit("credential.closed", 100)} == {"1"}


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ("not json", 503, "secret_unavailable"),
        ('{"data": 5}', 502, "secret_malformed"),
        ('{"data": {"data": {"key": ["a"]}, "metadata": {"version": 1}}}', 502, "secret_malformed"),
        ('{"data": {"data": {"key": "x"}, "metadata": {}}}', 502, "secret_malformed"),
        ("silence", 503, "secret_unavailable"),
    ],
)
def test_g13_a_vault_that_answers_nonsense(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], how: str, status: int, code: str
) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("lookup-self"):
            send(handler, 200, {"data": {"ttl": 0}})
        elif "mounts" in handler.path:
            send(handler, 200, {"data": {"options": {"version": "2"}}})
        elif how == "silence":
            time.sleep(4)
        else:
            send(handler, 200, how.encode())

    api = upstream()
    with scripted(answer) as (address, _):
        store = f'vault:\n  addresses: ["{address}"]\n  auth: {{method: token_file, file: vault-token}}'
        policy = POLICY.replace("TTL", "0").replace("STALE", "10m")
        proxy = ostiary(policy, start=False, upstreams={"api.test:443": api.port}, store=store)
        (proxy.folder / "vault-token").write_text(canary())
        proxy.run()
        began = time.monotonic()
        found = get(proxy.address("sidecar"), proxy.ca)
        assert (found.status, found.code) == (status, code)
        assert time.monotonic() - began < 3.5
    assert api.connections == 0
    assert proxy.wait_audit("request.refused")[0]["code"] == code


def test_v5_f4_a_login_that_cannot_work_says_so_and_works_once_it_can(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    """One process from a refused login over a single-use wrapped secret id to the revocation of its token."""
    api, key = upstream(), canary()
    bao.put("egress/api", key=key)
    bao.policy(
        "proxy", 'path "secret/*" { capabilities = ["read"] }\npath "auth/token/*" { capabilities = ["update"] }'
    )
    role, _ = bao.approle("proxy", "proxy", token_ttl="1h", secret_id_num_uses=1)
    used = bao.wrapped("auth/approle/role/proxy/secret-id")
    bao.api("POST", "sys/wrapping/unwrap", {}, token=used)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        store = f'vault:\n  addresses: ["{dead}", "{bao.address}"]\n  auth: {{method: approle, role_id: file:role-id, wrapped_file: wrapped}}'
        policy = POLICY.replace("TTL", "0").replace("STALE", "0")
        proxy = ostiary(policy, start=False, upstreams={"api.test:443": api.port}, store=store)
        proxy.canaries += [key]
        (proxy.folder / "role-id").write_text(role)
        (proxy.folder / "wrapped").write_text(used)
        proxy.run()
        answer = get(proxy.address("sidecar"), proxy.ca)
        assert (answer.status, answer.code) == (502, "secret_denied")
        assert b"somebody else has opened it" in bytes(proxy.stderr)
        assert api.connections == 0
        # A new envelope is noticed, opened once and serves.
        envelope = bao.wrapped("auth/approle/role/proxy/secret-id")
        (proxy.folder / "wrapped").write_text(envelope)
        deadline_s = time.monotonic() + 20
        while get(proxy.address("sidecar"), proxy.ca).status != 200:
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
        metrics = proxy.get("/metrics")[1].decode()
        assert 'ostiary_vault_logins_total{result="ok"} 1.0' in metrics
        assert 'ostiary_vault_logins_total{result="denied"}' in metrics
        (left,) = re.findall(r"^ostiary_vault_token_ttl_seconds (\S+)$", metrics, re.MULTILINE)
        assert 3400 < float(left) < 3600
        live = len(bao.api("LIST", "auth/token/accessors")["data"]["keys"])
        assert proxy.stop() == 0
    assert len(bao.api("LIST", "auth/token/accessors")["data"]["keys"]) == live - 1
    # Neither envelope is anywhere but in its file.
    assert not scan([("stderr", bytes(proxy.stderr)), *proxy.told], [used, envelope])
    assert [seen.get("Authorization") for seen in api.requests] == [f"Bearer {key}"]
