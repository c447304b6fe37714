"""Absolute-form `http://`: forwarded, and never with a credential unless the route and the address allow it."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.harness.canaries import canary
from tests.harness.client import Answer, Raw
from tests.harness.ostiary_process import Ostiary, clean_environment
from tests.harness.upstream import Cleartext, Seen, Upstream, Wire, serving

KEY = "ost_" + "k" * 43
ROUTE = """
  {name}:
    match: {{host: {host}, port: {port}, paths: ["/v1/**"]}}
    allow: billing
    secret: {{path: secret/egress/api, field: key}}
    inject: {{bearer: "{{secret}}"}}
    allow_cleartext: {allow}
"""
POLICY = (
    "workloads:\n  billing: {proofs: [{any: true}]}\n"
    f"  other: {{proofs: [{{key_hash: 'sha256:{hashlib.sha256(KEY.encode()).hexdigest()}'}}]}}\nroutes:\n"
    + ROUTE.format(name="inside", host="inside.test", port=80, allow="true")
    + ROUTE.format(name="outside", host="outside.test", port=80, allow="false")
    + ROUTE.format(name="odd", host="odd.test", port=8080, allow="true")
    + "  open: {match: {host: open.test, port: 80}, allow: [billing, other]}\n"
)


@pytest.fixture
def api() -> Iterator[Upstream]:
    def script(seen: Seen, wire: Wire) -> None:
        wire.answer(200, b"plain answer")

    with serving(Upstream(Cleartext(), script)) as one:
        yield one


def start(ostiary: Callable[..., Ostiary], api: Upstream, **given: str) -> tuple[Ostiary, str]:
    key = canary()
    names = ("inside.test:80", "outside.test:80", "open.test:80", "odd.test:8080", "unrouted.test:80")
    proxy = ostiary(
        POLICY, upstreams=dict.fromkeys(names, api.port), secrets={"secret/egress/api": {"key": key}}, **given
    )
    return proxy, key


def ask(proxy: Ostiary, url: str, *headers: str, host: str | None = None, listener: str = "sidecar") -> Answer:
    named = host or url.partition("://")[2].partition("/")[0]
    with Raw(proxy.address(listener)) as raw:
        return raw.request("\r\n".join([f"GET {url} HTTP/1.1", f"Host: {named}", *headers]) + "\r\n\r\n")


def test_a_route_that_allows_it_injects_towards_an_address_inside(
    ostiary: Callable[..., Ostiary], api: Upstream
) -> None:
    proxy, key = start(ostiary, api)
    answer = ask(proxy, "http://inside.test/v1/a?b=1", "Authorization: Bearer mine")
    assert (answer.status, answer.body) == (200, b"plain answer")
    (seen,) = api.requests
    assert (seen.target, seen.get("host"), seen.get("authorization")) == ("/v1/a?b=1", "inside.test", f"Bearer {key}")
    (closed,) = proxy.wait_audit("credential.closed")
    assert (closed["outcome"], closed["host"], closed["port"], closed["route"]) == ("ok", "inside.test", 80, "inside")


def test_a_route_that_does_not_is_forwarded_without_a_credential(
    ostiary: Callable[..., Ostiary], api: Upstream
) -> None:
    proxy, key = start(ostiary, api)
    assert ask(proxy, "http://outside.test/v1/a", "Authorization: Bearer mine").status == 200
    (seen,) = api.requests
    # The place of the credential stays empty: the caller's own does not travel either.
    assert seen.get("authorization") is None
    assert key.encode() not in api.raw
    (record,) = proxy.wait_audit("request.forwarded")
    assert (record["route"], record["outcome"]) == ("outside", "ok")
    assert not proxy.audit("credential.opened")


def test_another_port_and_a_kept_connection(ostiary: Callable[..., Ostiary], api: Upstream) -> None:
    proxy, key = start(ostiary, api)
    with Raw(proxy.address("sidecar")) as raw:
        for _ in range(3):
            assert raw.request("GET http://odd.test:8080/v1/a HTTP/1.1\r\nHost: odd.test:8080\r\n\r\n").status == 200
        assert raw.request("GET http://open.test/ HTTP/1.1\r\nHost: open.test\r\n\r\n").status == 200
    assert [seen.get("host") for seen in api.requests] == ["odd.test:8080"] * 3 + ["open.test"]
    assert [seen.get("authorization") for seen in api.requests] == [f"Bearer {key}"] * 3 + [None]
    # One upstream connection for each authority.
    assert api.connections == 2


def test_a_body_in_chunks(ostiary: Callable[..., Ostiary], api: Upstream) -> None:
    proxy, _ = start(ostiary, api)
    with Raw(proxy.address("sidecar")) as raw:
        head = "POST http://inside.test/v1/a HTTP/1.1\r\nHost: inside.test\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert raw.request(head + "5\r\nhello\r\n0\r\n\r\n").status == 200
    assert api.requests[0].body == b"hello"


def test_each_request_brings_its_own_proof(ostiary: Callable[..., Ostiary], api: Upstream) -> None:
    proxy, _ = start(
        ostiary, api, listen='[{name: gateway, bind: "127.0.0.1:0"}, {name: s, bind: "127.0.0.1:0", workload: billing}]'
    )
    proof = "Proxy-Authorization: Basic " + base64.b64encode(f"x:{KEY}".encode()).decode()
    with Raw(proxy.address("gateway")) as raw:
        request = "GET http://open.test/ HTTP/1.1\r\nHost: open.test\r\n"
        first = raw.request(request + "\r\n")
        assert (first.status, first.code) == (407, "proof_required")
        assert (first.get("Proxy-Authenticate") or "").startswith("Basic")
        assert raw.request(f"{request}{proof}\r\n\r\n").status == 200
        assert raw.request(request + "\r\n").status == 407
    (seen,) = api.requests
    assert seen.get("proxy-authorization") is None
    answer = ask(proxy, "http://inside.test/v1/a", proof, listener="gateway")
    assert (answer.status, answer.code) == (403, "route_denied")


@pytest.mark.parametrize(
    ("url", "host", "status", "code"),
    [
        ("https://inside.test/v1/a", "inside.test", 400, "bad_request"),  # G06
        ("http://inside.test/v1/a", "open.test", 421, "authority_mismatch"),
        ("http://inside.test:8080/v1/a", "inside.test", 421, "authority_mismatch"),
        ("http://unrouted.test/", "unrouted.test", 403, "route_denied"),
        ("http://inside.test/admin", "inside.test", 403, "path_denied"),
        ("http://inside.test/v1/../admin", "inside.test", 403, "path_denied"),
        ("http://inside.test/v1/%2e%2e/admin", "inside.test", 403, "path_denied"),
        ("http://user:pw@inside.test/v1/a", "inside.test", 400, "bad_request"),
        ("http://2130706433/", "2130706433", 400, "bad_request"),
        ("ftp://inside.test/v1/a", "inside.test", 400, "bad_request"),
    ],
)
def test_what_is_refused_never_reaches_an_upstream(
    ostiary: Callable[..., Ostiary], api: Upstream, url: str, host: str, status: int, code: str
) -> None:
    proxy, _ = start(ostiary, api)
    answer = ask(proxy, url, host=host)
    assert (answer.status, answer.code) == (status, code)
    assert api.connections == 0
    assert not proxy.audit("credential.opened")
    assert proxy.wait_audit("request.refused")


def test_no_upgrade_and_no_second_host(ostiary: Callable[..., Ostiary], api: Upstream) -> None:
    proxy, _ = start(ostiary, api)
    for headers in (
        ("Connection: Upgrade", "Upgrade: websocket"),
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
        ("Host: open.test",),
    ):
        assert ask(proxy, "http://inside.test/v1/a", *headers).code == "bad_request"
    assert api.connections == 0


def test_g41_own_sockets_over_plain_http(ostiary: Callable[..., Ostiary], api: Upstream) -> None:
    proxy, _ = start(ostiary, api)
    admin = proxy.ready["admin"]
    policy = f"workloads: {{billing: {{proofs: [{{any: true}}]}}}}\nroutes: {{a: {{match: {{host: 127.0.0.1, port: {admin.rpartition(':')[2]}}}, allow: billing}}}}\n"
    proxy.reload(policy)
    answer = ask(proxy, f"http://{admin}/metrics")
    assert (answer.status, answer.code) == (403, "egress_denied")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_with_http_proxy(ostiary: Callable[..., Ostiary], api: Upstream) -> None:
    proxy, key = start(ostiary, api)
    found = subprocess.run(
        ["curl", "-sS", "-d", "x=1", "http://inside.test/v1/a"],
        env=clean_environment(http_proxy=f"http://{proxy.address('sidecar')}"),
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, b"plain answer"), found.stderr
    assert api.requests[0].get("authorization") == f"Bearer {key}"
    assert api.requests[0].body == b"x=1"
