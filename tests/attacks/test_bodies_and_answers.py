"""G12-G14, G18, G19, G29, G30, G42, G47: nothing half-built leaves, nothing a caller or an upstream sends changes
that."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.harness.canaries import canary
from tests.harness.client import Raw, get, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, Upstream, Wire, plain

KNOWN = (
    "Authorization",
    "X-Api-Key",
    "Api-Key",
    "X-Goog-Api-Key",
    "X-Auth-Token",
    "Private-Token",
    "DD-Api-Key",
    "DD-Application-Key",
    "X-Amz-Security-Token",
)


def start(ostiary: Callable[..., Ostiary], api: Upstream, key: str, **given: object) -> Ostiary:
    return ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": key}}, **given)


def test_g14_a_large_body_still_carries_the_credential(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api, key = upstream(), canary()
    proxy = start(ostiary, api, key)
    for size in (65536, 65537, 1 << 20, (8 << 20) + 1):
        assert get(proxy.address("sidecar"), proxy.ca, method="POST", body=b"x" * size).status == 200
        assert api.requests[-1].body_bytes == size
        assert api.requests[-1].get("Authorization") == f"Bearer {key}"


def test_g14_f2_a_denied_upload_costs_no_memory(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream()
    policy = """
workloads: {billing: {proofs: {any: true}}}
routes: {api: {match: {host: api.test, paths: /allowed}, allow: billing}}
"""
    proxy = ostiary(policy, upstreams={"api.test:443": api.port})
    assert get(proxy.address("sidecar"), proxy.ca, "/allowed").status == 200
    before = proxy.rss_bytes()
    for framing in ("Content-Length: 67108864", "Transfer-Encoding: chunked"):
        with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
            raw.send(f"POST /denied HTTP/1.1\r\nHost: api.test\r\n{framing}\r\n\r\n".encode())
            answer = raw.answer()
            assert answer.code == "path_denied"
            assert answer.get("Connection") == "close"
            chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n" if "chunked" in framing else b"x" * 0x100000
            sent = 0
            with pytest.raises(OSError):  # the proxy hangs up: it does not read what it has refused
                for _ in range(64):
                    raw.send(chunk)
                    sent += len(chunk)
            assert sent < 32 << 20
    assert proxy.rss_bytes() - before < 8 << 20
    assert api.connections == 1


def test_a_denied_request_is_answered_before_100_continue(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream()
    proxy = ostiary(
        "workloads: {billing: {proofs: {any: true}}}\nroutes: {api: {match: {host: api.test, paths: /a}, allow: billing}}\n",
        upstreams={"api.test:443": api.port},
    )
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"POST /b HTTP/1.1\r\nHost: api.test\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        assert raw.head().status == 403
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert raw.head().status == 100
        raw.send(b"abc")
        assert raw.answer().status == 200
    assert [seen.body for seen in api.requests] == [b"abc"]


def test_small_refused_bodies_keep_the_connection(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream()
    proxy = ostiary(
        "workloads: {billing: {proofs: {any: true}}}\nroutes: {api: {match: {host: api.test, paths: /a}, allow: billing}}\n",
        upstreams={"api.test:443": api.port},
    )
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request("GET /b HTTP/1.1\r\nHost: api.test\r\n\r\n").code == "path_denied"
        assert raw.request("GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200


def test_g18_u10_redirects_are_returned(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    elsewhere = upstream(names=("other.test",))
    api = upstream(plain(b"", 302, ("Location", "https://other.test/steal")))
    proxy = start(ostiary, api, canary())
    answer = get(proxy.address("sidecar"), proxy.ca)
    assert (answer.status, answer.get("Location")) == (302, "https://other.test/steal")
    assert elsewhere.connections == 0
    assert len(api.requests) == 1
    (closed,) = proxy.wait_audit("credential.closed")
    assert (closed["outcome"], closed["status"]) == ("ok", 302)


@pytest.mark.parametrize("mode", ["replace", "reject"])
def test_g19_the_callers_own_credentials(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], mode: str
) -> None:
    api, key = upstream(), canary()
    policy = f"""
workloads: {{billing: {{proofs: {{any: true}}}}}}
routes:
  api:
    match: {{host: api.test}}
    allow: billing
    secret: {{path: secret/egress/api, field: key}}
    inject: [{{header: X-Own, value: "{{secret}}"}}, {{query: own, value: "{{secret}}"}}]
    caller_credentials: {mode}
