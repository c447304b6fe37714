"""G53, G41, G21 and what else can be tried at a reverse or TLS listener: no web page gets in, nothing is smuggled, no proof
gets out, and no listener of ours can be dialled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from h2.exceptions import ProtocolError

from ostiary.cli.key import key_hash, new_key
from tests.attacks.test_differential import DIFFERENCES, ENTRIES, PROBE, Verdict, raw_of
from tests.harness.canaries import canary
from tests.harness.client import Answer, Raw, tunnel
from tests.harness.http2 import Http2, Stream
from tests.harness.ostiary_process import ENGINES, Ostiary
from tests.harness.pki import Pki
from tests.harness.ports import free_port
from tests.harness.upstream import Upstream, plain

KEY = new_key()
POLICY = f"""
workloads:
  billing: {{proofs: [{{any: true}}]}}
  keyed: {{proofs: [{{key_hash: "sha256:{key_hash(KEY)}"}}]}}
routes:
  api:
    match: {{host: api.test}}
    listener: [local, keyed]
    allow: [billing, keyed]
    secret: {{path: secret/egress/api, field: key}}
    inject: {{bearer: "{{secret}}"}}
"""


@dataclass
class Set:
    proxy: Ostiary
    api: Upstream
    key: str

    @property
    def local(self) -> str:
        return self.proxy.address("local")

    @property
    def port(self) -> str:
        return self.local.rpartition(":")[2]


@pytest.fixture(scope="module", params=ENGINES)
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Set]:
    api, key = Upstream(pki.context("api.test"), plain()), canary()
    proxy = Ostiary(
        tmp_path_factory.mktemp("reverse") / "o",
        POLICY,
        {"api.test:443": api.port},
        {"secret/egress/api": {"key": key}},
        pki.ca_file,
        listen='[{name: sidecar, bind: "127.0.0.1:0", workload: billing}, {name: local, bind: "127.0.0.1:0", mode: reverse, workload: billing, hosts: ["api.test:80", "api.test:443"]},'
        ' {name: keyed, bind: "127.0.0.1:0", mode: reverse}]',
        engine=request.param,
        settings="limits: {idle_timeout: 20s}\n",
    ).start()
    yield Set(proxy, api, key)
    leaks = proxy.leaks()
    assert proxy.stop() == 0
    api.stop()
    assert not leaks, leaks


def sent(address: str, *lines: str) -> Answer:
    with Raw(address) as raw:
        return raw.request("\r\n".join((*lines, "", "")))


def test_g53_names_that_are_not_the_listeners_own(one: Set) -> None:
    before, port = len(one.api.requests), one.port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST.:{port}", f"[::1]:{port}", "api.test"):
        assert sent(one.local, "GET /a HTTP/1.1", f"Host: {host}").status == 200, host
    wrong = (
        "127.0.0.1",
        "localhost",
        "evil.test",
        f"evil.test:{port}",
        f"127.0.0.1.evil.test:{port}",
        f"localhost.evil.test:{port}",
        f"127.0.0.2:{port}",
        f"0.0.0.0:{port}",
        f"[::ffff:127.0.0.1]:{port}",
        f"127.0.0.1:{one.proxy.port}",
        f"127.0.0.1:{port[:-1]}",
        "api.test:444",
        "sub.api.test",
    )
    for host in wrong:
        answer = sent(one.local, "GET /b HTTP/1.1", f"Host: {host}")
        assert (answer.status, answer.code) == (421, "authority_mismatch"), host
    for host in (f"0x7f.1:{port}", f"2130706433:{port}", f"a@127.0.0.1:{port}", f"127.0.0.1:{port}#", "", ":", f"127.0.0.1:{port}, evil.test", f"127.0.0.1:0{port}x"):  # fmt: skip
        assert sent(one.local, "GET /b HTTP/1.1", f"Host: {host}").code == "bad_request", host
    own = f"Host: 127.0.0.1:{port}"
    for lines in (
        ("GET /b HTTP/1.1",),
        ("GET /b HTTP/1.0",),
        ("GET /b HTTP/1.1", own, own),
        ("GET /b HTTP/1.1", own, "Host: evil.test"),
        ("GET /b HTTP/1.1", "Host : 127.0.0.1"),
        (f"GET http://127.0.0.1:{port}/b HTTP/1.1", own),
        ("GET https://api.test/b HTTP/1.1", own),
        ("GET //evil.test HTTP/1.1 ", own),
        (f"CONNECT 127.0.0.1:{port} HTTP/1.1", own),
        ("CONNECT api.test:443 HTTP/1.1", "Host: api.test:443"),
        ("GET * HTTP/1.1", own),
        (
            "GET /b HTTP/1.1",
            own,
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAAQAAP__",
        ),
        ("GET /b HTTP/1.1", own, "Connection: Upgrade", "Upgrade: TLS/1.2"),
        ("PRI * HTTP/2.0", own),
    ):
        assert sent(one.local, *lines).code == "bad_request", lines
    assert len(one.api.requests) == before + 5


def test_g53_pages_of_other_sites(one: Set) -> None:
    before, own = len(one.api.requests), f"Host: localhost:{one.port}"
    good: tuple[tuple[str, ...], ...] = (
        (),
        (f"Origin: http://localhost:{one.port}",),
        ("Sec-Fetch-Site: none",),
        ("Sec-Fetch-Site: same-origin",),
    )
    for fields in good:
        assert sent(one.local, "POST /a HTTP/1.1", own, "Content-Length: 0", *fields).status == 200, fields
    bad: tuple[tuple[str, ...], ...] = (
        ("Origin: http://evil.test",),
        ("Origin: null",),
        ("Origin: ",),
        ("Origin: http://localhost",),
        ("Origin: http://localhost:1",),
        (f"Origin: http://127.0.0.1:{one.port}",),
        (f"Origin: https://localhost:{one.port}",),
        ("Origin: https://api.test",),
        (f"Origin: http://localhost:{one.port}", "Origin: http://evil.test"),
        ("Sec-Fetch-Site: cross-site",),
        ("Sec-Fetch-Site: same-site",),
        ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"),
    )
    for fields in bad:
        for first in ("POST /a HTTP/1.1", "OPTIONS /a HTTP/1.1", "GET /a HTTP/1.1"):
            answer = sent(one.local, first, own, *fields)
            assert (answer.status, answer.code) == (403, "access_denied"), fields
            assert not [name for name, _ in answer.headers if name.lower().startswith("access-control")]
    assert len(one.api.requests) == before + len(good)


def test_g19_no_proof_and_no_credential_of_the_caller_travels(one: Set) -> None:
    keyed = one.proxy.address("keyed")
    with Raw(keyed) as raw:
        answer = raw.request(
            f"POST /a?api_key=mine&b=1 HTTP/1.1\r\nHost: {keyed}\r\nX-Ostiary-Authorization: Bearer {KEY}\r\nX_OSTIARY_AUTHORIZATION: {KEY}\r\n"
            f"Proxy-Authorization: Bearer {KEY}\r\nAuthorization: mine\r\nX-Api-Key: mine\r\nConnection: Authorization, Host\r\n"
            f"Transfer-Encoding: chunked\r\nTrailer: X-Ostiary-Authorization\r\n\r\n0\r\nX-Ostiary-Authorization: Bearer {KEY}\r\nx-api-key: mine\r\n\r\n"
        )
    assert answer.status == 200
    seen = one.api.requests[-1]
    assert (seen.target, seen.get("authorization"), seen.get("host")) == ("/a?b=1", f"Bearer {one.key}", "api.test")
    assert not [name for name, value in (*seen.headers, *seen.trailers) if "ostiary" in name.lower() or value == "mine"]
    assert KEY.encode() not in one.api.raw
    # A forward listener takes no proof of that kind.
    with Raw(one.proxy.address("keyed")) as raw:
        assert (
            raw.request(f"GET /a HTTP/1.1\r\nHost: {keyed}\r\nProxy-Authorization: Bearer {KEY}\r\n\r\n").status == 401
        )


def test_g21_what_two_parsers_read_differently(one: Set) -> None:
    """The corpus of the tunnels, sent as it is: the same verdicts, and nothing at the upstream that was not asked for."""
    wrong: dict[str, tuple[str, str]] = {}
    for entry in ENTRIES:
        if entry["note"] == "HTTP/2's preface":
            continue  # spoken here
        row = entry.get("differs")
        wanted = entry["want"] if row is None else DIFFERENCES[row].verdicts[one.proxy.engine]
        before = len(one.api.requests)
        found = asked(one.local, raw_of(entry), 1.0 if wanted == "waits" else 10.0)
        targets = [seen.target for seen in one.api.requests[before:]]
        if str(found) != wanted:
            wrong[entry["note"]] = (wanted, str(found))
        assert targets[-1:] == ["/probe"] if len(found.answers) == 2 else "/probe" not in targets, entry["note"]
        # The head of an entry before, whose body was refused half-way, may arrive only now.
        assert targets.count("/probe") <= 1, entry["note"]
    assert not wrong


REFUSED = {"bad_request", "authority_mismatch", "cut", "400"}
"""What may become of a head that the HTTP/2 layer judges before we do."""


def http2(address: str, *fields: tuple[str, str], trailers: tuple[tuple[str, str], ...] = ()) -> str:
    """What becomes of an HTTP/2 head that is sent as it is: the code of its refusal, its status, or `cut`."""
    with Raw(address) as raw:
        client = Http2(raw)
        client.conn.config.validate_outbound_headers = client.conn.config.normalize_outbound_headers = False
        stream = client.conn.get_next_available_stream_id()
        client.streams[stream] = found = Stream()
        client.conn.send_headers(stream, fields, end_stream=not trailers)
        if trailers:
            client.conn.send_headers(stream, trailers, end_stream=True)
        raw.send(client.conn.data_to_send())
        try:
            while not found.ended:
                client.receive()
        except (AssertionError, OSError, ProtocolError):
            return "cut"
        return found.headers.get("x-ostiary-error") or found.headers.get(":status") or "cut"


def test_g53_http2_heads(one: Set) -> None:
    own, keyed, before = one.local, one.proxy.address("keyed"), len(one.api.requests)
    get = ((":method", "GET"), (":scheme", "http"), (":path", "/a"))
    site = "sec-fetch-site"
    key = ("x-ostiary-authorization", f"Bearer {KEY}")
    good: tuple[tuple[tuple[str, str], ...], ...] = (
        (*get, (":authority", own)),
        (*get, (":authority", f"LOCALHOST.:{one.port}")),
        (*get, (":authority", own), ("host", own)),
        (*get, (":authority", own), ("origin", f"http://{own}"), (site, "same-origin")),
    )
    for fields in good:
        assert http2(own, *fields) == "200", fields
    assert http2(keyed, *get, (":authority", keyed), key) == "200"
    before += 5
    wrong: tuple[tuple[str | None, str, tuple[tuple[str, str], ...]], ...] = (
        ("authority_mismatch", own, (*get, (":authority", "evil.test"))),
        (None, own, (*get, (":authority", own), ("host", "evil.test"))),
        (None, own, (*get, (":authority", "evil.test"), ("host", own))),
        ("authority_mismatch", own, (*get, ("host", "evil.test"))),
        (None, own, (*get, (":authority", ""), ("host", "evil.test"))),
        (None, own, (*get, (":authority", f"{own}, evil.test"))),
        (None, own, (*get, (":authority", f"a@{own}"))),
        (None, own, (*get, (":authority", f"{own}/"))),
        (None, own, get),
        (None, own, (*get, (":authority", own), ("host", own), ("host", own))),
        (None, own, (*get, (":authority", own), (":authority", "evil.test"))),
        (None, own, (*get[:2], (":path", f"http://{own}/a"), (":authority", own))),
        (None, own, (*get[:2], (":path", "a"), (":authority", own))),
        (None, own, (*get[:2], (":path", ""), (":authority", own))),
        (None, own, ((":method", "CONNECT"), (":authority", own))),
        (None, own, ((":method", "CONNECT"), (":authority", "api.test:443"))),
        (None, own, ((":method", "CONNECT"), (":protocol", "websocket"), *get[1:], (":authority", own))),
        (None, own, (get[0], (":scheme", "ftp"), get[2], (":authority", own))),
        (None, own, (*get, (":authority", own), ("transfer-encoding", "chunked"))),
        (None, own, (*get, (":authority", own), ("connection", "x-ostiary-authorization"))),
        (None, own, (*get, (":authority", own), ("content-length", "5"))),
        ("access_denied", own, (*get, (":authority", own), ("origin", "null"))),
        ("access_denied", own, (*get, (":authority", own), ("origin", f"https://{own}"))),
        ("access_denied", own, (*get, (":authority", own), ("origin", f"http://{own}"), ("origin", "null"))),
        ("access_denied", own, (*get, (":authority", own), ("origin", f"http://{own}, null"))),
        ("access_denied", own, (*get, (":authority", own), (site, "same-site"))),
        ("access_denied", own, (*get, (":authority", own), (site, "none, cross-site"))),
        ("access_denied", own, (*get, (":authority", own), (site, ""))),
        ("proof_required", keyed, (*get, (":authority", keyed))),
        ("proof_required", keyed, (*get, (":authority", keyed), ("proxy-authorization", f"Bearer {KEY}"))),
        ("proof_required", keyed, (*get, (":authority", keyed), ("authorization", f"Bearer {KEY}"))),
        ("proof_required", keyed, (*get, (":authority", keyed), ("x_ostiary_authorization", f"Bearer {KEY}"))),
        ("proof_invalid", keyed, (*get, (":authority", keyed), key, key)),
        ("proof_invalid", keyed, (*get, (":authority", keyed), (key[0], KEY))),
    )
    for wanted, address, fields in wrong:
        found = http2(address, *fields)
        assert found == wanted or (wanted is None and found in REFUSED), (found, fields)
    assert http2(keyed, *get, (":authority", keyed), trailers=(key,)) == "proof_required"
    assert len(one.api.requests) == before


def asked(address: str, raw: bytes, wait_s: float) -> Verdict:
    method = raw.lstrip().split(b" ", 1)[0].decode("latin-1")
    answers: list[tuple[int, str | None]] = []
    waits = False
    with Raw(address, wait_s) as connection:
        try:
            for request, named in ((raw, method), (PROBE, "GET")):
                connection.send(request)
                answer = connection.answer(method=named)
                answers.append((answer.status, answer.code))
                if answer.code is not None:
                    break
        except TimeoutError:
            waits = True
        except OSError:
            pass
    return Verdict(tuple(answers), (), waits)


def test_g41_own_listeners_are_refused_by_every_way(ostiary: Callable[..., Ostiary], pki: Pki) -> None:
    """Through the proxy, and as the upstream of a reverse listener, its own included."""
    plain_port, tls_port = free_port(), free_port()
    certificate = pki.certificate("localhost", "127.0.0.1")
    proxy = ostiary(
        f"""
