"""G15, G16, G19, G52 of routes that sign: what is signed is what leaves, and what cannot be signed does not leave."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import socket
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.harness.canaries import canary
from tests.harness.client import Answer, Raw, get, tunnel
from tests.harness.http2 import Http2
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, Upstream, Wire

CAP = 64 * 1024
POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  profile:
    match: {host: api.test, paths: "/v1/**"}
    allow: billing
    secret: {path: secret/egress/api, field: key}
    inject: {header: X-Key-Id, value: "{secret.id}"}
    sign: {hmac: {key: "{secret}", headers: [content-type, content-length, x-key-id], host: true, nonce: true}}
  cookies:
    match: {host: api.test, paths: /cookies}
    allow: billing
    secret: {path: secret/egress/api, field: key}
    sign: {hmac: {key: "{secret}", template: "{method} {target} {timestamp} {header.cookie}"}}
  inside:
    match: {host: api.test, paths: "/inside/**"}
    allow: billing
    secret: {path: secret/egress/api, field: key}
    inject: {json: /auth/key, value: "{secret.id}"}
    sign: {hmac: {key: "{secret}", headers: [content-type, content-length, x-key-id], host: true, nonce: true}}
  broken:
    match: {host: api.test, paths: "/broken/**"}
    allow: billing
    secret: {path: secret/egress/broken, field: key}
    sign: {hmac: {key: "{secret}"}}
  absent:
    match: {host: api.test, paths: "/absent/**"}
    allow: billing
    secret: {path: secret/egress/nothing, field: key}
    sign: {hmac: {key: "{secret}"}}
  exchange:
    match: {host: api.test, paths: "/api/v3/**"}
    allow: billing
    secret: {path: secret/egress/api, field: key}
    inject: {header: X-MBX-APIKEY, value: "{secret.id}"}
    sign: {hmac: {key: "{secret}", template: "{query}{body}", timestamp: milliseconds, names: {signature: "query:signature", timestamp: "query:timestamp"}}}
  message:
    match: {host: api.test, paths: "/message/**"}
    allow: billing
    secret: {path: secret/egress/message, field: pem}
    sign:
      http_message: {key_id: key-1, algorithm: ed25519, key: "{secret}", components: ["@method", "@target-uri", "content-type", "content-digest"], expires: 300s}
  objects:
    match: {host: api.test, paths: "/objects/**"}
    allow: billing
    secret: {path: secret/egress/aws}
    sign: {aws_sigv4: {access_key_id: "{secret.id}", secret_access_key: "{secret.key}", session_token: "{secret.token}", regions: eu-west-1, services: s3}}
  plain:
    match: {host: api.test, port: 80}
    allow: billing
    secret: {path: secret/egress/api, field: key}
    sign: {hmac: {key: "{secret.id}"}}
"""


def shown(seen: Seen, wire: Wire) -> None:
    """Like an API that answers an error with what it got."""
    wire.answer(200, b"hello" if seen.get("X-Show") is None else json.dumps(seen.headers).encode())


