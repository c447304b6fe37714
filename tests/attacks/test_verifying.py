"""G38: signed requests and webhooks that were replayed, aged or altered. Each is refused, and the upstream sees nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.e2e.test_websocket import HANDSHAKE, switching
from tests.harness.canaries import canary
from tests.harness.client import Answer, Raw, get, tunnel
from tests.harness.http2 import Http2
from tests.harness.ostiary_process import Ostiary
from tests.harness.ports import refusing_port
from tests.harness.senders import (
    Message,
    Sns,
    github,
    mac,
    now_s,
    profile,
    public_pem,
    slack,
    standard,
    stripe,
    twilio,
    whpk,
)
from tests.harness.upstream import Cleartext, Seen, Upstream, Wire, serving

CAP = 64 * 1024
POLICY = """
workloads: {billing: {proofs: [{any: true}]}}
routes:
  signed:
    match: {host: api.test, paths: ["/v1", "/v1/**", /live]}
    allow: billing
    secrets: {key: {path: secret/egress/api, field: key}, keys: {path: secret/verify/billing}}
    inject: {bearer: "{key}"}
    verify: {hmac: {keys: ["{keys.current}", "{keys.previous}"], host: true, headers: [content-type]}}
  queried:
    match: {host: api.test, paths: "/query/**"}
    allow: billing
    secrets: {keys: {path: secret/verify/billing}}
    verify: {hmac: {keys: "{keys.current}", nonce: false, names: {signature: "query:signature", timestamp: "query:timestamp"}, template: "{method} {target} {timestamp} {body}", encoding: base64url, timestamp: milliseconds}}
  messages:
    match: {host: api.test, paths: "/message/**"}
    allow: billing
    secrets: {key: {path: secret/egress/api, field: key}, keys: {path: secret/verify/message}}
    inject: {header: X-Api-Key, value: "{key}"}
    verify: {http_message: {keys: {k1: "{keys.current}", k0: "{keys.previous}"}, algorithm: ed25519, components: ["@method", "@target-uri", "content-digest"]}}
  stripe: {match: {paths: /stripe}, listener: hooks, upstream: "http://receiver.test:8080", allow: verified, secrets: {keys: {path: secret/verify/stripe}}, verify: {stripe: {keys: ["{keys.current}", "{keys.previous}"]}}}
  github: {match: {paths: /github}, listener: hooks, upstream: "http://receiver.test:8080", allow: verified, secrets: {keys: {path: secret/verify/github}}, verify: {github: {keys: "{keys.current}"}}}
  slack: {match: {paths: /slack}, listener: hooks, upstream: "http://receiver.test:8080", allow: verified, secrets: {keys: {path: secret/verify/slack}}, verify: {slack: {keys: "{keys.current}"}}}
  twilio: {match: {paths: /twilio}, listener: hooks, upstream: "http://receiver.test:8080", allow: verified, secrets: {keys: {path: secret/verify/twilio}}, verify: {twilio: {keys: "{keys.current}", origin: "https://hooks.example.com"}}}
  standard: {match: {paths: /standard}, listener: hooks, upstream: "http://receiver.test:8080", allow: verified, secrets: {keys: {path: secret/verify/standard}}, verify: {standard_webhooks: {keys: ["{keys.current}", "{keys.public}"]}}}
  first: {match: {paths: /first}, listener: hooks, upstream: "http://receiver.test:8080", allow: verified, secrets: {keys: {path: secret/verify/billing}}, verify: {hmac: {keys: ["{keys.current}", "{keys.previous}"], template: "{timestamp}.{nonce}.{body}"}}}
  second: {match: {paths: /second}, listener: hooks, upstream: "http://receiver.test:8080", allow: verified, secrets: {now: {path: secret/verify/stripe, field: current}, then: {path: secret/verify/billing, field: current}}, verify: {hmac: {keys: ["{now}", "{then}"], template: "{timestamp}.{nonce}.{body}"}}}
  bare: {match: {paths: /bare}, listener: hooks, upstream: "http://receiver.test:8080", allow: verified, secrets: {keys: {path: secret/verify/billing}}, verify: {hmac: {keys: "{keys.current}", template: "{method} {path} {timestamp} {nonce}"}}}
  sns: {match: {paths: /sns}, listener: hooks, upstream: "http://receiver.test:8080", allow: verified, verify: {sns: {topics: "arn:aws:sns:eu-west-1:123456789012:orders"}}}
