"""V3-V5, P3, K1: a store that is slow or changes its mind, a policy that changes under a request, a CA that cannot be used."""

from __future__ import annotations

import http.server
import shutil
import signal
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import POLICY
from tests.harness.canaries import canary
from tests.harness.client import get, tunnel
from tests.harness.openbao import openbao_server
from tests.harness.ostiary_process import Ostiary, command
from tests.harness.pki import Pki
from tests.harness.scripted_vault import scripted, send
from tests.harness.upstream import Upstream

TWO = """
workloads: {billing: {proofs: {any: true}}}
routes:
  api: {match: {host: api.test}, allow: billing, secret: {path: secret/egress/api, field: key, ttl: 0}, inject: {bearer: "{secret}"}}
  open: {match: {host: open.test}, allow: billing}
"""


def with_vault(ostiary: Callable[..., Ostiary], address: str, api: Upstream, token: str, extra: str = "") -> Ostiary:
    store = f'vault:\n  addresses: ["{address}"]\n  auth: {{method: token_file, file: vault-token}}{extra}'
    ports = {"api.test:443": api.port, "open.test:443": api.port}
    proxy = ostiary(TWO, start=False, upstreams=ports, store=store)
    (proxy.folder / "vault-token").write_text(token)
    proxy.canaries.append(token)
    return proxy.run()


def test_v3_a_slow_vault_slows_nobody_else(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("lookup-self"):
            send(handler, 200, {"data": {"ttl": 0}})
        elif "mounts" in handler.path:
            send(handler, 200, {"data": {"options": {"version": "2"}}})
        else:
            time.sleep(5)

    api = upstream(names=("api.test", "open.test"))
    with scripted(slow) as (address, seen):
        proxy = with_vault(ostiary, address, api, canary("token"))
        began = time.monotonic()
        waiting = []
        for _ in range(20):
            raw = tunnel(proxy.address("sidecar"), proxy.ca)
            waiting.append((raw, raw.__enter__()))
            waiting[-1][1].send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        for _ in range(10):
            before = time.monotonic()
            assert get(proxy.address("sidecar"), proxy.ca, authority="open.test:443").status == 200
            assert time.monotonic() - before < 0.5
        answers = [raw.answer() for _, raw in waiting]
        assert time.monotonic() - began < 4.5
        for context, _ in waiting:
            context.__exit__(None, None, None)
        assert {(answer.status, answer.code) for answer in answers} == {(503, "secret_unavailable")}
        assert all(answer.get("Retry-After") for answer in answers)
        assert len([path for path, _ in seen if "egress" in path and "mounts" not in path]) <= 2
    assert len(api.requests) == 10
    assert not proxy.audit("credential.opened")
    assert {record["code"] for record in proxy.wait_audit("request.refused", 20)} == {"secret_unavailable"}


@pytest.mark.parametrize("how", ["tls", "name"])
def test_v4_a_vault_that_is_not_ours(
    ostiary: Callable[..., Ostiary],
    upstream: Callable[..., Upstream],
    tmp_path_factory: pytest.TempPathFactory,
    how: str,
) -> None:
    """A server with a certificate of another CA never sees the token; a name that does not resolve is an outage."""
    api = upstream(names=("api.test", "open.test"))
    stranger = Upstream(Pki.make(tmp_path_factory.mktemp("stranger")).context("127.0.0.1"))
    try:
        address = f"https://127.0.0.1:{stranger.port}" if how == "tls" else "https://vault.invalid:8200"
        proxy = with_vault(ostiary, address, api, canary("token"))
        assert proxy.get("/readyz")[0] == 503
        answer = get(proxy.address("sidecar"), proxy.ca)
        assert (answer.status, answer.code) == (503, "secret_unavailable")
    finally:
        stranger.stop()
    assert bytes(stranger.raw) == b""
    assert api.connections == 0
    assert proxy.wait_audit("request.refused")[0]["code"] == "secret_unavailable"


def test_v5_an_expired_token_is_replaced_in_one_flight(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], tmp_path: Path
) -> None:
    api, key = upstream(names=("api.test", "open.test")), canary()
    with openbao_server(tmp_path / "bao") as bao:
        bao.put("egress/api", key=key)
        rights = ("secret/*", "auth/token/lookup-self")
        bao.policy("reader", "\n".join(f'path "{path}" {{ capabilities = ["read"] }}' for path in rights))
        first, second = bao.new_token("reader"), bao.new_token("reader")
        proxy = with_vault(ostiary, bao.address, api, first)
        proxy.canaries += [key, second]
        assert get(proxy.address("sidecar"), proxy.ca).status == 200
        (proxy.folder / "vault-token").write_text(second)
        bao.api("POST", "auth/token/revoke", {"token": first})
        assert get(proxy.address("sidecar"), proxy.ca).status == 200
        assert [seen.get("Authorization") for seen in api.requests] == [f"Bearer {key}"] * 2
        assert len(proxy.wait_audit("credential.closed", 2)) == 2
        # Nothing to replace it with: refused, once told, never served from memory.
        bao.api("POST", "auth/token/revoke", {"token": second})
        answer = get(proxy.address("sidecar"), proxy.ca)
        assert (answer.status, answer.code) == (502, "secret_denied")
    assert len(api.requests) == 2
    assert proxy.wait_audit("request.refused")[0]["code"] == "secret_denied"


