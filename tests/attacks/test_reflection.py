"""G17, G55, U9, and the trailers of G43: an upstream that shows the credential again, in every part of an answer and in every coding."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Callable
from urllib.parse import quote

import brotli
import zstandard

from tests.harness.canaries import forms
from tests.harness.client import Answer, Raw, tunnel
from tests.harness.http2 import Http2
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, StreamWire, Upstream, Wire

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  scrubbed:
    match: {host: api.test}
    allow: billing
    secret: {path: secret/egress/api, field: key}
    inject: {header: X-Key, value: "Key {secret}"}
  basic:
    match: {host: api.test, paths: ["/basic/**"]}
    allow: billing
    secrets: {app: {path: secret/egress/api, field: key}, user: {path: secret/egress/user, field: name, public: true}}
    inject: {basic: {username: "{user}", password: "{app}"}}
  blocked:
    match: {host: api.test, paths: ["/block/**"]}
    allow: billing
    secret: {path: secret/egress/api, field: key}
    inject: {header: X-Key, value: "{secret}"}
    reply: {scrub: block}
  open:
    match: {host: api.test, paths: ["/open/**"]}
    allow: billing
    secret: {path: secret/egress/api, field: key}
    inject: {header: X-Key, value: "{secret}"}
    reply: {scrub: none}
"""
KEY = "cnry/live+key=0123456789abcdefXYZ"
USER = "account-4711"
CODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


GROWN = b"".join(b"%016x%b" % (number * 0x9E3779B97F4A7C15 % 2**64, b" " * 1000) for number in range(24_000))
"""24 MB that become a third of one."""


def spelled(key: str) -> bytes:
    raw = key.encode()
    basic = base64.b64encode(f"{USER}:{key}".encode())
    shown = [raw, quote(key, safe="").encode(), json.dumps(key).encode(), json.dumps(key).replace("/", "\\/").encode()]
    shown += [raw.hex().encode(), basic, base64.b64encode(b"a" + raw), base64.urlsafe_b64encode(b"ab" + raw + b"?>")]
    return b" | ".join(shown)


def reflect(seen: Seen, wire: Wire) -> None:
    """Shows the credential in the way that the end of the path names."""
    kind = seen.target.rpartition("/")[2]
    text = b"begin " + spelled(KEY) + b" end"
    match kind:
        case "head":
            wire.send(
                f"HTTP/1.1 200 It is {KEY}\r\nX-Echo: {KEY}\r\nX-{KEY.encode().hex()}: 1\r\n"
                f'Location: https://x.test/?k={quote(KEY, safe="")}\r\nContent-Length: 2\r\nETag: "v1"\r\nAccept-Ranges: bytes\r\n\r\nok'.encode()
            )
        case "plain" | "HEAD":
            wire.answer(
                200, text, (("ETag", '"v1"'), ("Content-Digest", "sha-256=:AA==:")), head_only=seen.method == "HEAD"
            )
        case "clean":
            wire.answer(200, b"x" * 5000)
        case "bytes":
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
            for byte in text:
                wire.chunk(bytes((byte,)))
            wire.send(f"0\r\nX-Sum: {KEY}\r\nX-Fine: yes\r\n\r\n".encode())
        case "sse":
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            wire.chunk(b"data: one\n\n")
            assert seen.get("X-Go") is None
            wire.chunk(f"data: {KEY[:9]}".encode())
            wire.chunk(f"{KEY[9:]}\n\n".encode())
            wire.chunk(b"data: last\n\n")
            wire.send(b"0\r\n\r\n")
        case "close":
            wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + text)
            wire.close()
        case "none" | "unchanged":
            wire.send(
                b'HTTP/1.1 %d X\r\nX-Echo: %b\r\nETag: "v1"\r\n\r\n' % (204 if kind == "none" else 304, KEY.encode())
            )
        case "bare":
            wire.send(f"HTTP/1.1 204 It is {KEY}\r\n\r\n".encode())
        case "delta":
            wire.answer(226, gzip.compress(text), (("IM", "gzip"),))
        case "part":
            wire.send(b"HTTP/1.1 206 X\r\nContent-Range: bytes 0-4/9\r\nContent-Length: 5\r\n\r\n" + KEY.encode()[:5])
        case "foreign":
            wire.answer(200, b"zzz", (("Content-Encoding", "compress"),))
        case "cut":
            coded = gzip.compress(text)[:-9]
            wire.answer(200, coded, (("Content-Encoding", "gzip"),))
        case "bomb":
            wire.answer(200, gzip.compress(bytes(1 << 28)), (("Content-Encoding", "gzip"),))
        case "grown-gzip" | "grown-zstd":
            coding = kind.partition("-")[2]
            wire.answer(200, CODERS[coding](GROWN), (("Content-Encoding", coding),))
        case "two":
            coded = brotli.compress(gzip.compress(text))
            wire.answer(200, coded, (("Content-Encoding", "gzip, br"),))
        case _:
            coded = CODERS[kind](text)
            wire.answer(
                200,
                coded,
                (
                    ("Content-Encoding", kind),
                    ("ETag", '"v1"'),
                    ("Content-MD5", "AA=="),
                    ("Repr-Digest", "sha-256=:AA==:"),
                ),
                head_only=seen.method == "HEAD",
            )