"""
    proxy = ostiary(policy, upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": key}})
    mine = canary("caller")
    proxy.canaries.append(mine)
    for name in (*KNOWN, "x-own", "X-OWN"):
        answer = get(proxy.address("sidecar"), proxy.ca, "/v1", f"{name}: {mine}")
        assert answer.code == ("caller_credentials" if mode == "reject" else None)
    for name in ("api_key", "access_token", "own", "%6fwn"):
        answer = get(proxy.address("sidecar"), proxy.ca, f"/v1?a=b&{name}={mine}")
        assert answer.code == ("caller_credentials" if mode == "reject" else None)
    assert mine.encode() not in bytes(api.raw)
    for seen in api.requests:
        assert seen.get("X-Own") == key
        assert seen.target.endswith(f"own={key}")
    assert bool(api.requests) is (mode == "replace")


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\x00b", " ", "\u2028"])
def test_g42_a_secret_cannot_split_a_header(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], value: str
) -> None:
    api = upstream()
    proxy = start(ostiary, api, value)
    proxy.canaries.clear()
    answer = get(proxy.address("sidecar"), proxy.ca)
    assert (answer.status, answer.code) == (502, "secret_malformed")
    assert api.connections == 0
    (closed,) = proxy.wait_audit("credential.closed")
    assert (closed["outcome"], closed["code"], closed["status"]) == ("refused", "secret_malformed", 502)


def test_g44_answers_cannot_imitate_ours(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    fields = (
        ("X-Ostiary-Error", "killed"),
        ("Alt-Svc", 'h3=":443"'),
        ("Proxy-Authenticate", "Basic"),
        ("Connection", "X-Hop"),
        ("X-Hop", "1"),
        ("X-Own", "1"),
    )
    proxy = start(ostiary, upstream(plain(b"x", 200, *fields)), canary())
    answer = get(proxy.address("sidecar"), proxy.ca)
    assert [answer.get(name) for name, _ in fields] == [None, None, None, None, None, "1"]


def test_g47_without_an_audit_record_no_credential_leaves(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream()
    proxy = start(ostiary, api, canary(), audit_block="audit: {sinks: [{file: /dev/full}], wait: 500ms}")
    for _ in range(3):
        answer = get(proxy.address("sidecar"), proxy.ca)
        assert (answer.status, answer.code) == (503, "audit_unavailable")
        assert answer.get("Retry-After")
    assert api.connections == 0
    assert proxy.get("/readyz")[0] == 503


def test_g29_g30_nothing_printed_holds_a_canary(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """The scan runs at the end of every test; this one makes every kind of output first."""
    api, key = upstream(), canary()
    proxy = start(ostiary, api, key)
    query = canary("query")
    proxy.canaries.append(query)
    for path in (f"/v1?token={query}", f"/../?{query}"):
        get(proxy.address("sidecar"), proxy.ca, path)
    with Raw(proxy.address("sidecar")) as raw:
        raw.send(f"GARBAGE {query}\r\n\r\n".encode())
        raw.answer()
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(f"GET / HTTP/1.1\r\nHost: api.test\r\nBad Header: {query}\r\n\r\n".encode())
        raw.answer()
    api.stop()
    time.sleep(0.1)
    get(proxy.address("sidecar"), proxy.ca)
    assert proxy.leaks() == []


def test_f2_a_flood_behind_a_request_is_cut(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    """While an answer is awaited, what the caller sends ahead is bounded."""

    def slow(seen: Seen, wire: Wire) -> None:
        time.sleep(3)
        wire.answer(200, b"late")

    proxy = start(ostiary, upstream(slow), canary())
    before = proxy.rss_bytes()
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        with pytest.raises(OSError):
            for _ in range(64):
                raw.send(b"x" * (1 << 20))
    assert proxy.rss_bytes() - before < 16 << 20
    deadline = time.monotonic() + 5
    while (
        not (ends := [record["outcome"] for record in proxy.audit() if "outcome" in record])
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    assert ends == ["client_gone"]


def test_requests_sent_ahead_are_answered_in_order(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream()
    proxy = start(ostiary, api, canary())
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: api.test\r\n\r\n" % index for index in range(5)))
        for _ in range(5):
            assert raw.answer().body == b"hello"
    assert [seen.target for seen in api.requests] == [f"/{index}" for index in range(5)]


def test_f2_a_client_hello_that_does_not_end(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    proxy = start(ostiary, upstream(), canary())
    with Raw(proxy.address("sidecar")) as raw:
        assert raw.connect("api.test:443").status == 200
        # A handshake of sixteen megabytes, announced in the first record.
        record = b"\x16\x03\x01\x40\x00" + b"\x01\xff\xff\xff" + b"\x03\x03" + b"x" * (0x4000 - 6)
        with pytest.raises(OSError):
            for _ in range(200):
                raw.send(record)
                record = b"\x16\x03\x01\x40\x00" + b"x" * 0x4000
                time.sleep(0.001)