class Signed:
    """A proxy that signs, and what its upstream saw."""

    def __init__(self, ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
        self.key, self.id = canary(), "key-id-1"
        self.private = Ed25519PrivateKey.generate()
        pem = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.aws, self.token = canary(), f"{canary()}/+=="
        self.api = upstream(shown, alpn=("http/1.1",))
        self.proxy = ostiary(
            POLICY,
            upstreams={"api.test:443": self.api.port, "api.test:80": self.api.port},
            secrets={
                "secret/egress/api": {"key": self.key, "id": self.id},
                "secret/egress/broken": {"key": "ends in a line end\n"},
                "secret/egress/message": {"pem": pem},
                "secret/egress/aws": {"id": "AKIAEXAMPLE", "key": self.aws, "token": self.token},
            },
            settings=f"limits: {{buffered_body: {CAP // 1024}KiB, buffers: 32MiB, idle_timeout: 3s}}\n",
        )
        # What every request shows by design.
        self.proxy.canaries.remove(self.id)
        self.proxy.canaries.remove("AKIAEXAMPLE")

    def get(self, path: str, *headers: str, **given: Any) -> Answer:
        return get(self.proxy.address("sidecar"), self.proxy.ca, path, *headers, **given)

    def last(self) -> Seen:
        return self.api.requests[-1]

    def assert_profile(self, seen: Seen, body: bytes) -> None:
        """The signature is over what arrived, by code of its own."""
        names = ("content-type", "content-length", "x-key-id")
        assert seen.get("content-length") == str(len(body))
        lines = [seen.method, seen.target, "host:api.test", *(f"{name}:{seen.get(name) or ''}" for name in names)]
        lines += [
            f"x-timestamp:{seen.get('x-timestamp')}",
            f"x-nonce:{seen.get('x-nonce')}",
            hashlib.sha256(body).hexdigest(),
        ]
        wanted = hmac.new(self.key.encode(), "\n".join(lines).encode(), hashlib.sha256).hexdigest()
        assert seen.get("x-signature") == f"sha256={wanted}"
        assert seen.get("transfer-encoding") is None
        assert (seen.body_bytes, seen.body_sha256) == (len(body), hashlib.sha256(body).hexdigest())


def test_g15_g16_bodies_of_signed_routes(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    one = Signed(ostiary, upstream)
    address, ca = one.proxy.address("sidecar"), one.proxy.ca

    # With and without a body; the caller's own values of these names do not travel.
    for body in (b"", b"{}", b"x" * CAP):
        own = ("X-Signature: mine", "x_timestamp: 1", "X-Nonce: mine", "X-Key-Id: mine", "Content-Type: text/plain")
        assert one.get("/v1/a%20b?x=1&y", *own, method="POST", body=body).status == 200
        if body:
            one.assert_profile(one.last(), body)
    assert one.get("/v1/plain").status == 200
    assert one.last().get("content-length") is None
    assert re.fullmatch(r"sha256=[0-9a-f]{64}", one.last().get("x-signature") or "")

    # Chunked, in small pieces, with trailers: it leaves whole, by its length, signed over what leaves.
    with tunnel(address, ca) as raw:
        raw.send(
            b"POST /v1/c HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\nTE: trailers\r\n\r\n5;a=b\r\nhel"
        )
        raw.send(b"lo\r\n6\r\n world\r\n0\r\nX-T: 1\r\n\r\n")
        assert raw.answer().status == 200
        one.assert_profile(one.last(), b"hello world")
        assert not one.last().trailers
        # A request that was sent ahead of the answer, behind a body that is held: each has its own signature.
        raw.send(
            b"POST /v1/1 HTTP/1.1\r\nHost: api.test\r\nContent-Length: 3\r\n\r\nonePOST /v1/2 HTTP/1.1\r\nHost: api.test\r\nContent-Length: 3\r\n\r\ntwo"
        )
        assert [raw.answer().status, raw.answer().status] == [200, 200]
    one.assert_profile(one.api.requests[-2], b"one")
    one.assert_profile(one.api.requests[-1], b"two")

    # A credential inside the body is signed with it.
    json_body = ("Content-Type: application/json",)
    assert one.get("/inside/a", *json_body, method="POST", body=b'{"amount": 1}').status == 200
    seen = one.last()
    assert json.loads(seen.body) == {"amount": 1, "auth": {"key": one.id}}
    one.assert_profile(seen, seen.body)

    # The caller waits to be told to go on.
    with tunnel(address, ca) as raw:
        raw.send(b"PUT /v1/w HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100")
        raw.send(b"wait")
        assert raw.answer().status == 200
    one.assert_profile(one.last(), b"wait")

    # Over HTTP/2 too, with and without a length, with trailers.
    with tunnel(address, ca, alpn=("h2",)) as raw:
        client = Http2(raw)
        for headers, trailers in (((), ()), ((("content-length", "5"),), ()), ((), (("x-t", "1"),))):
            stream = client.send("POST", "/v1/h2", *headers, body=b"hello", trailers=trailers)
            assert client.answer(stream).headers[":status"] == "200"
            one.assert_profile(one.last(), b"hello")
            assert not one.last().trailers
        # Cookies that a caller has split are joined before they are signed, since they leave so.
        stream = client.send("GET", "/cookies", ("cookie", "a=1"), ("cookie", "b=2"))
        assert client.answer(stream).headers[":status"] == "200"
        seen = one.last()
        assert seen.get("cookie") == "a=1; b=2"
        text = f"GET /cookies {seen.get('x-timestamp')} a=1; b=2"
        assert seen.get("x-signature") == hmac.new(one.key.encode(), text.encode(), hashlib.sha256).hexdigest()
        stream = client.send("POST", "/v1/h2", body=b"x" * (CAP + 1))
        assert client.answer(stream).headers["x-ostiary-error"] == "body_too_large"

    # G15: over its cap it is refused and not a byte leaves: by its length at once, else when it has grown too far.
    before = len(one.api.requests)
    with tunnel(address, ca) as raw:
        raw.send(f"POST /v1/big HTTP/1.1\r\nHost: api.test\r\nContent-Length: {CAP + 1}\r\n\r\n".encode())
        assert raw.answer().code == "body_too_large"
    with tunnel(address, ca) as raw:
        raw.send(b"POST /v1/big HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        raw.send(b"%x\r\n%b\r\n" % (CAP, b"x" * CAP) + b"1\r\nx\r\n")
        answer = raw.answer()
        assert (answer.status, answer.code) == (413, "body_too_large")
    # G16: a body that breaks off, does not come, or is not framed.
    with tunnel(address, ca) as raw:
        raw.send(b"POST /v1/cut HTTP/1.1\r\nHost: api.test\r\nContent-Length: 10\r\n\r\nhalf")
        raw.sock.shutdown(socket.SHUT_WR)
    with tunnel(address, ca) as raw:
        raw.send(b"POST /v1/late HTTP/1.1\r\nHost: api.test\r\nContent-Length: 10\r\n\r\nhalf")
        answer = raw.answer()
        assert (answer.status, answer.code) == (408, "request_timeout")
    with tunnel(address, ca) as raw:
        raw.send(b"POST /v1/bad HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        # An answer or a cut: one engine tells the caller what is wrong with its framing, the other closes.
        with contextlib.suppress(ConnectionError):
            assert raw.answer().code == "bad_request"
    # What a signer cannot do is a refusal, and nothing leaves either.
    assert one.get("/broken/x", method="POST", body=b"x").code == "secret_malformed"
    assert one.get("/absent/x", method="POST", body=b"x").code == "secret_missing"
    assert one.get("/message/x", method="POST", body=b"x").code == "bad_request"
    assert (
        one.get("/objects/x", "Authorization: AWS4-HMAC-SHA256 Credential=mine", method="PUT", body=b"x").code
        == "bad_request"
    )
    assert len(one.api.requests) == before

    # Records of these: nothing was opened for a body that never was whole, and what was opened is closed.
    opened = {record["id"] for record in one.proxy.audit("credential.opened")}
    closed = one.proxy.wait_audit("credential.closed", len(opened))
    assert opened == {record["id"] for record in closed}
    refused = {record["path"] for record in one.proxy.audit("request.refused")}
    assert {"/v1/big", "/v1/late"} <= refused
    whole = next(record for record in closed if record["path"] == "/v1/w")
    assert (whole["bytes_in"], whole["payload_sha256"]) == (4, hashlib.sha256(b"wait").hexdigest())
    assert one.key.encode() not in bytes(one.api.raw)


def test_signers_sign_what_leaves(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    one = Signed(ostiary, upstream)
    address, ca = one.proxy.address("sidecar"), one.proxy.ca

    # A signature in the query: what the caller sent there is gone, what stays is byte for byte what was signed.
    assert one.get("/api/v3/order?symbol=A%2fB&signature=mine&timestamp=1&x", method="POST", body=b"q=1").status == 200
    seen = one.last()
    match = re.fullmatch(r"/api/v3/order\?(symbol=A%2fB&x&timestamp=[0-9]{13})&signature=([0-9a-f]{64})", seen.target)
    assert match, seen.target
    assert hmac.new(one.key.encode(), f"{match[1]}q=1".encode(), hashlib.sha256).hexdigest() == match[2]
    assert seen.get("x-mbx-apikey") == one.id

    # An HTTP message signature, over a digest of the body; one of the caller's own is gone.
    own = (
        "Signature: sig1=:AAAA:",
        "Signature-Input: sig1=()",
        "Content-Digest: sha-256=:AAAA:",
        "Content-Type: text/plain",
    )
    assert one.get("/message/x?y=1", *own, method="POST", body=b"hello").status == 200
    seen = one.last()
    digest = "sha-256=:" + base64.b64encode(hashlib.sha256(b"hello").digest()).decode() + ":"
    assert seen.get("content-digest") == digest
    params = (seen.get("signature-input") or "").removeprefix("sig1=")
    assert re.search(r';created=(\d+);expires=(\d+);alg="ed25519";keyid="key-1"$', params)
    base = f'"@method": POST\n"@target-uri": https://api.test/message/x?y=1\n"content-type": text/plain\n"content-digest": {digest}\n"@signature-params": {params}'
    signature = base64.b64decode((seen.get("signature") or "").removeprefix("sig1=:").removesuffix(":"))
    one.private.public_key().verify(signature, base.encode())

    # An upload of S3 in signed chunks: each is signed anew as it passes; what is wrong in the middle is cut, not passed on.
    authorization = "Authorization: AWS4-HMAC-SHA256 Credential=A/20260101/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=00"
    head = (authorization, "x-amz-content-sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "Content-Encoding: aws-chunked")
    body = b"".join(
        b"%x;chunk-signature=%b\r\n%b\r\n" % (len(part), b"0" * 64, part) for part in (b"a" * 9000, b"b", b"")
    )
    # What the caller calls a session token does not travel; ours does, and does not come back.
    echoed = one.get("/objects/k", "X_Amz_Security_Token: mine", "X-Show: yes")
    assert one.last().get("x-amz-security-token") == one.token
    assert one.last().get("x_amz_security_token") is None
    assert one.token[:-4].encode() not in echoed.body
    assert b"x-amz-security-token" in echoed.body.lower()
    assert one.get("/objects/k", *head, "x-amz-decoded-content-length: 9001", method="PUT", body=body).status == 200
    seen = one.last()
    assert seen.body_bytes == len(body)
    seed = (seen.get("authorization") or "").rpartition("Signature=")[2]
    stamp, place = seen.get("x-amz-date") or "", f"{(seen.get('x-amz-date') or '')[:8]}/eu-west-1/s3/aws4_request"
    key = f"AWS4{one.aws}".encode()
    for step in place.split("/"):
        key = hmac.new(key, step.encode(), hashlib.sha256).digest()
    for part, found in zip(
        (b"a" * 9000, b"b", b""), re.findall(rb"chunk-signature=([0-9a-f]{64})", seen.body), strict=True
    ):
        text = "\n".join(
            [
                "AWS4-HMAC-SHA256-PAYLOAD",
                stamp,
                place,
                seed,
                hashlib.sha256(b"").hexdigest(),
                hashlib.sha256(part).hexdigest(),
            ]
        )
        seed = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        assert found.decode() == seed
    wrong = body.replace(b"1;chunk", b"2;chunk")
    assert (
        one.get("/objects/k", *head, "x-amz-decoded-content-length: 9001", method="PUT", body=wrong).code
        == "bad_request"
    )
    assert not one.last().complete or one.last().body_bytes == len(body)
    big = b"%x;chunk-signature=%b\r\n" % (CAP + 1, b"0" * 64) + b"a" * 100
    with tunnel(address, ca) as raw:
        fields = "\r\n".join((*head, f"x-amz-decoded-content-length: {CAP + 1}", "Content-Length: 200000"))
        raw.send(f"PUT /objects/k HTTP/1.1\r\nHost: api.test\r\n{fields}\r\n\r\n".encode() + big)
        assert raw.answer().code == "body_too_large"

    # A signed route over plain http: nothing leaves unsigned, and nothing is signed for everybody to read.
    before = one.api.connections
    with Raw(address) as raw:
        assert raw.request("GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n").code == "access_denied"
    assert one.api.connections == before
    assert one.key.encode() not in bytes(one.api.raw)
    assert one.aws.encode() not in bytes(one.api.raw)


def test_an_upstream_of_http2_gets_what_was_signed(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api, key = upstream(alpn=("h2",)), canary()
    policy = """
workloads: {billing: {proofs: {any: true}}}
routes:
  api:
    match: {host: api.test}
    allow: billing
    http2: prefer
    secret: {path: secret/egress/api, field: key}
    sign: {hmac: {key: "{secret}", host: true, headers: [content-type]}}
"""
    proxy = ostiary(policy, upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": key}})
    answer = get(proxy.address("sidecar"), proxy.ca, "/v1?x=1", "Content-Type: a/b", method="POST", body=b"hello")
    assert answer.status == 200
    seen = api.requests[-1]
    assert seen.http2
    text = f"POST\n/v1?x=1\nhost:api.test\ncontent-type:a/b\nx-timestamp:{seen.get('x-timestamp')}\n{hashlib.sha256(b'hello').hexdigest()}"
    assert seen.get("x-signature") == "sha256=" + hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()
    assert seen.get(":authority") == "api.test"
    assert seen.body_sha256 == hashlib.sha256(b"hello").hexdigest()


def test_a_request_that_is_sent_again_is_signed_again(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    first, second = canary(), canary()
    key = [first]

    def script(seen: Seen, wire: Wire) -> None:
        text = f"{seen.method} {seen.target} {seen.get('x-timestamp')} {seen.get('x-nonce')}"
        wanted = "sha256=" + hmac.new(key[0].encode(), text.encode(), hashlib.sha256).hexdigest()
        wire.answer(200 if seen.get("x-signature") == wanted else 401)

    policy = """
workloads: {billing: {proofs: {any: true}}}
routes:
  api:
    match: {host: api.test}
    allow: billing
    secret: {path: secret/egress/api, field: key}
    sign: {hmac: {key: "{secret}", nonce: true, prefix: "sha256=", template: "{method} {target} {timestamp} {nonce}"}}
"""
    api = upstream(script)
    proxy = ostiary(policy, upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": first}})
    address, ca = proxy.address("sidecar"), proxy.ca
    assert get(address, ca, "/a").status == 200
    proxy.set_secret("secret/egress/api", "key", second)
    key[0] = second
    assert get(address, ca, "/b").status == 200
    old, new = api.requests[-2:]
    assert old.get("x-nonce") != new.get("x-nonce")
    closed = proxy.wait_audit("credential.closed", 3)
    assert [record["status"] for record in closed] == [200, 401, 200]
