"""P2: a reverse listener reaches its routes' upstreams by the same pipeline, over TCP, Unix sockets and TLS."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from cryptography import x509

from ostiary.cli.key import key_hash, new_key
from tests.e2e.test_trailers import chunked, with_trailers
from tests.e2e.test_websocket import HANDSHAKE, switching
from tests.harness.canaries import canary
from tests.harness.client import Answer, Raw, get
from tests.harness.http2 import Http2
from tests.harness.ostiary_process import ENGINES, Ostiary, clean_environment
from tests.harness.pki import Pki
from tests.harness.upstream import Seen, Upstream, Wire, plain

KEY = new_key()
POLICY = f"""
workloads:
  app: {{proofs: [{{any: true}}]}}
  keyed: {{proofs: [{{key_hash: "sha256:{key_hash(KEY)}"}}]}}
routes:
  api:
    match: {{host: api.test, paths: ["/v1/**", "/both/**"]}}
    listener: [local, keyed, socket, secure]
    allow: [app, keyed]
    secret: {{path: secret/egress/api, field: key}}
    inject: {{bearer: "{{secret}}"}}
  other:
    match: {{paths: ["/other/**"]}}
    listener: local
    upstream: "https://other.test"
    allow: app
    secret: {{path: secret/egress/other, field: key}}
    inject: {{header: X-Api-Key, value: "{{secret}}"}}
  two: {{listener: two, upstream: "https://two.test", http2: prefer, allow: app}}
