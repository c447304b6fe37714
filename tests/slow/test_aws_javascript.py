"""The AWS SDK for JavaScript with placeholder keys, against a server that recomputes each signature with botocore's code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.test_aws import ACCESS, HOSTS, REGION, Cloud, verifying
from tests.harness.canaries import canary
from tests.harness.installed import node_with, python_with
from tests.harness.ostiary_process import Ostiary
from tests.harness.two_ways import NODE, PROGRAMS, ROOT, Served
from tests.harness.upstream import Upstream

pytestmark = pytest.mark.slow
FOLDER = PROGRAMS / "aws"


@pytest.fixture(scope="module")
def packages() -> Path:
    return node_with(
        "npm-aws", FOLDER / "package-lock.json", [FOLDER / name for name in ("calls.mjs", "package.json", ".npmrc")]
    )


def test_the_javascript_sdk_is_signed_anew(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], packages: Path
) -> None:
    secret = {"id": ACCESS, "key": canary(), "token": canary()}
    python = python_with("python", ROOT / "requirements" / "clients.txt")
    with verifying(python, access=ACCESS, secret=secret["key"], token=secret["token"]) as verifier:
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
    sign: {{aws_sigv4: {{access_key_id: "{{secret.id}}", secret_access_key: "{{secret.key}}", session_token: "{{secret.token}}", regions: [{REGION}], services: [s3, sts, sqs]}}}}
""",
            listen='[{name: open, bind: "127.0.0.1:0", workload: billing}]',
            upstreams={f"{host}:443": api.port for host in HOSTS},
            secrets={"secret/aws/reports": secret},
        )
        done = Served(proxy, api, secret["key"], "").run(
            "environment", NODE, "calls.mjs", cwd=packages, listener="open", AWS_REGION=REGION
        )
        assert not cloud.wrong
        assert done.code == 0, done.stderr
        assert done.stdout.splitlines() == ["hello", "may 1/x", "GET 200 hello", "123456789012", "message-1"]
        assert verifier.asked >= 10
    assert b"AKIAOSTIARYPLACEHOLD" not in bytes(api.raw)
    records = proxy.wait_audit("credential.closed", verifier.asked)
    assert {record["outcome"] for record in records} == {"ok"}
    assert all("X-Amz" not in json.dumps(record) for record in records)