def test_p3_a_request_keeps_the_policy_it_began_with(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api, key = upstream(), canary()
    proxy = ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": key}})
    assert proxy.process is not None
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 6\r\n\r\nabc")
        proxy.wait_audit("credential.opened")
        (proxy.folder / "policy.yaml").write_text(
            POLICY.replace("allow: billing", "allow: billing\n    deny: [{paths: /**}]")
        )
        proxy.process.send_signal(signal.SIGHUP)
        proxy.wait_audit("policy.loaded", 2)
        raw.send(b"def")
        assert raw.answer().status == 200
        assert raw.request("GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n").code == "path_denied"
    (seen,) = api.requests
    assert (seen.body, seen.get("Authorization")) == (b"abcdef", f"Bearer {key}")
    assert proxy.wait_audit("credential.closed")[0]["outcome"] == "ok"
    assert proxy.wait_audit("request.refused")[0]["code"] == "path_denied"


@pytest.mark.parametrize("flaw", ["mode", "expired", "another key", "unreadable"])
def test_k1_a_ca_that_cannot_be_used(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], tmp_path: Path, flaw: str
) -> None:
    api = upstream()
    proxy = ostiary(start=False, upstreams={"api.test:443": api.port})
    assert command("ca", "show", "--config", "ostiary.yaml", cwd=proxy.folder).returncode in {0, 78}
    proxy.run().stop()
    audited = len(proxy.audit())
    ca = proxy.folder / "ca"
    match flaw:
        case "mode":
            (ca / "ca.key").chmod(0o644)
        case "unreadable":
            (ca / "ca.key").write_bytes(b"no key")
        case "expired":
            pki = Pki.make(tmp_path / "other")
            context = pki.context("ca.test", expired=True)
            assert isinstance(context, ssl.SSLContext)
            (made,) = pki.folder.glob("ca.test-*.pem")
            text = made.read_bytes()
            cut = text.index(b"-----BEGIN CERTIFICATE")
            (ca / "ca.key").write_bytes(text[:cut])
            (ca / "ca.pem").write_bytes(text[cut:])
        case _:
            shutil.copy(Pki.make(tmp_path / "other").ca_file, ca / "ca.pem")
    done = command("run", "--config", "ostiary.yaml", cwd=proxy.folder)
    assert (done.returncode, done.stdout) == (78, b"")
    assert b"ca" in done.stderr
    assert b"Traceback" not in done.stderr
    assert len(proxy.audit()) == audited
    assert api.connections == 0