"""
LISTEN = """[{name: sidecar, bind: "127.0.0.1:0", workload: app}, {name: local, bind: "127.0.0.1:0", mode: reverse, workload: app, hosts: [ostiary.test]},
  {name: keyed, bind: "127.0.0.1:0", mode: reverse}, {name: two, bind: "127.0.0.1:0", mode: reverse, workload: app}, {name: socket, bind: "unix:reverse.sock", mode: reverse, workload: app},
  {name: secure, bind: "127.0.0.1:0", mode: reverse, workload: app, hosts: [gateway.test], tls: {cert: CERT, key: CERT}},
  {name: gateway, bind: "127.0.0.1:0", tls: {cert: CERT, key: CERT}}]"""


PLACES = {
    "https://api.test/v1/next?a=b#c": "OWN/v1/next?a=b#c",
    "HTTPS://API.test:443/v1": "OWN/v1",
    "//api.test/v1": "OWN/v1",
    "/v1/relative": None,
    "https://api.test.evil.test/": None,
    "https://api.test@evil.test/": None,
    "https://api.test:8443/": None,
    "http://api.test/": None,
    "https://other.test/v1": None,
}
"""What an upstream may say under Location, and what the caller is told; None: the same."""


def api_script(seen: Seen, wire: Wire) -> None:
    """Answers by the path."""
    if seen.target.startswith("/v1/place/"):
        place = list(PLACES)[int(seen.target.rpartition("/")[2])]
        wire.answer(302, b"", (("Location", place), ("Content-Location", place), ("X-Place", place)))
    elif seen.target == "/v1/ws":
        switching()(seen, wire)
    elif seen.target == "/v1/sse":
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        wire.chunk(b"data: 1\n\n")
        wire.sock.recv(1)  # until the caller is gone
        wire.close()
    elif seen.target == "/v1/trailers":
        with_trailers(seen, wire)
    else:
        wire.answer(200, seen.body or b"hello", head_only=seen.method == "HEAD")


@dataclass
class Set:
    proxy: Ostiary
    api: Upstream
    other: Upstream
    two: Upstream
    key: str
    other_key: str
    pki: Pki


@pytest.fixture(scope="module", params=ENGINES)
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Set]:
    """One process for all: each test asks something else of it."""
    api, other = Upstream(pki.context("api.test"), api_script), Upstream(pki.context("other.test"), plain())
    two = Upstream(pki.context("two.test", alpn=("h2", "http/1.1")))
    key, other_key = canary("api"), canary("other")
    certificate = pki.certificate("gateway.test", "localhost", "127.0.0.1")
    proxy = Ostiary(
        tmp_path_factory.mktemp("reverse") / "o",
        POLICY,
        {"api.test:443": api.port, "other.test:443": other.port, "two.test:443": two.port},
        {"secret/egress/api": {"key": key}, "secret/egress/other": {"key": other_key}},
        pki.ca_file,
        listen=LISTEN.replace("CERT", str(certificate)),
        engine=request.param,
    ).start()
    yield Set(proxy, api, other, two, key, other_key, pki)
    leaks = proxy.leaks()
    assert proxy.stop() == 0, proxy.stderr.decode()
    for upstream in (api, other, two):
        upstream.stop()
    assert not leaks, leaks


def ask(address: str, path: str = "/v1/x", *fields: str, method: str = "GET", host: str | None = None) -> Answer:
    with Raw(address) as raw:
        lines = (f"{method} {path} HTTP/1.1", f"Host: {host or address}", *fields, "", "")
        return raw.request("\r\n".join(lines), method=method)


def test_the_same_pipeline(one: Set) -> None:
    local = one.proxy.address("local")
    answer = ask(local, "/v1/x?q=1", "Authorization: Bearer sk-of-the-caller", "X-Ostiary-Other: 1")
    assert (answer.status, answer.body) == (200, b"hello")
    seen = one.api.requests[-1]
    assert (seen.method, seen.target) == ("GET", "/v1/x?q=1")
    assert seen.get("authorization") == f"Bearer {one.key}"
    assert seen.get("host") == "api.test"
    assert not [name for name, _ in seen.headers if name.lower().startswith("x-ostiary")]
    opened = one.proxy.wait_audit("credential.opened")[-1]
    assert (opened["listener"], opened["workload"], opened["host"], opened["port"]) == ("local", "app", "api.test", 443)
    # The route leads: another path of the same listener, another upstream, another credential.
    assert ask(local, "/other/x").status == 200
    assert one.other.requests[-1].get("x-api-key") == one.other_key
    assert one.other.requests[-1].get("host") == "other.test"
    assert ask(local, "/v1/x", method="HEAD").status == 200
    assert ask(local, "/v1/x", "Content-Length: 0", method="POST").status == 200
    # One connection, one request after the other, to two upstreams.
    with Raw(local) as raw:
        request = f"POST PATH HTTP/1.1\r\nHost: {local}\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nping\r\n0\r\n\r\n"
        for path in ("/v1/a", "/other/a", "/v1/b"):
            assert raw.request(request.replace("PATH", path)).status == 200
    assert [seen.body for seen in one.api.requests[-2:]] == [b"ping", b"ping"]
    denied = ask(local, "/v2")
    assert (denied.status, denied.code) == (403, "path_denied")
    # A route without a host is its listener's alone; one with a host is reached by both ways.
    assert get(one.proxy.address("sidecar"), one.proxy.ca).status == 200
    with Raw(one.proxy.address("sidecar")) as raw:
        assert raw.connect("other.test:443").code == "route_denied"


def test_who_calls(one: Set) -> None:
    keyed = one.proxy.address("keyed")
    before = one.api.connections
    for fields in ((), (f"Proxy-Authorization: Bearer {KEY}",), (f"Authorization: Bearer {KEY}",)):
        answer = ask(keyed, "/v1/x", *fields)
        assert (answer.status, answer.code) == (401, "proof_required")
        assert answer.all("WWW-Authenticate") == ['Basic realm="ostiary", charset="UTF-8"', 'Bearer realm="ostiary"']
        assert not answer.all("Proxy-Authenticate")
        assert "X-Ostiary-Authorization" in answer.json()["error"]
    wrong = ask(keyed, "/v1/x", "X-Ostiary-Authorization: Bearer ost_wrong")
    assert (wrong.status, wrong.code) == (401, "proof_invalid")
    twice = ask(keyed, "/v1/x", *[f"X-Ostiary-Authorization: Bearer {KEY}"] * 2)
    assert (twice.status, twice.code) == (401, "proof_invalid")
    assert one.api.connections == before
    basic = base64.b64encode(f"any:{KEY}".encode()).decode()
    for proof in (f"Bearer {KEY}", f"Basic {basic}"):
        with Raw(keyed) as raw:  # after a 401 the connection is usable
            assert raw.request(f"GET /v1/x HTTP/1.1\r\nHost: {keyed}\r\n\r\n").status == 401
            answer = raw.request(
                f"GET /v1/x HTTP/1.1\r\nHost: {keyed}\r\nX-Ostiary-Authorization: {proof}\r\nX_Ostiary_Authorization: a\r\n\r\n"
            )
            assert answer.status == 200
    assert KEY.encode() not in one.api.raw
    assert basic.encode() not in one.api.raw
    refused = [record for record in one.proxy.audit("request.refused") if record["listener"] == "keyed"]
    assert {record["status"] for record in refused} == {401}


def test_places_that_the_upstream_names(one: Set) -> None:
    local = one.proxy.address("local")
    for number, (place, told) in enumerate(PLACES.items()):
        answer = ask(local, f"/v1/place/{number}")
        wanted = place if told is None else told.replace("OWN", f"http://{local}")
        assert answer.status == 302
        assert [answer.all(name) for name in ("Location", "Content-Location", "X-Place")] == [
            [wanted],
            [wanted],
            [place],
        ]
    # As the caller wrote it, and untouched where it came by the proxy.
    assert ask(local, "/v1/place/0", host="ostiary.test").get("Location") == "http://ostiary.test/v1/next?a=b#c"
    assert get(one.proxy.address("sidecar"), one.proxy.ca, "/v1/place/0").get("Location") == next(iter(PLACES))
    assert ask(one.proxy.address("local"), "/v1/place/8").get("Location") == "https://other.test/v1"


def test_websocket_events_and_trailers(one: Set) -> None:
    local = one.proxy.address("local")
    with Raw(local) as raw:
        # As a page of the listener's own would: what leaves names the upstream's origin.
        raw.send(
            HANDSHAKE.replace("/live?x=1", "/v1/ws").replace("api.test", local).encode()
            + f"Origin: http://{local}\r\nSec-Fetch-Site: same-origin\r\n\r\n".encode()
        )
        assert raw.head().status == 101
        raw.send(b"\x81\x09abcd\r\n\r\n0")
        assert raw.read_exactly(11) == b"\x81\x09abcd\r\n\r\n0"
    assert one.api.requests[-1].get("origin") == "https://api.test"
    assert one.api.requests[-1].get("authorization") == f"Bearer {one.key}"
    with Raw(local) as raw:
        raw.send(f"GET /v1/sse HTTP/1.1\r\nHost: {local}\r\n\r\n".encode())
        assert raw.head().status == 200
        assert raw.read_until(b"data: 1\n\n")  # while the upstream says no more
    with Raw(local) as raw:
        raw.send(f"GET /v1/trailers HTTP/1.1\r\nHost: {local}\r\nTE: trailers\r\nConnection: TE\r\n\r\n".encode())
        assert raw.head().status == 200
        assert chunked(raw) == (b"hello", ["grpc-status: 0", "x-sum: a b"])


def test_http2_with_prior_knowledge(one: Set) -> None:
    local = one.proxy.address("local")
    with Raw(local) as raw:
        client = Http2(raw)
        answer = client.answer(client.send("POST", "/v1/h2", authority=local, body=b"ping"))
        assert (answer.headers[":status"], bytes(answer.body)) == ("200", b"ping")
        assert one.api.requests[-1].get("authorization") == f"Bearer {one.key}"
        assert one.api.requests[-1].get("host") == "api.test"
        other = client.answer(client.send("GET", "/other/h2", authority=local))
        assert other.headers[":status"] == "200"
        assert one.other.requests[-1].get("x-api-key") == one.other_key
        for wrong in ("evil.test", "api.test"):
            refused = client.answer(client.send("GET", "/v1/h2", authority=wrong))
            assert (refused.headers[":status"], refused.headers["x-ostiary-error"]) == ("421", "authority_mismatch")
    with Raw(local) as raw:
        client = Http2(raw)
        page = client.answer(client.send("GET", "/v1/h2", ("origin", "http://evil.test"), authority=local))
        assert (page.headers[":status"], page.headers["x-ostiary-error"]) == ("403", "access_denied")
    with Raw(one.proxy.address("sidecar")) as raw:
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert raw.answer().code == "bad_request"  # a forward listener speaks HTTP/1.1


def test_a_route_that_prefers_http2(one: Set) -> None:
    address = one.proxy.address("two")
    with Raw(address) as raw:
        for number in range(2):
            answer = raw.request(f"POST /{number} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 4\r\n\r\nping")
            assert (answer.status, answer.json()["body_bytes"]) == (200, 4)
    assert [(seen.http2, dict(seen.headers)[":authority"]) for seen in one.two.requests[-2:]] == [
        (True, "two.test")
    ] * 2
    refused = ask(address, "/x", host="two.test")
    assert (refused.status, refused.code) == (421, "authority_mismatch")


def test_a_unix_socket(one: Set) -> None:
    address = one.proxy.address("socket")
    path = address.removeprefix("unix:")
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "20", "--unix-socket", path, "http://whatever/v1/x"],
        env=clean_environment(), capture_output=True, check=False, cwd=one.proxy.folder,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"hello"), done.stderr
    assert one.api.requests[-1].get("host") == "api.test"
    assert one.proxy.wait_audit("credential.opened")[-1]["source"] == f"unix:uid={os.getuid()}"
    page = ask(address, "/v1/x", "Origin: http://evil.test", host="whatever")
    assert (page.status, page.code) == (403, "access_denied")


def test_tls_to_a_reverse_listener(one: Set) -> None:
    secure = one.proxy.address("secure")
    port = secure.rpartition(":")[2]
    for offers, expected in ((("http/1.1",), b"http/1.1"), (("h2", "http/1.1"), None), (("h2",), b"h2"), ((), None)):
        with Raw(secure) as raw:
            raw.tls(one.pki.ca_file, "gateway.test", offers)
            chosen = raw.sock.selected_alpn_protocol()  # type: ignore[attr-defined]  # it is wrapped now
            assert expected is None or chosen == expected.decode()
            if chosen == "h2":
                client = Http2(raw)
                answer = client.answer(client.send("GET", "/v1/place/0", authority=f"gateway.test:{port}"))
                assert answer.headers["location"] == f"https://gateway.test:{port}/v1/next?a=b#c"
                continue
            answer1 = raw.request(f"GET /v1/place/0 HTTP/1.1\r\nHost: gateway.test:{port}\r\n\r\n")
            assert answer1.get("Location") == f"https://gateway.test:{port}/v1/next?a=b#c"
            origin = f"GET /v1/x HTTP/1.1\r\nHost: gateway.test:{port}\r\nOrigin: SCHEME://gateway.test:{port}\r\n\r\n"
            assert raw.request(origin.replace("SCHEME", "https")).status == 200
            assert raw.request(origin.replace("SCHEME", "http")).code == "access_denied"
    url = f"https://localhost:{port}/v1/x"
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "20", "--cacert", str(one.pki.ca_file), url], env=clean_environment(), capture_output=True, check=False
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"hello"), done.stderr


def test_tls_to_the_proxy(one: Set) -> None:
    gateway = one.proxy.address("gateway")
    url = f"https://ostiary:{KEY}@localhost:{gateway.rpartition(':')[2]}"
    bundle = one.proxy.folder / "both.pem"
    bundle.write_bytes(one.pki.ca_file.read_bytes() + one.proxy.ca.read_bytes())
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "20", "--proxy-cacert", str(one.pki.ca_file), "--cacert", str(one.proxy.ca), "https://api.test/v1/x", "https://api.test/v1/y"],
        env=clean_environment(HTTPS_PROXY=url), capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"hellohello"), done.stderr
    assert one.proxy.wait_audit("credential.opened")[-1]["listener"] == "gateway"
    with Raw(gateway) as raw:
        raw.tls(one.pki.ca_file, "localhost", ("h2", "http/1.1"))
        assert raw.sock.selected_alpn_protocol() == "http/1.1"  # type: ignore[attr-defined]  # it is wrapped now
        assert raw.connect("api.test:443").code == "proof_required"
        assert raw.connect("api.test:443", f"Proxy-Authorization: Bearer {KEY}").status == 200
    with Raw(gateway) as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")  # cleartext
        assert raw.closed()
    listeners = {entry["name"]: entry for entry in one.proxy.ready["listeners"]}
    assert "tls" not in listeners["local"]
    assert (listeners["secure"]["mode"], listeners["secure"]["tls"]) == ("reverse", True)


def serial_of(address: str, pki: Pki) -> int:
    with Raw(address) as raw:
        raw.tls(pki.ca_file, "gateway.test")
        shown = raw.sock.getpeercert(binary_form=True)  # type: ignore[attr-defined]  # it is wrapped now
        return x509.load_der_x509_certificate(shown).serial_number


def test_reload_and_drain(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], pki: Pki, engine: str
) -> None:
    """Certificates change under open connections, what is wrong changes nothing, and what is under way is answered at the end."""
    asked, go_on = threading.Event(), threading.Event()

    def script(seen: Seen, wire: Wire) -> None:
        if seen.target == "/v1/slow":
            asked.set()
            go_on.wait(20)
        api_script(seen, wire)

    api, other = upstream(script), upstream(names=("other.test",))
    certificate, after = pki.certificate("gateway.test"), pki.certificate("gateway.test", "more.test")
    policy = """
