"""boto3 with placeholder keys, against a server that recomputes each signature with botocore's own code; and botocore as the
oracle over requests that nobody would write by hand.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from addons.head import RequestHead
from addons.signing.apply import Signing
from addons.signing.outgoing import Outgoing
from policies.sign import AwsSigV4Signer
from policies.template import parse_template
from tests.harness.canaries import canary
from tests.harness.ostiary_process import Ostiary, clean_environment
from tests.harness.signing import credential
from tests.harness.two_ways import PROGRAMS, Served
from tests.harness.upstream import Seen, Upstream, Wire

REGION = "eu-west-1"
HOSTS = [
    f"reports.s3.{REGION}.amazonaws.com",
    f"s3.{REGION}.amazonaws.com",
    f"sts.{REGION}.amazonaws.com",
    f"sqs.{REGION}.amazonaws.com",
    "sts.us-east-1.amazonaws.com",
]
ACCESS = "AKIAREALKEYOFTHEROUTE"


class Verifier:
    """The code of an SDK in an environment of its own, asked line by line: botocore's unless said otherwise."""

    def __init__(self, python: Path, program: str = "aws_verify.py", **key: Any) -> None:
        self._lock = threading.Lock()
        self.asked = 0
        self._process = subprocess.Popen(
            [str(python), str(PROGRAMS / "python" / program)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment(),
        )  # fmt: skip
        self._say(key)

    def _say(self, what: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def judge(self, method: str, host: str, target: str, headers: list[tuple[str, str]], sha256: str) -> str:
        """What is wrong with a request; empty: nothing."""
        return self.ask({"method": method, "host": host, "target": target, "headers": headers, "sha256": sha256})

    def ask(self, request: dict[str, object]) -> str:
        with self._lock:
            self.asked += 1
            self._say(request)
            assert self._process.stdout is not None
            return str(json.loads(self._process.stdout.readline()))

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def verifying(python: Path, program: str = "aws_verify.py", **key: Any) -> Iterator[Verifier]:
    verifier = Verifier(python, program, **key)
    try:
        yield verifier
    finally:
        verifier.stop()


def xml(wire: Wire, text: str, *headers: tuple[str, str]) -> None:
    wire.answer(200, f"<?xml version='1.0'?>{text}".encode(), (("Content-Type", "text/xml"), *headers))


class Cloud:
    """As much of S3, STS and SQS as boto3 needs; every request must be signed by the real key."""

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier
        self.wrong: list[str] = []

    def __call__(self, seen: Seen, wire: Wire) -> None:
        host = seen.get("host") or ""
        fault = self.verifier.judge(seen.method, host, seen.target, seen.headers, seen.body_sha256)
        if fault:
            self.wrong.append(f"{seen.method} {seen.target}: {fault}")
            wire.answer(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        elif host.startswith("sts"):
            assert seen.body.startswith(b"Action=GetCallerIdentity")
            xml(
                wire,
                "<GetCallerIdentityResponse xmlns='https://sts.amazonaws.com/doc/2011-06-15/'><GetCallerIdentityResult><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>",
            )
        elif host.startswith("sqs"):
            assert seen.get("x-amz-target") == "AmazonSQS.SendMessage"
            md5 = hashlib.md5(b"hello", usedforsecurity=False).hexdigest()
            wire.answer(
                200,
                json.dumps({"MessageId": "message-1", "MD5OfMessageBody": md5}).encode(),
                (("Content-Type", "application/x-amz-json-1.0"),),
            )
        else:
            self._s3(seen, wire)

    def _s3(self, seen: Seen, wire: Wire) -> None:
        query = seen.target.partition("?")[2]
        if seen.method == "POST" and "uploads" in query:
            xml(wire, "<InitiateMultipartUploadResult><UploadId>u-1</UploadId></InitiateMultipartUploadResult>")
        elif seen.method == "POST":
            xml(wire, "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")
        elif "list-type" in query:
            xml(wire, "<ListBucketResult><Contents><Key>may 1/x</Key></Contents></ListBucketResult>")
        elif seen.method == "PUT":
            wire.answer(200, b"", (("ETag", '"e"'),))
        else:
            wire.answer(206 if seen.get("range") else 200, b"hello")


@pytest.mark.parametrize("session", [False, True], ids=["long-lived", "session"])
def test_boto3_is_signed_anew(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], client_python: Path, session: bool, engine: str
) -> None:
    if session and engine == "mitmproxy":
        pytest.skip("a session token is the same on both engines; its signature is tested by the oracle below")
    secret = {"id": ACCESS, "key": canary()} | ({"token": canary()} if session else {})
    token = ', session_token: "{secret.token}"' if session else ""
    known = {"access": ACCESS, "secret": secret["key"], "token": secret.get("token")}
    with verifying(client_python, "aws_verify.py", **known) as verifier:
        cloud = Cloud(verifier)
        api = upstream(cloud, names=tuple(HOSTS))
        proxy = ostiary(
            f"""
workloads: {{billing: {{proofs: [{{any: true}}]}}}}
routes:
  aws:
    match: {{host: ["*.s3.{REGION}.amazonaws.com", {", ".join(HOSTS[1:])}]}}
    allow: billing
    secret: {{path: secret/aws/reports}}
    sign: {{aws_sigv4: {{access_key_id: "{{secret.id}}", secret_access_key: "{{secret.key}}"{token}, regions: [{REGION}], services: [s3, sts, sqs]}}}}
""",
            listen='[{name: open, bind: "127.0.0.1:0", workload: billing}]',
            upstreams={f"{host}:443": api.port for host in HOSTS},
            secrets={"secret/aws/reports": secret},
        )
        done = Served(proxy, api, secret["key"], "").run(
            "environment", str(client_python), str(PROGRAMS / "python" / "aws_calls.py"), listener="open"
        )
        assert not cloud.wrong
        assert done.code == 0, done.stderr
        assert done.stdout.splitlines() == [
            "hello", "['may 1/x']", "PUT 200", "GET 200", "123456789012", "message-1", "True",
        ]  # fmt: skip
        assert verifier.asked >= 12
    assert b"AKIAOSTIARYPLACEHOLD" not in bytes(api.raw)
    claims = {seen.get("x-amz-content-sha256") for seen in api.requests}
    assert "STREAMING-UNSIGNED-PAYLOAD-TRAILER" in claims
    assert hashlib.sha256(b"hashed").hexdigest() in claims
    records = proxy.wait_audit("credential.closed", verifier.asked)
    assert {record["route"] for record in records} == {"aws"}
    assert all("X-Amz" not in json.dumps(record) for record in records)


# --- the oracle ---

SAFE = st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0")
SEGMENT = st.text(SAFE, min_size=1, max_size=12).filter(lambda text: text not in {".", ".."})
NAMES = st.sampled_from(
    ["X-Amz-Meta-A", "x-amz-target", "Content-Type", "Range", "If-Match", "X-Custom", "Content-MD5", "User-Agent"]
)
VALUES = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20).map(str.strip)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A request as an SDK would send it."""
    path = "/" + "/".join(quote(one, safe="~") for one in draw(st.lists(SEGMENT, max_size=4)))
    if draw(st.booleans()):
        path = path.rstrip("/") + "/"
    pairs = draw(st.lists(st.tuples(st.text(SAFE, min_size=1, max_size=8), st.text(SAFE, max_size=8)), max_size=4))
    query = "&".join(
        f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in pairs if not name.startswith("X-Amz-")
    )
    return {
        "method": draw(st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD"])),
        "target": path + (f"?{query}" if query else ""),
        "fields": draw(st.lists(st.tuples(NAMES, VALUES), max_size=5, unique_by=lambda field: field[0].lower())),
        "body": draw(st.binary(max_size=40)),
        "service": draw(st.sampled_from(["s3", "execute-api", "dynamodb"])),
        "region": draw(st.sampled_from(["eu-west-1", "us-east-1"])),
        "token": draw(st.booleans()),
        "presigned": draw(st.booleans()),
        "port": draw(st.sampled_from(["", ":8443"])),
    }


def signed_anew(one: dict[str, Any], secret: dict[str, str]) -> tuple[str, list[tuple[str, str]], str]:
    """The target, fields and body hash that leave, for a request that an SDK signed with placeholders."""
    names = ";".join(sorted({"host", *(name.lower() for name, _ in one["fields"] if name != "User-Agent")}))
    scope = f"AKIAOSTIARYPLACEHOLD/20260102/{one['region']}/{one['service']}/aws4_request"
    fields = [(name.encode(), value.encode()) for name, value in one["fields"]]
    caller, target = list(fields), one["target"]
    if one["presigned"]:
        separator = "&" if "?" in target else "?"
        target += f"{separator}X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={quote(scope, safe='')}&X-Amz-Date=20260102T030405Z&X-Amz-Expires=60&X-Amz-SignedHeaders={quote(names)}&X-Amz-Signature=00"
    else:
        caller.append(
            (b"Authorization", f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature=00".encode())
        )
    template = parse_template("{secret.token}") if one["token"] else None
    signer = AwsSigV4Signer(
        parse_template("{secret.id}"),
        parse_template("{secret.key}"),
        ("eu-west-1", "us-east-1"),
        ("s3", "execute-api", "dynamodb"),
        template,
    )
    head = RequestHead(one["method"], target.encode(), tuple(caller), http2=False)
    signing = Signing([signer], 1 << 20)
    judged = signing.judge(head)
    body = one["body"] if judged.reads_body else None
    request = Outgoing(
        one["method"], "https", host_of(one).encode(), one["target"].encode(), fields, body, head, http2=False
    )
    made, _ = signing.sign(judged, request, credential(secret), 1_790_000_000.0)
    found = [(name.decode(), value.decode()) for name, value in made.fields]
    return made.target.decode(), found, hashlib.sha256(one["body"]).hexdigest()


def host_of(one: dict[str, Any]) -> str:
    return f"api.{one['region']}.example.com{one['port']}"


def agree(client_python: Path, examples: int) -> None:
    secret = {"id": ACCESS, "key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "token": "a/token+with=signs"}
    with (
        verifying(client_python, access=ACCESS, secret=secret["key"], any_time=True) as long_lived,
        verifying(
            client_python, access=ACCESS, secret=secret["key"], token=secret["token"], any_time=True
        ) as temporary,
    ):

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(requests())
        def check(one: dict[str, Any]) -> None:
            verifier = temporary if one["token"] else long_lived
            target, fields, sha256 = signed_anew(one, secret)
            fault = verifier.judge(one["method"], host_of(one), target, fields, sha256)
            assert not fault
            # And it is no formality: another body, path or method is not what was signed.
            assert verifier.judge("PATCH", host_of(one), target, fields, sha256)

        check()
        assert long_lived.asked + temporary.asked >= examples


def test_botocore_computes_the_same(client_python: Path) -> None:
    agree(client_python, 300)


@pytest.mark.slow
def test_botocore_computes_the_same_ten_thousand_times(client_python: Path) -> None:
    agree(client_python, 10_000)
