"""P5: every place a credential can go to, as docs/reference/injection.md shows it, and what is refused instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.canaries import canary
from tests.harness.client import Answer, Raw, tunnel
from tests.harness.http2 import Http2
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, Upstream

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "injection.md").read_text()
(POLICY,) = re.findall(r"```yaml policy\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = re.findall(r"```http\n(.*?)```", PAGE, re.DOTALL)
HARD, PLAIN = 'k/1+2 "é"', "k1+2="
_REQUEST = re.compile(r"(?=^[A-Z]+ /\S* HTTP/1\.1$)", re.MULTILINE)


def taken_apart(text: str) -> tuple[str, list[str], bytes]:
    head, _, body = text.strip("\n").partition("\n\n")
    first, *fields = head.split("\n")
    return first, fields, body.encode()


def send(raw: Raw, first: str, fields: list[str], body: bytes) -> Answer:
    lines = [first, "Host: api.test", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return raw.request("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def as_written(seen: Seen) -> tuple[str, list[str], bytes]:
    framing = {"host", "content-length"}
    fields = [f"{name}: {value}" for name, value in seen.headers if name.lower() not in framing]
    return f"{seen.method} {seen.target} HTTP/1.1", sorted(fields, key=str.lower), seen.body


def start(ostiary: Callable[..., Ostiary], api: Upstream, policy: str = POLICY, **given: object) -> Ostiary:
    secrets = {
        "secret/egress/api": {"key": HARD},
        "secret/egress/user": {"name": "account"},
        "secret/egress/session": {"id": PLAIN},
    }
    proxy = ostiary(policy, upstreams={"api.test:443": api.port}, secrets=secrets, **given)
    proxy.canaries.clear()  # short and known; the tests below have one of their own
    return proxy


def test_g50_every_example_of_the_page(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    proxy = start(ostiary, api)
    assert len(EXAMPLES) >= 13
    for hard in (True, False):
        if not hard:
            proxy.set_secret("secret/egress/api", "key", PLAIN)
            proxy.reload(POLICY.replace("field: key", "field: key, ttl: 0"))
            proxy.canaries.clear()
        done = 0
        with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
            for example in EXAMPLES:
                sent, wanted = [taken_apart(text) for text in _REQUEST.split(example) if text.strip()]
                needs_hard = "k/1+2" in example or "k%2F1" in example or "YWNjb3" in example
                if (
                    needs_hard is not hard
                    and "/cookie" not in example
                    and "mine" not in wanted[0]
                    and "null" not in example
                ):
                    continue
                answer = send(raw, *sent)
                assert (answer.status, answer.code) == (200, None), example
                first, fields, body = wanted
                assert as_written(api.requests[-1]) == (first, sorted(fields, key=str.lower), body), example
                assert api.requests[-1].get("content-length") == (str(len(body)) if body else None)
                done += 1
        assert done >= 5


BODIES = """
workloads: {billing: {proofs: {any: true}}}
routes:
  json:
    match: {host: api.test, paths: ["/json/**"]}
    allow: billing
    secret: {path: secret/egress/own, field: key}
    inject: {json: /auth/key, value: "{secret}"}
  form:
    match: {host: api.test, paths: ["/form/**"]}
    allow: billing
    secret: {path: secret/egress/own, field: key}
    inject: {form: api_key, value: "{secret}"}
  strict:
    match: {host: api.test, paths: ["/strict/*/**"]}
    allow: billing
    secret: {path: secret/egress/own, field: key}
    inject:
      - {json: /key, value: "{secret}"}
      - {cookie: sid, value: "{secret}"}
      - {path: "/strict/*/**", value: "/strict/{secret}/**"}
    caller_credentials: reject
  strict-form:
    match: {host: api.test, paths: ["/strict-form"]}
    allow: billing
    secret: {path: secret/egress/own, field: key}
    inject: {form: key, value: "{secret}"}
    caller_credentials: reject
  split:
    match: {host: api.test, paths: ["/split/*/**"]}
    allow: billing
    secret: {path: secret/egress/bad, field: key}
    inject: {path: "/split/*/**", value: "/split/{secret}/**"}
  crumb:
    match: {host: api.test, paths: ["/crumb"]}
    allow: billing
    secret: {path: secret/egress/bad, field: cookie}
    inject: {cookie: sid, value: "{secret}"}