workloads: {app: {proofs: {any: true}}}
routes:
  api: {match: {paths: "/v1/**"}, listener: LISTENER, upstream: "https://HOST", allow: app}
"""
    first = policy.replace("LISTENER", "secure").replace("HOST", "api.test")
    proxy = ostiary(first, start=False, upstreams={"api.test:443": api.port, "other.test:443": other.port},
        listen='[{name: secure, bind: "127.0.0.1:0", mode: reverse, workload: app, hosts: gateway.test, tls: {cert: tls.pem, key: tls.pem}}]',
    )  # fmt: skip
    served = proxy.folder / "tls.pem"
    served.write_bytes(certificate.read_bytes())
    proxy.run()
    address = proxy.address("secure")
    before = serial_of(address, pki)
    request = "GET /v1/x HTTP/1.1\r\nHost: gateway.test\r\n\r\n"
    with Raw(address) as kept, Raw(address) as stream:
        kept.tls(pki.ca_file, "gateway.test")
        stream.tls(pki.ca_file, "gateway.test")
        assert kept.request(request).status == 200
        stream.send(request.replace("/v1/x", "/v1/sse").encode())
        assert stream.read_until(b"data: 1\n\n")
        served.write_bytes(after.read_bytes())
        proxy.reload()
        new = serial_of(address, pki)
        assert new != before
        assert kept.request(request).status == 200
        # What does not fit changes nothing.
        _, _, chain = after.read_bytes().partition(b"-----BEGIN CERTIFICATE-----")
        served.write_bytes(
            certificate.read_bytes().partition(b"-----BEGIN CERTIFICATE-----")[0]
            + b"-----BEGIN CERTIFICATE-----"
            + chain
        )
        proxy.reload()
        assert serial_of(address, pki) == new
        assert b"is not the key of" in proxy.stderr
        proxy.reload(policy.replace("LISTENER", "secrue").replace("HOST", "api.test"))
        assert "names listener 'secrue'" in proxy.audit("policy.rejected")[-1]["reason"]
        assert kept.request(request).status == 200
        # A listener that leads elsewhere now: what streams from the upstream of before ends, the next request goes on.
        proxy.reload(policy.replace("LISTENER", "secure").replace("HOST", "other.test"))
        while stream._more():
            pass
        assert kept.request(request).status == 200
        assert len(other.requests) == 1
        proxy.reload(first)
        kept.send(request.replace("/v1/x", "/v1/slow").encode())
        assert asked.wait(10)
        assert proxy.process is not None
        proxy.process.send_signal(signal.SIGTERM)
        threading.Timer(0.5, go_on.set).start()
        answer = kept.answer()
        assert (answer.status, answer.body) == (200, b"hello")
        assert kept.closed()
    assert proxy.process.wait(20) == 0
    assert [record["code"] for record in proxy.audit("request.refused")] == ["route_denied"]
