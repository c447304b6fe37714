"""Signers of P7 in the real process: what a fake that verifies thinks of them, G17 for their keys, and gRPC that is refused at once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from addons.signing.aws_asymmetric import derived
from tests.harness.canaries import canary
from tests.harness.client import Answer, get, tunnel
from tests.harness.http2 import Http2
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, Upstream, Wire

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  bound:
    match: {host: api.test, paths: "/bound/**"}
    allow: billing
    secret: {path: secret/bound, field: token}
    inject: {header: Authorization, value: "DPoP {secret}"}
    sign: {dpop: {key: "{secret.pem}"}}
  akamai:
    match: {host: api.test, paths: "/akamai/**"}
    allow: billing
    secret: {path: secret/akamai}
    sign: {edgegrid: {client_token: "{secret.client}", client_secret: "{secret.secret}", access_token: "{secret.access}"}}
  tencent:
    match: {host: api.test, paths: "/tencent/**"}
    allow: billing
    secret: {path: secret/cloud}
    sign: {tc3: {secret_id: "{secret.id}", secret_key: "{secret.key}", services: [cvm]}}
  alibaba:
    match: {host: api.test, paths: "/alibaba/**"}
    allow: billing
    secret: {path: secret/cloud}
    sign: {acs3: {access_key_id: "{secret.id}", access_key_secret: "{secret.key}"}}
  everywhere:
    match: {host: api.test, paths: "/everywhere/**"}
    allow: billing
    secret: {path: secret/cloud}
    sign: {aws_sigv4: {access_key_id: "{secret.id}", secret_access_key: "{secret.key}", session_token: "{secret.token}", regions: ["*"], services: [s3], asymmetric: true}}
  encoded:
    match: {host: api.test, paths: "/encoded/**"}
    allow: billing
    secret: {path: secret/encoded, field: key}
    sign: {hmac: {key: "{secret}", key_encoding: base64}}
"""
ID, CLIENT, ACCESS = "AKID-example", "akab-client-example", "akab-access-example"


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def verified_proof(text: str, key: ec.EllipticCurvePublicKey) -> dict[str, Any]:
    head, claims, signature = text.split(".")
    raw = unpadded(signature)
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    key.verify(der, f"{head}.{claims}".encode(), ec.ECDSA(hashes.SHA256()))
    found: dict[str, Any] = json.loads(unpadded(claims))
    return found


class Api:
    """An API that wants a nonce in each proof, a new one after each use of it in /turning, and shows what it is told to."""

    def __init__(self, key: ec.EllipticCurvePublicKey, token: str) -> None:
        self.key, self.token = key, token
        self.nonce = "nonce-1"
        self.proofs: list[dict[str, Any]] = []
        self.show = b""

    def __call__(self, seen: Seen, wire: Wire) -> None:
        if not seen.target.startswith("/bound/"):
            wire.answer(200, self.show or b"hello")
            return
        claims = verified_proof(seen.get("dpop") or "", self.key)
        self.proofs.append(claims)
        assert claims["htm"] == seen.method
        assert claims["htu"] == "https://api.test" + seen.target.partition("?")[0]
        assert (
            claims["ath"]
            == base64.urlsafe_b64encode(hashlib.sha256(self.token.encode()).digest()).rstrip(b"=").decode()
        )
        assert isinstance(claims["iat"], int)
        if claims.get("nonce") == self.nonce:
            wire.answer(200)
        elif seen.target == "/bound/denied":
            wire.answer(401, b"no", (("WWW-Authenticate", 'DPoP error="invalid_token"'),))
        else:
            challenge = ("WWW-Authenticate", 'DPoP error="use_dpop_nonce"')
            wire.answer(401, b"nonce", (challenge, ("DPoP-Nonce", self.nonce)))