"""
LISTEN = '[{name: sidecar, bind: "127.0.0.1:0", workload: billing}, {name: hooks, bind: "127.0.0.1:0", mode: reverse}]'
HOOK = b'{"id": "evt_1",  "text": "\xc3\xa9"}'


def shown(seen: Seen, wire: Wire) -> None:
    """Answers; a handshake as a server of WebSockets, and 401 where it is asked for."""
    if seen.get("upgrade") is not None:
        switching()(seen, wire)
    else:
        wire.answer(401 if seen.get("X-Say") else 200, b"hello")


class Verified:
    """A proxy that wants signatures, its upstream and a receiver."""

    def __init__(
        self,
        ostiary: Callable[..., Ostiary],
        upstream: Callable[..., Upstream],
        receiver: Upstream,
        settings: str = "",
        **more: str,
    ) -> None:
        self.key, self.previous, self.credential = canary(), canary(), canary()
        self.hooks = {name: canary() for name in ("stripe", "stripe_before", "github", "slack", "twilio")}
        self.shared = hashlib.sha256(canary().encode()).digest()
        self.private, self.before, self.whpk = (Ed25519PrivateKey.generate() for _ in range(3))
        self.sns = Sns()
        self.asked = 0
        self.api = upstream(shown, alpn=("http/1.1",))
        self.aws = upstream(self._certificate, names=(Sns.host,))
        self.receiver = receiver
        self.proxy = ostiary(
            POLICY,
            listen=LISTEN,
            upstreams={
                "api.test:443": self.api.port,
                "receiver.test:8080": receiver.port,
                f"{Sns.host}:443": self.aws.port,
            },
            secrets={
                "secret/egress/api": {"key": self.credential},
                "secret/verify/billing": {"current": self.key, "previous": self.previous},
                "secret/verify/message": {"current": public_pem(self.private), "previous": public_pem(self.before)},
                "secret/verify/stripe": {"current": self.hooks["stripe"], "previous": self.hooks["stripe_before"]},
                "secret/verify/github": {"current": self.hooks["github"]},
                "secret/verify/slack": {"current": self.hooks["slack"]},
                "secret/verify/twilio": {"current": self.hooks["twilio"]},
                "secret/verify/standard": {
                    "current": "whsec_" + base64.b64encode(self.shared).decode(),
                    "public": whpk(self.whpk),
                },
            },
            settings=f"limits: {{buffered_body: {CAP // 1024}KiB, buffers: 32MiB}}\n{settings}",
            **more,
        )

    def _certificate(self, seen: Seen, wire: Wire) -> None:
        self.asked += 1
        wire.answer(200, self.sns.pem) if seen.target == Sns.path else wire.answer(404)

    def get(self, path: str, headers: list[str], method: str = "GET", body: bytes = b"") -> Answer:
        return get(self.proxy.address("sidecar"), self.proxy.ca, path, *headers, method=method, body=body)

    def hook(self, path: str, headers: list[str], body: bytes = HOOK, *, chunked: bool = False) -> Answer:
        address = self.proxy.address("hooks")
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        lines = [f"POST {path} HTTP/1.1", f"Host: {address}", *headers, framing]
        sent = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n" if chunked else body
        with Raw(address) as raw:
            return raw.request(("\r\n".join(lines) + "\r\n\r\n").encode() + sent)

    def saw(self) -> int:
        return len(self.api.requests) + len(self.receiver.requests)


@pytest.fixture
def receiver() -> Iterator[Upstream]:
    with serving(Upstream(Cleartext(), shown)) as one:
        yield one


def refused(one: Verified, answer: Answer, code: str = "signature_invalid", status: int = 401) -> None:
    assert (answer.status, answer.code) == (status, code), answer.body


def test_g38_signed_requests(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], receiver: Upstream
) -> None:
    one = Verified(ostiary, upstream, receiver)
    key, body, typed = one.key, b'{"size": 1}', ("content-type:a/b",)
    kind = ["Content-Type: a/b"]

    # Present and previous key, with a body and without; the signature ends here, the credential is put.
    for number, used in enumerate((key, one.previous), 1):
        made = profile(used, "POST", "/v1/x?a=1&b", body, lines=typed)
        answer = one.get("/v1/x?a=1&b", made + kind, "POST", body)
        assert answer.status == 200, answer.body
        seen = one.api.requests[-1]
        assert (len(one.api.requests), seen.target, seen.body) == (number, "/v1/x?a=1&b", body)
        assert seen.get("authorization") == f"Bearer {one.credential}"
        assert [seen.get(name) for name in ("x-signature", "x-timestamp", "x-nonce")] == [None] * 3
    assert one.get("/v1", profile(key, "GET", "/v1", lines=("content-type:",))).status == 200
    opened = one.proxy.wait_audit("credential.opened", 6)
    assert [record["secret"] for record in opened] == ["secret/verify/billing", "secret/egress/api"] * 3
    assert [record.get("use") for record in opened] == ["verify", None] * 3
    closed = one.proxy.wait_audit("credential.closed", 6)
    assert {record["outcome"] for record in closed} == {"ok"}

    before = one.saw()
    good = profile(key, "POST", "/v1/x?a=1", body, lines=typed)
    assert one.get("/v1/x?a=1", good + kind, "POST", body).status == 200
    before += 1
    refused(one, one.get("/v1/x?a=1", good + kind, "POST", body), "replayed")
    # Whatever else was signed with this nonce is a replay too; and one that is not signed cannot use it up.
    nonce = "abcdef0123456789"
    forged = profile("another key", "GET", "/v1", nonce=nonce, lines=("content-type:",))
    refused(one, one.get("/v1", forged))
    assert one.get("/v1", profile(key, "GET", "/v1", nonce=nonce, lines=("content-type:",))).status == 200
    before += 1
    refused(one, one.get("/v1", profile(key, "GET", "/v1", nonce=nonce, lines=("content-type:",))), "replayed")

    def fresh(method: str = "POST", target: str = "/v1/x?a=1", sent: bytes = body, **given: object) -> list[str]:
        return profile(key, method, target, sent, lines=typed, **given) + kind  # type: ignore[arg-type]  # by name

    old, ahead = fresh(at_s=now_s() - 301 - 30), fresh(at_s=now_s() + 301 + 30)
    signature, stamp, once, _ = fresh()
    attacks: list[tuple[str, list[str], str, bytes]] = [
        ("/v1/x?a=1", old, "POST", body),
        ("/v1/x?a=1", ahead, "POST", body),
        ("/v1/x?a=1", fresh(), "POST", body + b" "),
        ("/v1/x?a=1", fresh(), "POST", b""),
        ("/v1/x?a=2", fresh(), "POST", body),
        ("/v1/x", fresh(), "POST", body),
        ("/v1/x?a=1&b", fresh(), "POST", body),
        ("/v1/y?a=1", fresh(), "POST", body),
        ("/v1/x?a=1", fresh(), "PUT", body),
        ("/v1/x?a=1", fresh(host="other.test"), "POST", body),
        ("/v1/x?a=1", [*fresh()[:3], "Content-Type: c/d"], "POST", body),
        ("/v1/x?a=1", [*fresh(), "Content-Type: a/b"], "POST", body),
        # What was signed would not leave; what leaves would be read in its place.
        ("/v1/x?a=1", [*fresh(), "Connection: keep-alive, Content-Type"], "POST", body),
        ("/v1/x?a=1", [*fresh(), "Content_Type: c/d"], "POST", body),
        ("/v1/x?a=1", kind, "POST", body),
        ("/v1/x?a=1", [signature[:-1], stamp, once, *kind], "POST", body),
        ("/v1/x?a=1", [signature[:-2], stamp, once, *kind], "POST", body),
        ("/v1/x?a=1", ["X-Signature: sha256=", stamp, once, *kind], "POST", body),
        ("/v1/x?a=1", ["X-Signature: sha256=zz", stamp, once, *kind], "POST", body),
        ("/v1/x?a=1", [signature.replace("sha256=", "sha512="), stamp, once, *kind], "POST", body),
        ("/v1/x?a=1", [signature, signature, stamp, once, *kind], "POST", body),
        ("/v1/x?a=1", [signature, "x-signature: sha256=00", stamp, once, *kind], "POST", body),
        ("/v1/x?a=1", [signature, stamp, stamp, once, *kind], "POST", body),
        ("/v1/x?a=1", [signature, stamp, once, once, *kind], "POST", body),
        ("/v1/x?a=1", [signature, stamp, *kind], "POST", body),
        ("/v1/x?a=1", [signature, stamp, "X-Nonce: other", *kind], "POST", body),
        ("/v1/x?a=1", [signature, stamp, f"X-Nonce: {'n' * 257}", *kind], "POST", body),
        ("/v1/x?a=1", [signature, "X-Timestamp: 1e9", once, *kind], "POST", body),
        ("/v1/x?a=1", [signature, "X-Timestamp: -1", once, *kind], "POST", body),
        ("/v1/x?a=1", [f"X-Signature: sha256={'0' * 20_000}", stamp, once, *kind], "POST", body),
    ]
    for number, (path, headers, method, sent) in enumerate(attacks):
        answer = one.get(path, headers, method, sent)
        assert (answer.status, answer.code) == (401, "signature_invalid"), (number, answer.status, answer.body)
        assert one.saw() == before, number
    huge = [f"X-Signature: sha256={'0' * 70_000}", stamp, once, *kind]
    assert one.get("/v1/x?a=1", huge, "POST", body).status == 431
    # Over its cap a body is refused, never taken unread; one at its cap is verified like any other.
    large = b"x" * (CAP + 1)
    refused(one, one.get("/v1", fresh(target="/v1", sent=large), "POST", large), "body_too_large", 413)
    assert one.saw() == before
    assert one.get("/v1", fresh(target="/v1", sent=large[1:]), "POST", large[1:]).status == 200
    before += 1

    # In the query; the parameter of the signature alone is taken out of what was signed, and nothing of it leaves.
    def queried(at_ms: int, extra: str = "") -> str:
        target = f"/query/x?a=1&timestamp={at_ms}"
        text = f"POST {target} {at_ms} ".encode() + body
        signature = base64.urlsafe_b64encode(mac(key.encode(), text)).rstrip(b"=")
        return f"{target}&signature={signature.decode()}{extra}"

    at_ms = now_s() * 1000
    assert one.get(queried(at_ms), [], "POST", body).status == 200
    assert one.api.requests[-1].target == "/query/x?a=1"
    before += 1
    for target in (queried(at_ms, "&b=1"), queried(at_ms, "&signature=x"), queried(at_ms - 400_000), "/query/x?a=1"):
        refused(one, one.get(target, [], "POST", body))

    # A handshake is a request like any other; what follows on the connection is not signed.
    made = profile(key, "GET", "/live?x=1", lines=("content-type:",))
    with tunnel(one.proxy.address("sidecar"), one.proxy.ca) as raw:
        raw.send((HANDSHAKE + "\r\n".join([*made, "", ""])).encode())
        assert raw.head().status == 101
        assert one.api.requests[-1].get("authorization") == f"Bearer {one.credential}"
    with tunnel(one.proxy.address("sidecar"), one.proxy.ca) as raw:
        refused(one, raw.request(HANDSHAKE + "\r\n".join([*made, "", ""])), "replayed")
    before += 1
    before += _http2(one)
    _messages(one, before)
    refusals = one.proxy.audit("request.refused")
    assert {record["code"] for record in refusals} >= {"signature_invalid", "headers_too_large", "body_too_large"}
    last = [record for record in one.proxy.audit("credential.closed") if record.get("code") == "replayed"]
    assert last
    assert {record["secret"] for record in last} <= {"secret/verify/billing", "secret/verify/message"}
    assert f'ostiary_refusals_total{{code="replayed"}} {len(last)}.0' in one.proxy.get("/metrics")[1].decode()


def _http2(one: Verified) -> int:
    """The same over HTTP/2, where the host is a pseudo field."""
    with tunnel(one.proxy.address("sidecar"), one.proxy.ca, alpn=("h2",)) as raw:
        connection = Http2(raw)
        made = [
            (name.lower(), value)
            for name, _, value in (
                line.partition(": ") for line in profile(one.key, "GET", "/v1/h2", lines=("content-type:",))
            )
        ]
        paths = ("/v1/h2", "/v1/h2", "/v1/other")
        heads = [connection.answer(connection.send("GET", path, *made)).headers for path in paths]
        call = connection.send("POST", "/v1/grpc", *made, ("content-type", "application/grpc"), ends=False)
        assert connection.answer(call).headers["x-ostiary-error"] == "bad_request"
    assert [(head[":status"], head.get("x-ostiary-error")) for head in heads] == [
        ("200", None),
        ("401", "replayed"),
        ("401", "signature_invalid"),
    ]
    assert one.api.requests[-1].target == "/v1/h2"
    return 1


def _messages(one: Verified, before: int) -> None:
    """RFC 9421."""
    body = b'{"size": 2}'

    def sent(message: Message, path: str = "/message/x?a=1", method: str = "POST", given: bytes = body) -> Answer:
        return one.get(path, message.headers("POST", "/message/x?a=1", body), method, given)

    assert sent(Message(one.private)).status == 200
    seen = one.api.requests[-1]
    assert (seen.body, seen.get("x-api-key")) == (body, one.credential)
    assert [seen.get(name) for name in ("signature", "signature-input")] == [None, None]
    assert sent(Message(one.before, "k0")).status == 200
    before += 2
    again = Message(one.private)
    assert sent(again).status == 200
    before += 1
    refused(one, sent(again), "replayed")
    for number, (message, path, method, given) in enumerate(
        (
            (Message(one.private, created=now_s() - 330), None, "POST", body),
            (Message(one.private, created=now_s() + 330), None, "POST", body),
            (Message(one.private, expires=now_s() - 1), None, "POST", body),
            (Message(one.private, nonce=None), None, "POST", body),
            (Message(one.private, "k0"), None, "POST", body),
            (Message(one.private, "k2"), None, "POST", body),
            (Message(one.private, alg="hmac-sha256"), None, "POST", body),
            (Message(one.private, covers=("@method", "@target-uri")), None, "POST", body),
            (Message(one.private, covers=("@method", "@path", "content-digest")), None, "POST", body),
            (Message(one.private, uri="https://other.test"), None, "POST", body),
            (Message(one.private), "/message/x?a=2", "POST", body),
            (Message(one.private), "/message/x", "POST", body),
            (Message(one.private), None, "PUT", body),
            (Message(one.private), None, "POST", body + b" "),
        )
    ):
        answer = sent(message, path or "/message/x?a=1", method, given)
        assert (answer.status, answer.code) == (401, "signature_invalid"), (number, answer.body)
    digest, inputs, signature = Message(one.private).headers("POST", "/message/x?a=1", body)
    for number, headers in enumerate(
        (
            [digest, inputs],
            [digest, signature],
            [inputs, signature],
            [digest, inputs, signature, signature],
            [digest, inputs, inputs, signature],
            [digest, inputs, signature, "Connection: content-digest"],
            [digest, inputs, signature, "Content_Digest: sha-256=:AAAA:"],
            [digest, inputs, f"{signature}, sig1=:AAAA:"],
            [digest, inputs.replace("sig1=", "sig2="), signature],
            [digest, inputs, f"{signature[:40]}:"],
            [digest, inputs, "Signature: sig1=:" + "A" * 9000 + ":"],
            [digest, "Signature-Input: sig1=(" + '"a" ' * 100 + ")", signature],
        )
    ):
        answer = one.get("/message/x?a=1", headers, "POST", body)
        assert (answer.status, answer.code) == (401, "signature_invalid"), (number, answer.body)
    assert one.saw() == before


def parted(message: bytes, **changed: str) -> bytes:
    """A message with other fields under the same signature."""
    return json.dumps(json.loads(message) | changed).encode()


def test_g38_webhooks(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], receiver: Upstream) -> None:
    one = Verified(ostiary, upstream, receiver)
    hooks, url = one.hooks, "https://hooks.example.com/twilio"
    form = "To=%2B18005551212&From=a+b&Digits="
    digest = hashlib.sha256(HOOK).hexdigest()
    good: list[tuple[str, list[str], bytes, str]] = [
        ("/stripe", stripe([hooks["stripe"]], HOOK), HOOK, "stripe-signature"),
        ("/stripe", stripe([hooks["stripe_before"], "unknown"], HOOK), HOOK, "stripe-signature"),
        ("/github", github(hooks["github"], HOOK), HOOK, "x-hub-signature-256"),
        ("/slack", slack(hooks["slack"], HOOK), HOOK, "x-slack-signature"),
        ("/twilio", twilio(hooks["twilio"], url, form), form.encode(), "x-twilio-signature"),
        (
            f"/twilio?bodySHA256={digest}",
            [*twilio(hooks["twilio"], f"https://hooks.example.com:443/twilio?bodySHA256={digest}")[:1], "Content-Type: application/json"],
            HOOK,
            "x-twilio-signature",
        ),
        ("/standard", standard(one.shared, "msg_1", HOOK), HOOK, "webhook-signature"),
        ("/standard", standard(one.whpk, "msg_1", HOOK), HOOK, "webhook-signature"),
        (
            "/sns",
            [f"x-amz-sns-topic-arn: {Sns.topic}", f"x-amz-sns-message-id: {Sns.message_id}"],
            one.sns.message("hello"),
            "signature",
        ),
        ("/sns", [], one.sns.message("hello\n\u00e9", "1", Subject="s"), "signature"),
        (
            "/sns",
            [],
            one.sns.message("m", Type="SubscriptionConfirmation", Token="t", SubscribeURL="https://x"),
            "signature",
        ),
    ]  # fmt: skip
    for number, (path, headers, body, name) in enumerate(good, 1):
        # A sender that was not answered sends the same again: it passes, and the receiver tells doubles by the id.
        for chunked in (False, True):
            answer = one.hook(path, headers, body, chunked=chunked)
            assert answer.status == 200, (path, headers, answer.body)
        assert len(one.receiver.requests) == 2 * number
        seen = one.receiver.requests[-1]
        assert (seen.target, seen.body, seen.get(name)) == (path, body, None)
        assert seen.get("host") == "receiver.test:8080"
        assert seen.get("content-length") == str(len(body))
    # What the receiver answers is its own affair: a key that we verify with is not looked for anew.
    assert one.hook("/stripe", [*stripe([hooks["stripe"]], HOOK), "X-Say: 401"]).status == 401
    assert one.receiver.requests[14].get("webhook-id") == "msg_1"
    assert one.asked == 1
    records = one.proxy.wait_audit("credential.closed", 17)
    assert {(record["route"], record["secret"]) for record in records if record["outcome"] == "ok"} == {
        (name, f"secret/verify/{name}") for name in ("stripe", "github", "slack", "twilio", "standard")
    }
    forwarded = one.proxy.wait_audit("request.forwarded", 6)
    assert {(record["workload"], record["proof"], record["route"]) for record in forwarded} == {
        ("verified", "signature", "sns")
    }
    before = one.saw()

    sns, at = one.sns, now_s()
    other = Sns()
    topic = "arn:aws:sns:eu-west-1:123456789012:others"
    bad: list[tuple[str, list[str], bytes]] = [
        *[(f"/{name}", [], HOOK) for name in ("stripe", "github", "slack", "twilio", "standard", "sns")],
        *[(path, headers, body + b" ") for path, headers, body, _ in good[:8]],
        ("/stripe", stripe([hooks["github"]], HOOK), HOOK),
        ("/stripe", stripe([hooks["stripe"]], HOOK, at - 330), HOOK),
        ("/stripe", stripe([hooks["stripe"]], HOOK, at + 330), HOOK),
        ("/stripe", [stripe([hooks["stripe"]], HOOK)[0].replace("v1=", "v0=")], HOOK),
        ("/stripe", [stripe([hooks["stripe"]], HOOK)[0] + f",t={at - 9}"], HOOK),
        ("/stripe", [*stripe([hooks["stripe"]], HOOK), *stripe([hooks["stripe"]], HOOK)], HOOK),
        ("/stripe", stripe([hooks["stripe"]] * 17, HOOK), HOOK),
        ("/stripe", ["Stripe-Signature: t=,v1="], HOOK),
        ("/github", github(hooks["github"], HOOK)[:1], HOOK),
        ("/github", [github(hooks["github"], HOOK)[1].replace("sha256=", "sha1=")], HOOK),
        ("/github", ["X-Hub-Signature-256: sha1=" + github(hooks["github"], HOOK)[0][-40:]], HOOK),
        ("/slack", slack(hooks["slack"], HOOK, at - 330), HOOK),
        ("/slack", [*slack(hooks["slack"], HOOK)[1:], f"X-Slack-Request-Timestamp: {at - 1}"], HOOK),
        ("/slack", [slack(hooks["slack"], HOOK)[0], slack(hooks["slack"], HOOK)[1].replace("v0=", "v1=")], HOOK),
        ("/twilio?a=1", twilio(hooks["twilio"], url, form), form.encode()),
        ("/twilio", twilio(hooks["twilio"], url.replace("https", "http"), form), form.encode()),
        ("/twilio", twilio(hooks["twilio"], url), HOOK),
        ("/twilio", [twilio(hooks["twilio"], url)[0], "Content-Type: application/json"], HOOK),
        ("/standard", [*standard(one.shared, "msg_1", HOOK)[1:], "webhook-id: msg_2"], HOOK),
        ("/standard", standard(one.shared, "msg_1", HOOK, at - 330), HOOK),
        ("/standard", standard(one.shared, "msg_1.5", HOOK), HOOK),
        ("/standard", standard(one.private, "msg_1", HOOK), HOOK),
        ("/standard", [*standard(one.shared, "msg_1", HOOK), "Connection: webhook-id"], HOOK),
        ("/standard", [*standard(one.shared, "msg_1", HOOK), "Webhook_Id: msg_2"], HOOK),
        ("/slack", [*slack(hooks["slack"], HOOK), "X_Slack_Request_Timestamp: 1"], HOOK),
        ("/sns", ["X_Amz_Sns_Message_Type: UnsubscribeConfirmation"], sns.message("hello")),
        ("/sns", [], sns.message("hello").replace(b"hello", b"hullo")),
        ("/sns", [], sns.message("hello")[:-1] + b', "Message": "twice"}'),
        ("/sns", [], sns.message("hello", TopicArn=topic)),
        ("/sns", [f"x-amz-sns-topic-arn: {topic}"], sns.message("hello")),
        ("/sns", ["x-amz-sns-message-type: SubscriptionConfirmation"], sns.message("hello")),
        ("/sns", [], sns.message("hello", Timestamp="2020-01-01T00:00:00.000Z")),
        ("/sns", [], sns.message("hello", "3")),
        ("/sns", [], other.message("hello")),
        # A receiver that does not look at the case of names (encoding/json of Go) takes the last of these.
        ("/sns", [], sns.message("hello")[:-1] + b', "message": "evil"}'),
        ("/sns", [], sns.message("hello")[:-1] + b', "me\xc5\xbfsage": "evil"}'),
        # By this field receivers tell doubles.
        ("/sns", ["x-amz-sns-message-id: another"], sns.message("hello")),
        # The same signed text, parted elsewhere.
        ("/sns", [], parted(sns.message("a\nMessageId\nb"), Message="a", MessageId=f"b\nMessageId\n{Sns.message_id}")),
        (
            "/sns",
            [],
            parted(
                sns.message(f"a\nMessageId\n{Sns.message_id}\nSubject\nb"),
                Message="a",
                Subject=f"b\nMessageId\n{Sns.message_id}",
            ),
        ),
        *[
            ("/sns", [], sns.message("hello", url=f"{place}{Sns.path}"))
            for place in (
                "http://sns.eu-west-1.amazonaws.com",
                "https://sns.eu-west-2.amazonaws.com",
                "https://sns.eu-west-1.amazonaws.com.evil.test",
                "https://sns.eu-west-1.amazonaws.com@evil.test",
                "https://evil.test/sns.eu-west-1.amazonaws.com",
                "https://sns.eu-west-1.amazonaws.com:444",
                "https://s3.eu-west-1.amazonaws.com",
                "https://sns.eu-west-1.amazonaws.com/..",
                "https://SNS.eu-west-1.amazonaws.com",
            )
        ],
    ]
    for number, (path, headers, body) in enumerate(bad):
        answer = one.hook(path, headers, body)
        assert (answer.status, answer.code) == (401, "signature_invalid"), (number, path, headers, answer.body)
        assert one.saw() == before, number
    assert (one.asked, other.topic) == (1, Sns.topic)
    # A certificate that is not there is no reason to go on, and is not asked for again at once.
    absent = sns.message("hello", url=f"https://{Sns.host}/SimpleNotificationService-00.pem")
    for _ in range(2):
        refused(one, one.hook("/sns", [], absent), "upstream_unreachable", 502)
    assert one.asked == 2
    # Nobody is told apart from a stranger before the signature is: refusals of one source are one record in the end.
    strangers = [record for record in one.proxy.audit("request.refused") if record["code"] == "signature_invalid"]
    assert strangers
    assert not any("workload" in record for record in strangers)
    assert all(record.get("source") == "127.0.0.1" for record in strangers)
    before = _templates(one, before)
    refused(one, one.hook("/nowhere", []), "path_denied", 403)
    assert one.saw() == before


def _templates(one: Verified, before: int) -> int:
    """A template that leaves something out: what it leaves out is not there, or the request is refused."""

    def made(text: str, body: bytes, nonce: str) -> list[str]:
        at = now_s()
        signed = f"{text} {at} {nonce}".encode() if text else b"%d.%s.%s" % (at, nonce.encode(), body)
        return [f"X-Signature: {mac(one.key.encode(), signed).hex()}", f"X-Timestamp: {at}", f"X-Nonce: {nonce}"]

    sent = made("", HOOK, "once-1")
    assert one.hook("/first", sent).status == 200
    # Two routes that take one key: the path is not signed, so the same request fits the other.
    refused(one, one.hook("/second", sent), "replayed")
    refused(one, one.hook("/first", sent), "replayed")
    assert one.hook("/second", made("", HOOK, "once-2")).status == 200
    refused(one, one.hook("/first?a=1", made("", HOOK, "once-3")))
    assert one.hook("/bare", made("POST /bare", b"", "once-4"), b"").status == 200
    refused(one, one.hook("/bare", made("POST /bare", b"", "once-5")))
    refused(one, one.hook("/bare?a=1", made("POST /bare", b"", "once-6"), b""))
    assert one.saw() == before + 3
    return before + 3


def test_g38_a_nonce_is_used_once_by_all_workers_and_never_without_state(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], receiver: Upstream
) -> None:
    one = Verified(ostiary, upstream, receiver, settings='workers: 2\nstate: {url: "sqlite:///state.db"}\n')
    lines = ("content-type:",)
    both = set[str]()
    deadline = time.monotonic() + 20
    while len(both) < 2 and time.monotonic() < deadline:
        made = profile(one.key, "GET", "/v1", lines=lines)
        answers = [one.get("/v1", made) for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 401, 401, 401]
        assert [answer.code for answer in answers[1:]] == ["replayed"] * 3
        both = {path.name for path in Path(one.proxy.folder).glob("audit*.jsonl") if b'"replayed"' in path.read_bytes()}
    assert len(both) == 2, "both workers were asked"

    # A store that cannot be asked: what needs a nonce is refused, and what does not goes on.
    with refusing_port() as port:
        alone = Verified(ostiary, upstream, receiver, settings=f'state: {{url: "redis://127.0.0.1:{port}/0"}}\n')
        before = alone.saw()
        answer = alone.get("/v1", profile(alone.key, "GET", "/v1", lines=lines))
        refused(alone, answer, "state_unavailable", 503)
        assert answer.get("Retry-After") == "1"
        refused(
            alone,
            alone.get("/message/x", Message(alone.private).headers("GET", "/message/x")),
            "state_unavailable",
            503,
        )
        assert alone.saw() == before
        assert [record["code"] for record in alone.proxy.wait_audit("credential.closed", 2)] == [
            "state_unavailable"
        ] * 2
        assert alone.hook("/stripe", stripe([alone.hooks["stripe"]], HOOK)).status == 200


def test_g56_strangers_at_a_webhook_listener_do_not_use_up_the_reserve_of_the_audit_disk(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], receiver: Upstream
) -> None:
    """Below it records are of callers who have proven who they are before a key is opened for them."""
    scarce = "audit: {sinks: [{file: audit.jsonl}], reserve: 900000000GiB}"
    one = Verified(ostiary, upstream, receiver, audit_block=scarce)
    size = (one.proxy.folder / "audit.jsonl").stat().st_size
    for path, headers in (
        ("/stripe", stripe(["guessed"], HOOK)),
        ("/github", github("guessed", HOOK)),
        ("/stripe", stripe([one.hooks["stripe"]], HOOK)),
    ):
        refused(one, one.hook(path, headers), "audit_unavailable", 503)
    assert (one.saw(), (one.proxy.folder / "audit.jsonl").stat().st_size) == (0, size)
    assert one.get("/v1", profile(one.key, "GET", "/v1", lines=("content-type:",))).status == 200
    assert len(one.proxy.wait_audit("credential.opened", 2)) == 2
