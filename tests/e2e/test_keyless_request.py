"""A keyless request goes in, an authenticated one comes out, and the audit tells both halves."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable

import pytest

from tests.harness.canaries import canary
from tests.harness.client import get, tunnel
from tests.harness.ostiary_process import Ostiary, clean_environment
from tests.harness.upstream import Upstream


def policy(inject: str) -> str:
    return f"""
workloads:
  billing: {{proofs: [{{any: true}}]}}
routes:
  api:
    match: {{host: api.test}}
    allow: billing
    secret: {{path: secret/egress/api, field: key}}
    inject: {inject}
"""


@pytest.mark.parametrize(
    ("inject", "header", "value"),
    [
        ('{header: X-Api-Key, value: "{secret}"}', "X-Api-Key", "KEY"),
        ('{header: Authorization, value: "Token {secret}"}', "Authorization", "Token KEY"),
        ('{bearer: "{secret}"}', "Authorization", "Bearer KEY"),
        ('{basic: {username: "api", password: "{secret}"}}', "Authorization", "Basic api:KEY"),
        ('{swap: sk-placeholder-1, in: [header:X-Api-Key], value: "{secret}"}', "X-Api-Key", "KEY"),
    ],
)
def test_a_credential_is_put(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], inject: str, header: str, value: str
) -> None:
    key = canary()
    api = upstream()
    proxy = ostiary(policy(inject), upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": key}})
    answer = get(proxy.address("sidecar"), proxy.ca, "/v1/x?q=1", "X-Api-Key: sk-placeholder-1", "Accept: text/plain")
    assert (answer.status, answer.body) == (200, b"hello")
    (seen,) = api.requests
    expected = value.replace("KEY", key)
    if expected.startswith("Basic "):
        expected = "Basic " + base64.b64encode(expected.removeprefix("Basic ").encode()).decode()
    assert seen.get(header) == expected
    assert (seen.method, seen.target, seen.get("Host"), seen.get("Accept")) == (
        "GET",
        "/v1/x?q=1",
        "api.test",
        "text/plain",
    )


def test_a_query_parameter_is_put(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    key = canary()
    api = upstream()
    proxy = ostiary(
        policy('{query: key, value: "{secret}"}'),
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/api": {"key": key}},
    )
    assert get(proxy.address("sidecar"), proxy.ca, "/v1?a=%7e&key=mine").status == 200
    assert api.requests[0].target == f"/v1?a=%7e&key={key}"


def test_two_records_tell_the_exchange(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    key = canary()
    api = upstream()
    proxy = ostiary(
        policy('{bearer: "{secret}"}'),
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/api": {"key": key}},
    )
    answer = get(
        proxy.address("sidecar"),
        proxy.ca,
        "/v1/things?token=hidden",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        method="POST",
        body=b"abc",
    )
    assert answer.status == 200
    (closed,) = proxy.wait_audit("credential.closed")
    (opened,) = proxy.audit("credential.opened")
    assert opened["id"] == closed["id"]
    common = {
        "v": 1,
        "workload": "billing",
        "proof": "any",
        "source": "127.0.0.1",
        "listener": "sidecar",
        "route": "api",
        "rule": "allow[0]",
        "host": "api.test",
        "port": 443,
        "method": "POST",
        "path": "/v1/things",
        "secret": "secret/egress/api",
        "secret_version": "1",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "cache": "miss",
    }
    for record in (opened, closed):
        assert {key: record.get(key) for key in common} == common
    assert (closed["status"], closed["outcome"], closed["bytes_in"], closed["bytes_out"]) == (200, "ok", 3, 5)
    assert closed["payload_sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert closed["ms"] >= closed["ms_upstream"] > 0
    assert "hidden" not in (proxy.folder / "audit.jsonl").read_text()


def test_a_route_without_a_secret_forwards(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    text = "workloads: {billing: {proofs: {any: true}}}\nroutes: {api: {match: {host: api.test}, allow: billing}}\n"
    proxy = ostiary(text, upstreams={"api.test:443": api.port})
    assert get(proxy.address("sidecar"), proxy.ca, "/v1", "Authorization: Bearer mine").status == 200
    assert api.requests[0].get("Authorization") == "Bearer mine"
    (record,) = proxy.wait_audit("request.forwarded")
    assert (record["route"], record["status"], record["outcome"]) == ("api", 200, "ok")
    assert not proxy.audit("credential.opened")


def test_many_requests_share_one_tunnel_and_one_upstream_connection(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream()
    proxy = ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}})
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        for index in range(20):
            assert raw.request(f"GET /{index} HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200
        assert raw.request("HEAD / HTTP/1.1\r\nHost: api.test\r\n\r\n", method="HEAD").status == 200
    assert api.connections == 1
    assert [seen.target for seen in api.requests] == [f"/{index}" for index in range(20)] + ["/"]


def test_curl(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    key = canary()
    api = upstream()
    proxy = ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": key}})
    done = subprocess.run(
        [
            "curl",
            "-sS",
            "--proxy",
            f"http://{proxy.address('sidecar')}",
            "--cacert",
            str(proxy.ca),
            "https://api.test/v1",
        ],
        capture_output=True,
        env=clean_environment(),
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"hello"), done.stderr
    assert api.requests[0].get("Authorization") == f"Bearer {key}"


def test_a_new_version_is_used_without_a_restart(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream()
    proxy = ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary("one")}})
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    new = canary("two")
    proxy.set_secret("secret/egress/api", "key", new)
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    assert api.requests[1].get("Authorization") == f"Bearer {new}"
    assert [record["secret_version"] for record in proxy.audit("credential.opened")] == ["1", "2"]