def test_vendors_proofs_and_their_keys(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    token, secret, key, session = canary(), canary(), canary(), canary()
    raw = hashlib.sha256(canary().encode()).digest()
    script = Api(private.public_key(), token)
    api = upstream(script, alpn=("http/1.1",))
    proxy = ostiary(
        POLICY,
        upstreams={"api.test:443": api.port},
        secrets={
            "secret/bound": {"token": token, "pem": pem},
            "secret/akamai": {"client": CLIENT, "secret": secret, "access": ACCESS},
            "secret/cloud": {"id": ID, "key": key, "token": session},
            "secret/encoded": {"key": base64.b64encode(raw).decode()},
        },
        settings="limits: {idle_timeout: 60s}\n",
    )
    for known in (ID, CLIENT, ACCESS):
        proxy.canaries.remove(known)

    def send(path: str, *headers: str, **given: Any) -> Answer:
        return get(proxy.address("sidecar"), proxy.ca, path, *headers, **given)

    # DPoP: the first request learns the nonce and is sent once more, the second has it; the caller's own proof is gone.
    assert send("/bound/a?x=1", "DPoP: mine", "Authorization: DPoP mine").status == 200
    assert [claims.get("nonce") for claims in script.proofs] == [None, "nonce-1"]
    assert send("/bound/b").status == 200
    assert script.proofs[-1]["nonce"] == "nonce-1"
    script.nonce = "nonce-2"
    assert send("/bound/c", method="POST", body=b"x" * 100).status == 200
    assert [claims.get("nonce") for claims in script.proofs[-2:]] == ["nonce-1", "nonce-2"]
    assert api.requests[-1].body_bytes == 100
    assert len({claims["jti"] for claims in script.proofs}) == len(script.proofs)
    # Another refusal of the token is the caller's to see, and is not tried again.
    script.nonce, before = "nonce-3", len(script.proofs)
    assert send("/bound/denied").status == 401
    assert len(script.proofs) == before + 1
    closed = [record for record in proxy.wait_audit("credential.closed", 6) if record["route"] == "bound"]
    assert [record["status"] for record in closed] == [401, 200, 200, 401, 200, 401]
    assert len({record["id"] for record in closed}) == 6

    # Vendors: as they compute it themselves.
    assert send("/akamai/x?a=1", method="POST", body=b"data").status == 200
    seen = api.requests[-1]
    head, _, signature = (seen.get("authorization") or "").rpartition("signature=")
    assert head.startswith(f"EG1-HMAC-SHA256 client_token={CLIENT};access_token={ACCESS};timestamp=")
    stamp = head.partition("timestamp=")[2].partition(";")[0]
    content = base64.b64encode(hashlib.sha256(b"data").digest()).decode()
    text = f"POST\thttps\tapi.test\t/akamai/x?a=1\t\t{content}\t{head}"
    signing = base64.b64encode(hmac.digest(secret.encode(), stamp.encode(), "sha256"))
    assert signature == base64.b64encode(hmac.digest(signing, text.encode(), "sha256")).decode()

    signed = "TC3-HMAC-SHA256 Credential=x/2026-01-01/{}/tc3_request, SignedHeaders=content-type;host, Signature=00"
    json_type = "Content-Type: application/json"
    assert (
        send("/tencent/", json_type, "Authorization: " + signed.format("cvm"), method="POST", body=b"{}").status == 200
    )
    assert f"Credential={ID}/" in (api.requests[-1].get("authorization") or "")
    sent = len(api.requests)
    denied = send("/tencent/", json_type, "Authorization: " + signed.format("sts"), method="POST", body=b"{}")
    assert (denied.status, denied.code) == (403, "access_denied")
    assert send("/tencent/", method="POST", body=b"{}").code == "bad_request"
    assert len(api.requests) == sent
    assert (
        send("/alibaba/x?b&a=1", json_type, "x-acs-action: A", "x-acs-date: mine", method="POST", body=b"{}").status
        == 200
    )
    seen = api.requests[-1]
    assert seen.get("x-acs-content-sha256") == hashlib.sha256(b"{}").hexdigest()
    assert "SignedHeaders=content-type;host;x-acs-action;x-acs-content-sha256;" in (seen.get("authorization") or "")

    # Version 4A, by the public key of the secret.
    assert send("/everywhere/k").status == 200
    seen = api.requests[-1]
    number = derived(key.encode(), ID.encode(), 1)
    assert number is not None
    public = ec.derive_private_key(number, ec.SECP256R1()).public_key()
    authorization = seen.get("authorization") or ""
    names = authorization.partition("SignedHeaders=")[2].partition(",")[0]
    assert "x-amz-region-set" in names.split(";")
    lines = "".join(f"{name}:{seen.get(name)}\n" for name in names.split(";"))
    canonical = f"GET\n/everywhere/k\n\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
    stamp = seen.get("x-amz-date") or ""
    text = f"AWS4-ECDSA-P256-SHA256\n{stamp}\n{stamp[:8]}/s3/aws4_request\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    public.verify(bytes.fromhex(authorization.rpartition("=")[2]), text.encode(), ec.ECDSA(hashes.SHA256()))

    # G17: an answer that shows the key, in every form in which an upstream could know it.
    for path, shown in (
        (
            "/everywhere/k",
            [key.encode(), key.encode().hex().encode(), session.encode(), base64.b64encode(key.encode())],
        ),
        ("/akamai/k", [secret.encode(), base64.b64encode(secret.encode())]),
        ("/encoded/k", [base64.b64encode(raw), raw.hex().encode(), base64.urlsafe_b64encode(raw), raw]),
        ("/alibaba/k", [key.encode()]),
    ):
        script.show = b"begin " + b" | ".join(shown) + b" end"
        answer = send(path)
        assert answer.body.startswith(b"begin ")
        assert answer.body.endswith(b" end")
        assert len(answer.body) == len(script.show)
        for form in shown:
            assert form.rstrip(b"=") not in answer.body, path
    script.show = b""

    # gRPC over a route that signs bodies: at once, and in its own words; it passes where the body is not signed.
    address, ca = proxy.address("sidecar"), proxy.ca
    sent = len(api.requests)
    grpc = ("content-type: application/grpc",)
    refused = send("/alibaba/S/M", *grpc, method="POST", body=b"\x00\x00\x00\x00\x00")
    assert (refused.status, refused.code) == (400, "bad_request")
    assert "gRPC" in refused.json()["error"]
    with tunnel(address, ca, alpn=("h2",)) as raw_connection:
        caller = Http2(raw_connection)
        stream = caller.send(
            "POST", "/encoded/S/M", ("content-type", "application/grpc"), ("te", "trailers"), ends=False
        )
        found = caller.answer(stream)
    assert found.headers["x-ostiary-error"] == "bad_request"
    assert found.headers["grpc-status"] == "13"
    assert len(api.requests) == sent
    # PEM as text: no record, log or metric has a line of it.
    everything = bytes(proxy.stderr) + (proxy.folder / "audit.jsonl").read_bytes() + proxy.get("/metrics")[1]
    assert not any(line.encode() in everything for line in pem.splitlines()[1:-1])
