"""G36, G45, G49, G51, G53: claims that a caller makes about itself, its method, its protocol or its host change nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from tests.harness.canaries import canary
from tests.harness.client import Raw, get, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Upstream

KEYED = """
workloads:
  billing: {proofs: [{key_hash: "sha256:HASH"}]}
routes:
  api: {match: {host: api.test}, allow: billing, secret: {path: secret/egress/api, field: key}, inject: {bearer: "{secret}"}}
"""

CLAIMS = (
    "X-Forwarded-For: 10.9.8.7",
    "Forwarded: for=10.9.8.7;host=other.test",
    "X-Real-Ip: 10.9.8.7",
    "X-Forwarded-Host: other.test",
    "X-Forwarded-Client-Cert: By=spiffe://x/proxy;URI=spiffe://x/billing",
    "Client-Cert: :MIIB:",
    "X-Ssl-Client-Verify: SUCCESS",
    "X-Ssl-Client-S-Dn: CN=billing",
    "X-Ostiary-Workload: billing",
    "X-Workload: billing",
)


def start(ostiary: Callable[..., Ostiary], api: Upstream, **given: object) -> Ostiary:
    return ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}}, **given)


def test_g36_claims_of_who_one_is_are_no_proof(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api, key = upstream(), "ost_" + canary("caller")
    proxy = start(
        ostiary,
        api,
        policy=KEYED.replace("HASH", hashlib.sha256(key.encode()).hexdigest()),
        listen='[{name: sidecar, bind: "127.0.0.1:0"}]',
    )
    proxy.canaries.append(key)
    for claim in CLAIMS:
        with Raw(proxy.address("sidecar")) as raw:
            assert raw.connect("api.test:443", claim).code == "proof_required"
    assert api.connections == 0
    # With a proof the same claims neither move the recorded source nor the workload.
    with tunnel(
        proxy.address("sidecar"), proxy.ca, "api.test:443", f"Proxy-Authorization: Bearer {key}", *CLAIMS
    ) as raw:
        assert raw.request("\r\n".join(("GET / HTTP/1.1", "Host: api.test", *CLAIMS)) + "\r\n\r\n").status == 200
    (opened,) = proxy.wait_audit("credential.opened")
    assert (opened["source"], opened["workload"], opened["host"]) == ("127.0.0.1", "billing", "api.test")
    assert {record["source"] for record in proxy.audit("request.refused")} == {"127.0.0.1"}


@pytest.mark.parametrize("method", ["TRACE", "TRACK", "trace", "CONNECT"])
def test_g45_methods_that_echo_or_tunnel(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], method: str
) -> None:
    """The route names no method: what reflects a whole request is refused all the same."""
    api = upstream()
    proxy = start(ostiary, api)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        answer = raw.request(f"{method} /v1 HTTP/1.1\r\nHost: api.test\r\n\r\n")
    assert answer.code in {"method_denied", "bad_request"}
    assert api.connections == 0
    assert not proxy.audit("credential.opened")


@pytest.mark.parametrize("protocol", ["h2c", "TLS/1.0", "IRC/6.9", "websocket, h2c", "connect-udp"])
def test_g49_upgrades_are_refused(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], protocol: str
) -> None:
    api = upstream()
    proxy = start(ostiary, api)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        answer = raw.request(f"GET / HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n")
    assert (answer.status, answer.code) == (400, "bad_request")
    assert api.connections == 0
    assert proxy.wait_audit("request.refused")[0]["code"] == "bad_request"


def test_g49_an_unasked_switch_of_protocols(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream(lambda _, wire: wire.send(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nraw"))
    proxy = start(ostiary, api)
    answer = get(proxy.address("sidecar"), proxy.ca)
    assert (answer.status, answer.code) == (502, "upstream_protocol")
    assert proxy.wait_audit("credential.closed")[0]["outcome"] == "upstream_error"


SIBLINGS = (
    "evil.tenants.test",
    "tenants.test",
    "x.acme.tenants.test",
    "xacme.tenants.test",
    "acme.tenants.test.evil.test",
)


def test_g51_a_sibling_host_never_gets_the_key(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """One address serves every tenant, with one certificate that is good for all of them."""
    api, key = upstream(names=("acme.tenants.test", "*.tenants.test")), canary()
    policy = """
workloads: {billing: {proofs: [{any: true}]}}
routes:
  acme: {match: {host: acme.tenants.test}, allow: billing, secret: {path: secret/egress/api, field: key}, inject: {bearer: "{secret}"}}
  rest: {match: {host: "*.tenants.test"}, allow: billing}
"""
    names = {f"{host}:443": api.port for host in ("acme.tenants.test", *SIBLINGS)}
    proxy = ostiary(policy, upstreams=names, secrets={"secret/egress/api": {"key": key}})
    for host in SIBLINGS:
        with Raw(proxy.address("sidecar")) as raw:
            accepted = raw.connect(f"{host}:443")
            if accepted.status == 200:
                raw.tls(proxy.ca, host)
                raw.request(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")
                # The tunnel of a tenant without a key does not lead to the one with.
                assert raw.request("GET / HTTP/1.1\r\nHost: acme.tenants.test\r\n\r\n").code == "authority_mismatch"
            else:
                assert accepted.code == "route_denied"
    assert key.encode() not in bytes(api.raw)
    assert not proxy.audit("credential.opened")
    assert any(seen.get("Host") == "evil.tenants.test" for seen in api.requests)
    assert get(proxy.address("sidecar"), proxy.ca, authority="acme.tenants.test:443").status == 200
    assert api.requests[-1].get("Authorization") == f"Bearer {key}"


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\r\nHost: rebound.test:8080\r\nOrigin: https://evil.test\r\n\r\n",
        "OPTIONS / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://evil.test\r\nAccess-Control-Request-Method: POST\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: api.test\r\nOrigin: https://evil.test\r\n\r\n",
        "POST /v1 HTTP/1.1\r\nHost: api.test\r\nOrigin: null\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_g53_a_web_page_cannot_use_the_listener(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], head: str
) -> None:
    """What a page in a browser can make it send to a local port: origin-form, never CONNECT."""
    api = upstream()
    proxy = start(ostiary, api)
    with Raw(proxy.address("sidecar")) as raw:
        answer = raw.request(head)
        assert (answer.status, answer.code) == (400, "bad_request")
        assert not [name for name, _ in answer.headers if name.lower().startswith("access-control-")]
        assert raw.closed()
    assert api.connections == 0
    assert proxy.wait_audit("request.refused")[0]["code"] == "bad_request"


def test_g58_workloads_do_not_share_an_upstream_connection(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    policy = """
workloads: {billing: {proofs: [{any: true}]}, reports: {proofs: [{any: true}]}}
routes:
  api: {match: {host: api.test}, allow: [billing, reports], secret: {path: secret/egress/api, field: key}, inject: {bearer: "{secret}"}}
"""
    api = upstream()
    listen = ", ".join(f'{{name: {name}, bind: "127.0.0.1:0", workload: {name}}}' for name in ("billing", "reports"))
    proxy = start(ostiary, api, policy=policy, listen=f"[{listen}]")
    with (
        tunnel(proxy.address("billing"), proxy.ca) as first,
        tunnel(proxy.address("reports"), proxy.ca) as second,
    ):
        for _ in range(3):
            for raw in (first, second):
                assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200
    assert api.connections == 2
    used = [record["workload"] for record in proxy.wait_audit("credential.opened", 6)]
    assert used == ["billing", "reports"] * 3