"""
JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"


def test_bodies_paths_and_cookies_that_are_refused(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api, key, mine = upstream(), canary(), canary("mine")
    proxy = ostiary(
        BODIES,
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/own": {"key": key}, "secret/egress/bad": {"key": "..", "cookie": "a;b"}},
        settings="limits: {buffered_body: 64KiB}\n",
    )
    proxy.canaries[:] = [key, mine]
    deep = b'{"a":' * 100 + b"1" + b"}" * 100
    refused = [
        ("POST", "/json/1", [], b"{}", "bad_request"),
        ("POST", "/json/2", ["Content-Type: text/plain"], b"{}", "bad_request"),
        ("POST", "/json/3", [JSON + "; charset=utf-16"], b"{}", "bad_request"),
        ("POST", "/json/4", [JSON, "Content-Encoding: gzip"], b"{}", "bad_request"),
        ("POST", "/json/5", [JSON, JSON], b"{}", "bad_request"),
        ("POST", "/json/6", [JSON], b'{"auth":{"key":1,"k\\u0065y":2}}', "bad_request"),
        ("POST", "/json/7", [JSON], b'{"auth":[]}', "bad_request"),
        ("POST", "/json/8", [JSON], b"[]", "bad_request"),
        ("POST", "/json/9", [JSON], b'{"a":NaN}', "bad_request"),
        ("POST", "/json/10", [JSON], b"\xef\xbb\xbf{}", "bad_request"),
        ("POST", "/json/11", [JSON], b'{"a":"\xff"}', "bad_request"),
        ("POST", "/json/12", [JSON], deep, "bad_request"),
        ("GET", "/json/13", [JSON], b"", "bad_request"),
        ("POST", "/form/1", [JSON], b"{}", "bad_request"),
        ("POST", "/form/2", ["Content-Type: multipart/form-data; boundary=x"], b"--x--", "bad_request"),
        ("POST", "/form/3", [FORM], b"a=1;api_key=2", "bad_request"),
        ("POST", "/strict/ostiary-placeholder/a", [JSON], b'{"key":"%b"}' % mine.encode(), "caller_credentials"),
        ("POST", "/strict/own-key-of-the-caller/a", [JSON], b"{}", "caller_credentials"),
        ("POST", "/strict/ostiary-placeholder/a", [JSON, f"Cookie: a=b; sid={mine}"], b"{}", "caller_credentials"),
        ("POST", "/strict-form", [FORM], f"key={mine}".encode(), "caller_credentials"),
        ("GET", "/strict/a%2fb/c", [], b"", "path_denied"),
        ("GET", "/split/ostiary-placeholder/y", [], b"", "secret_malformed"),
        ("GET", "/crumb", [], b"", "secret_malformed"),
    ]
    for method, path, fields, body, code in refused:
        with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
            answer = send(raw, f"{method} {path} HTTP/1.1", fields, body)
        assert answer.code == code, (path, answer.code, answer.body)
        assert mine.encode() not in answer.body
    assert api.connections == 0

    for head, body in (
        (f"Content-Length: {1 << 20}", b""),
        ("Transfer-Encoding: chunked", b"10001\r\n" + b"x" * 0x10001 + b"\r\n"),
    ):
        with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
            raw.send(f"POST /json/large HTTP/1.1\r\nHost: api.test\r\n{JSON}\r\n{head}\r\n\r\n".encode() + body)
            assert raw.answer().code == "body_too_large"
    assert api.connections == 0
    assert not proxy.audit("credential.opened") or all(
        record["path"].startswith(("/split", "/crumb")) for record in proxy.audit("credential.opened")
    )

    # Chunked, in pieces, over both protocols: it leaves whole, once, with a length.
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(f"POST /json/a HTTP/1.1\r\nHost: api.test\r\n{JSON}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for piece in (b'{"au', b'th":{"x":1},', b'"big":"' + b"y" * 60_000 + b'"}'):
            raw.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        raw.send(b"0\r\nX-Late: 1\r\n\r\n")
        assert raw.answer().status == 200
        (seen,) = api.requests
        assert seen.body.startswith(b'{"auth":{"x":1,"key": "%b"},"big":"yyy' % key.encode())
        assert (seen.get("Transfer-Encoding"), seen.get("Content-Length")) == (None, str(seen.body_bytes))
        assert not seen.trailers
        answer = send(raw, "POST /strict/ostiary-placeholder/a?b=c HTTP/1.1", [JSON, "Cookie: a=b"], b'{"key":""}')
        assert answer.status == 200
        seen = api.requests[-1]
        assert (seen.target, seen.body) == (f"/strict/{key}/a?b=c", b'{"key":"%b"}' % key.encode())
        assert seen.get("Cookie") == f"a=b; sid={key}"
        assert send(raw, "POST /form/a HTTP/1.1", [FORM], f"api_key={mine}".encode()).status == 200
        assert api.requests[-1].body == f"api_key={key}".encode()
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        http2 = Http2(raw)
        stream = http2.send("POST", "/json/b", ("content-type", "application/json"), body=b'{"a":1}')
        assert http2.answer(stream).headers[":status"] == "200"
    assert api.requests[-1].body == b'{"a":1,"auth": {"key": "%b"}}' % key.encode()
    closed = {record["path"]: record for record in proxy.wait_audit("credential.closed", 5)}
    assert closed["/form/a"]["caller_credential"] == "form:api_key"
    assert "caller_credential" not in closed["/json/a"]
    told = [line for line in proxy.stderr.decode().splitlines() if "still holds a key" in line]
    assert len(told) == 1
    assert "form:api_key" in told[0]


@pytest.mark.parametrize("framing", ["Content-Length: 11", "Transfer-Encoding: chunked"])
def test_a_body_that_is_cut_off_never_leaves(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], framing: str
) -> None:
    api, key = upstream(), canary()
    proxy = ostiary(BODIES, upstreams={"api.test:443": api.port}, secrets={"secret/egress/own": {"key": key}})
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(f"POST /json/cut HTTP/1.1\r\nHost: api.test\r\n{JSON}\r\n{framing}\r\n\r\n".encode())
        raw.send(b"5\r\n" * ("chunked" in framing) + b'{"a":')
    (refused,) = proxy.wait_audit("request.refused")
    assert refused["outcome"] == "client_gone"
    assert api.connections == 0
    assert not proxy.audit("credential.opened")
