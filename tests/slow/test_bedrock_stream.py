"""Bedrock's converse stream by boto3: the request is signed anew, and the events come as the upstream sends them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable

import pytest

from tests.clients.test_aws import ACCESS, REGION, Verifier, verifying
from tests.harness.canaries import canary
from tests.harness.installed import python_with
from tests.harness.ostiary_process import Ostiary
from tests.harness.two_ways import PROGRAMS, ROOT, Served
from tests.harness.upstream import Seen, Upstream, Wire

pytestmark = pytest.mark.slow
HOST = f"bedrock-runtime.{REGION}.amazonaws.com"
PROGRAM = PROGRAMS / "python" / "bedrock_stream.py"


def event(kind: str, content: object) -> bytes:
    """One message of an event stream (smithy.io, "Amazon event stream specification")."""
    fields = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for name, value in fields.items()
    )
    payload = json.dumps(content).encode()
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack("!I", zlib.crc32(message))


class Bedrock:
    """Answers with two pieces of text."""

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier
        self.wrong: list[str] = []

    def __call__(self, seen: Seen, wire: Wire) -> None:
        fault = self.verifier.judge(seen.method, seen.get("host") or "", seen.target, seen.headers, seen.body_sha256)
        if fault:
            self.wrong.append(f"{seen.method} {seen.target}: {fault}")
            wire.answer(403, b'{"message": "no"}')
            return
        wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        wire.chunk(event("messageStart", {"role": "assistant"}))
        for piece in ("hel", "lo"):
            wire.chunk(event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": piece}}))
        wire.chunk(event("messageStop", {"stopReason": "end_turn"}))
        wire.send(b"0\r\n\r\n")


def test_a_conversation_streams(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    secret = {"id": ACCESS, "key": canary()}
    python = python_with("python", ROOT / "requirements" / "clients.txt")
    with verifying(python, access=ACCESS, secret=secret["key"], token=None) as verifier:
        bedrock = Bedrock(verifier)
        api = upstream(bedrock, names=(HOST,))
        proxy = ostiary(
            f"""
workloads: {{billing: {{proofs: [{{any: true}}]}}}}
routes:
  bedrock:
    match: {{host: {HOST}, paths: "/model/*/converse-stream"}}
    allow: billing
    secret: {{path: secret/aws/bedrock}}
    sign: {{aws_sigv4: {{access_key_id: "{{secret.id}}", secret_access_key: "{{secret.key}}", regions: [{REGION}], services: [bedrock]}}}}
""",
            listen='[{name: open, bind: "127.0.0.1:0", workload: billing}]',
            upstreams={f"{HOST}:443": api.port},
            secrets={"secret/aws/bedrock": secret},
        )
        done = Served(proxy, api, secret["key"], "").run("environment", str(python), str(PROGRAM), listener="open")
        assert not bedrock.wrong
        assert done.code == 0, done.stderr
        assert done.stdout.split() == ["hel", "lo", "end_turn"]
    assert proxy.wait_audit("credential.closed")[0]["outcome"] == "ok"