workloads: {{billing: {{proofs: {{any: true}}}}}}
routes:
  one: {{match: {{host: [127.0.0.1, localhost], port: {plain_port}}}, allow: billing}}
  two: {{match: {{host: [127.0.0.1, localhost], port: {tls_port}}}, allow: billing}}
  itself: {{match: {{paths: /itself}}, listener: local, upstream: "http://127.0.0.1:{plain_port}", allow: billing}}
  named: {{match: {{paths: /named}}, listener: local, upstream: "http://localhost:{plain_port}", allow: billing}}
  secure: {{match: {{paths: /secure}}, listener: local, upstream: "https://127.0.0.1:{tls_port}", allow: billing}}
""",
        egress=f'egress: {{allow: ["0.0.0.0/0", "::/0"], ca_file: {pki.ca_file}}}',
        listen=f'[{{name: sidecar, bind: "127.0.0.1:0", workload: billing}}, {{name: local, bind: "127.0.0.1:{plain_port}", mode: reverse, workload: billing}},'
        f' {{name: gateway, bind: "127.0.0.1:{tls_port}", workload: billing, tls: {{cert: {certificate}, key: {certificate}}}}}]',
    )
    for host in ("127.0.0.1", "localhost"):
        for port in (plain_port, tls_port):
            with tunnel(proxy.address("sidecar"), None, f"{host}:{port}", sni=None) as raw:
                assert raw.request(f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n").code == "egress_denied"
    for path in ("/itself", "/named", "/secure"):
        answer = sent(proxy.address("local"), f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{plain_port}")
        assert (answer.status, answer.code) == (403, "egress_denied")


def test_c1_handshakes_have_a_deadline_and_count(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], pki: Pki
) -> None:
    certificate = pki.certificate("localhost")
    proxy = ostiary(
        upstreams={"api.test:443": upstream().port},
        secrets={"secret/egress/api": {"key": canary()}},
        listen=f'[{{name: sidecar, bind: "127.0.0.1:0", workload: billing, tls: {{cert: {certificate}, key: {certificate}}}}}]',
        settings="limits: {header_timeout: 2s, connections_per_source: 3}\n",
    )
    address = proxy.address("sidecar")
    held = [Raw(address), Raw(address), Raw(address)]
    held[1].send(b"\x16\x03\x01\x02\x00\x01")  # a ClientHello that does not go on
    with Raw(address) as refused:
        assert refused.closed()  # the fourth of this source
    assert proxy.wait_audit("request.refused")[0]["code"] == "overloaded"
    began = time.monotonic()
    for raw in held:
        assert raw.closed()
        raw.close()
    assert time.monotonic() - began < 10
    deadline = time.monotonic() + 10
    while True:  # their places are free again
        try:
            with Raw(address) as raw:
                raw.tls(pki.ca_file, "localhost")
                assert raw.connect("api.test:443").status == 200
            break
        except (OSError, AssertionError):
            assert time.monotonic() < deadline
    codes = {record["code"] for record in proxy.audit("request.refused")}
    assert "request_timeout" in codes