def start(ostiary: Callable[..., Ostiary], api: Upstream) -> Ostiary:
    proxy = ostiary(
        POLICY,
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/api": {"key": KEY}, "secret/egress/user": {"name": USER}},
    )
    proxy.canaries[:] = [KEY]
    return proxy


def ask(raw: Raw, path: str, *headers: str, method: str = "GET", version: str = "1.1") -> Answer:
    lines = (f"{method} {path} HTTP/{version}", "Host: api.test", *headers)
    return raw.request("\r\n".join(lines) + "\r\n\r\n", method=method)


def shows(answer: Answer) -> list[bytes]:
    """Spellings of the credential that an answer shows."""
    whole = repr(answer.headers).encode() + answer.body
    basic = base64.b64encode(f"{USER}:{KEY}".encode())
    known = {
        *forms(KEY),
        quote(KEY, safe="").encode(),
        json.dumps(KEY).replace("/", "\\/").encode()[1:-1],
        basic.rstrip(b"="),
    }
    return [form for form in known if form in whole]


def test_g17_g55_u9_no_part_of_an_answer_shows_the_credential(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream(reflect)
    proxy = start(ostiary, api)
    where = proxy.address("sidecar"), proxy.ca
    clean = b"begin " + spelled(KEY) + b" end"
    with tunnel(*where) as raw:
        # A head: the phrase, values, names. What frames the body and the tag of the entity stay.
        raw.send(b"GET /v1/head HTTP/1.1\r\nHost: api.test\r\n\r\n")
        head = raw.read_until(b"\r\n\r\n")
        assert raw.read_exactly(2) == b"ok"
        assert not shows(Answer(200, [], head))
        assert b"It is ****" in head
        assert b"Location: https://x.test/?k=****" in head
        assert b'ETag: "v1"' in head
        assert b"Accept-Ranges" not in head

        # A body without coding keeps its length, and so all that frames it.
        for path in ("/v1/plain", "/basic/plain"):
            answer = ask(raw, path)
            assert not shows(answer)
            assert answer.get("Content-Length") == str(len(clean)) == str(len(answer.body))
            assert answer.get("ETag") == '"v1"'
            assert answer.body.startswith(b"begin ****")
            assert answer.body.endswith(b" end")
        assert ask(raw, "/v1/clean").body == b"x" * 5000

        # Split at each byte; trailers.
        raw.send(b"GET /v1/bytes HTTP/1.1\r\nHost: api.test\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
        raw.read_until(b"\r\n\r\n")
        streamed = raw.read_until(b"\r\n0\r\n") + raw.read_until(b"\r\n\r\n")
        body = b"".join(piece for piece in streamed.split(b"\r\n")[1::2])
        assert not shows(Answer(200, [], body + streamed))
        assert body.startswith(b"begin ")
        assert b"X-Fine: yes" in streamed
        assert KEY.encode() not in streamed

        # An event stream: what needs no waiting does not wait.
        raw.send(b"GET /v1/sse HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert b"data: one\n\n" in raw.read_until(b"one\n\n")
        rest = raw.read_until(b"\r\n0\r\n\r\n")
        assert not shows(Answer(200, [], rest))
        assert b"data: last" in rest

        # Every coding, and two on top of each other: decoded, framed anew, without what told of the coded bytes.
        for coding in (*CODERS, "two"):
            answer = ask(raw, f"/v1/{coding}", "Accept-Encoding: gzip, deflate, br, zstd")
            assert not shows(answer), coding
            assert len(answer.body) == len(clean)
            for gone in ("Content-Encoding", "Content-Length", "Content-MD5", "Repr-Digest"):
                assert answer.get(gone) is None
            assert (answer.get("ETag"), answer.get("Transfer-Encoding")) == (
                '"v1"' if coding != "two" else None,
                "chunked",
            )
        # Without a body nothing is framed anew.
        answer = ask(raw, "/v1/gzip", method="HEAD")
        assert (answer.status, answer.get("Transfer-Encoding"), answer.get("Content-Encoding")) == (200, None, None)
        assert ask(raw, "/v1/HEAD", method="HEAD").get("Content-Length") == str(len(clean))
        for path, status in (("/v1/none", 204), ("/v1/unchanged", 304)):
            answer = ask(raw, path)
            assert (answer.status, answer.get("X-Echo")) == (status, "*" * len(KEY))

        # A head of a status line alone.
        raw.send(b"GET /v1/bare HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert not shows(Answer(204, [], raw.read_until(b"\r\n\r\n")))

        # What the caller asks for is narrowed, never widened; ranges and differences are not asked for.
        ask(
            raw,
            "/v1/clean",
            "Accept-Encoding: gzip;q=0.5, sdch, *;q=0",
            "Range: bytes=0-4",
            'If-Range: "v1"',
            "A-IM: gzip",
        )
        seen = api.requests[-1]
        assert (seen.get("Accept-Encoding"), seen.get("Range"), seen.get("If-Range")) == ("gzip;q=0.5", None, None)
        assert seen.get("A-IM") is None
        ask(raw, "/v1/clean")
        assert api.requests[-1].get("Accept-Encoding") is None
        ask(raw, "/open/clean", "Accept-Encoding: sdch", "Range: bytes=0-4")
        assert (api.requests[-1].get("Accept-Encoding"), api.requests[-1].get("Range")) == ("sdch", "bytes=0-4")

        # What cannot be read does not pass.
        for path in ("/v1/part", "/v1/delta", "/v1/foreign", "/block/head"):
            answer = ask(raw, path)
            assert (answer.status, answer.code) == (502, "reply_blocked"), path
        # Where the policy says so, everything passes as it is.
        assert ask(raw, "/open/plain").body == clean
        assert ask(raw, "/open/gzip").body == gzip.compress(clean)

    for path in ("/v1/cut", "/v1/bomb", "/block/plain", "/block/gzip"):
        with tunnel(*where) as raw:
            raw.send(f"GET {path} HTTP/1.1\r\nHost: api.test\r\n\r\n".encode())
            got = b""
            while raw._more():
                got = raw.buffer
            assert got.startswith(b"HTTP/1.1 200"), path
            assert not shows(Answer(200, [], got))
            assert not got.endswith(b"0\r\n\r\n"), path
            assert path.startswith("/v1") or b"begin" not in got
    with tunnel(*where) as raw:
        answer = ask(raw, "/v1/gzip", version="1.0")
        assert not shows(answer)
        assert (len(answer.body), answer.get("Transfer-Encoding")) == (len(clean), None)
    with tunnel(*where) as raw:
        answer = ask(raw, "/v1/close")
        assert not shows(answer)
        assert answer.body.endswith(b" end")

    closed = proxy.wait_audit("credential.closed", 30)
    by_path = {record["path"]: record for record in closed}
    assert by_path["/v1/plain"]["redactions"] >= 5
    assert by_path["/v1/head"]["redactions"] == 4
    assert "redactions" not in by_path["/v1/clean"]
    assert (by_path["/block/plain"]["outcome"], by_path["/block/plain"]["code"]) == ("refused", "reply_blocked")
    assert (by_path["/v1/bomb"]["outcome"], by_path["/v1/part"]["code"]) == ("refused", "reply_blocked")
    metrics = proxy.get("/metrics")[1].decode()
    assert 'ostiary_redactions_total{route="scrubbed"}' in metrics
    assert 'ostiary_refusals_total{code="reply_blocked"}' in metrics
    told = [line for line in proxy.stderr.decode().splitlines() if "showed its credential" in line]
    assert len(told) == 3, told  # once for each route
    assert proxy.rss_bytes() < 300 << 20


def test_an_answer_that_grows_leaves_as_it_is_taken(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """A read of a coded body may become many megabytes: they are not made before the caller takes them."""
    proxy = start(ostiary, upstream(reflect))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        before = proxy.peak_bytes()
        for coding in ("gzip", "zstd"):
            answer = ask(raw, f"/v1/grown-{coding}", f"Accept-Encoding: {coding}")
            assert answer.status == 200
            assert answer.body == GROWN, coding
        # The connections are in step.
        assert ask(raw, "/v1/clean").body == b"x" * 5000
        assert proxy.peak_bytes() - before < 16 << 20


def test_g17_http2_and_its_empty_frames(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    def script(seen: Seen, wire: StreamWire) -> None:
        wire.head(200, (("x-echo", KEY), ("content-length", str(len(KEY) + 2))))
        wire.send(b"<" + KEY.encode()[:9])
        wire.conn.send_data(wire.stream, b"")  # would look like the end of the body
        wire.send(KEY.encode()[9:] + b">")
        wire.trailers(("x-sum", KEY))

    api = upstream(alpn=("h2", "http/1.1"), http2_script=script)
    proxy = start(ostiary, api)
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        http2 = Http2(raw)
        stream = http2.send("GET", "/v1/any", ("te", "trailers"))
        answer = http2.answer(stream)
    assert answer.headers["x-echo"] == answer.trailers["x-sum"] == "*" * len(KEY)
    assert answer.body == b"<" + b"*" * len(KEY) + b">"
