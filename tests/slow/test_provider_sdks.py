"""P9: providers' own SDKs through their presets, against servers that take the right credential alone.

Each runs under `ostiary exec` with nothing but `use:`: its key is the preset's placeholder. What is driven here is what
`driven:` of a preset names, in that version.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from policies.preset import built_in, built_in_names
from tests.clients.test_aws import Verifier, verifying
from tests.harness.canaries import canary
from tests.harness.installed import python_with
from tests.harness.ostiary_process import ENGINES, Ostiary, clean_environment
from tests.harness.two_ways import PROGRAMS, ROOT
from tests.harness.upstream import Seen, Upstream, Wire

LOCK = ROOT / "requirements" / "sdks.txt"
CHAT = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip
USER = "jdoe@example.com"


@dataclass(frozen=True, slots=True)
class Provider:
    """One row: what is driven, and what its server wants and says."""

    host: str
    answer: object
    printed: str = "hello"
    header: str = "Authorization"
    value: str = "Bearer {}"
    """What the header must be; Basic is written with the plain pair."""
    fields: Mapping[str, str] = field(default_factory=lambda: {"token": "{}"})
    parameters: Mapping[str, str] = field(default_factory=dict)
    signed: str = ""
    """The service of an AWS signature, which then is checked instead of the header."""
    sdk: str = ""
    """The distribution, where it is not called like the preset."""


KEY = {"api_key": "{}"}
PAIR = {"token": "{}", "email": USER}
AWS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "{}"}
REGION = {"region": "eu-west-1"}
TENANT = {"tenant": "acme"}
SQS_QUEUES = {"QueueUrls": ["hello"]}
PROVIDERS: dict[str, Provider] = {
    "4sapi": Provider("4sapi.com", CHAT, fields=KEY, sdk="openai"),
    "airtable": Provider("api.airtable.com", {"records": [{"id": "r", "createdTime": "2026-01-01T00:00:00.000Z", "fields": {"word": "hello"}}]}, sdk="pyairtable"),
    "aws-bedrock": Provider("bedrock-runtime.eu-west-1.amazonaws.com", {"output": {"message": {"role": "assistant", "content": [{"text": "hello"}]}}, "stopReason": "end_turn"}, fields=AWS, parameters=REGION, signed="bedrock", sdk="boto3"),
    "aws-dynamodb": Provider("dynamodb.eu-west-1.amazonaws.com", {"TableNames": ["hello"]}, fields=AWS, parameters=REGION, signed="dynamodb", sdk="boto3"),
    "aws-s3": Provider("reports.s3.eu-west-1.amazonaws.com", b"hello", fields=AWS, parameters=REGION, signed="s3", sdk="boto3"),
    "aws-sqs": Provider("sqs.eu-west-1.amazonaws.com", SQS_QUEUES, fields=AWS, parameters=REGION, signed="sqs", sdk="boto3"),
    "azure-openai": Provider("acme.openai.azure.com", CHAT, header="api-key", value="{}", fields=KEY, parameters=TENANT, sdk="openai"),
    "cloudflare": Provider("api.cloudflare.com", {"success": True, "errors": [], "messages": [], "result": [{"id": "z", "name": "hello"}], "result_info": {"page": 1, "per_page": 20, "count": 1, "total_count": 1, "total_pages": 1}}),
    "cohere": Provider("api.cohere.com", {"id": "1", "finish_reason": "COMPLETE", "message": {"role": "assistant", "content": [{"type": "text", "text": "hello"}]}}, fields=KEY),
    "confluence": Provider("acme.atlassian.net", {"id": "1", "title": "hello"}, value=f"Basic {USER}:{{}}", fields=PAIR, parameters=TENANT, sdk="atlassian-python-api"),
    "databricks": Provider("dbc-1.cloud.databricks.com", {"userName": "hello"}, parameters={"tenant": "dbc-1"}, sdk="databricks-sdk"),
    "datadog": Provider("api.datadoghq.com", {"valid": True}, printed="True", header="DD-API-KEY", value="{}", fields={"api_key": "{}", "application_key": "app"}, sdk="datadog-api-client"),
    "deepseek": Provider("api.deepseek.com", CHAT, fields=KEY, sdk="openai"),
    "discord": Provider("discord.com", {"id": "1", "username": "hello", "discriminator": "0", "avatar": None, "name": "hello", "description": "", "icon": None, "rpc_origins": [], "bot_public": True, "bot_require_code_grant": False, "owner": {"id": "1", "username": "hello", "discriminator": "0", "avatar": None}, "verify_key": "", "summary": ""}, value="Bot {}", sdk="discord-py"),
    "elastic": Provider("acme.es.eu-west-1.aws.elastic.cloud", {"name": "hello", "cluster_name": "c", "cluster_uuid": "u", "tagline": "You Know, for Search", "version": {"number": "9.1.0", "build_flavor": "default"}}, value="ApiKey {}", fields=KEY, parameters={"tenant": "acme", "region": "eu-west-1", "cloud": "aws"}, sdk="elasticsearch"),
    "github": Provider("api.github.com", {"id": 1, "full_name": "octocat/Hello-World", "url": "https://api.github.com/repos/octocat/Hello-World", "description": "hello"}, sdk="pygithub"),
    "gitlab": Provider("gitlab.com", {"id": 7, "name": "hello"}, header="PRIVATE-TOKEN", value="{}", sdk="python-gitlab"),
    "groq": Provider("api.groq.com", CHAT, fields=KEY),
    "holysheep": Provider("api.holysheep.ai", CHAT, fields=KEY, sdk="openai"),
    "hubspot": Provider("api.hubapi.com", {"results": [{"id": "hello", "properties": {}, "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"}]}, sdk="hubspot-api-client"),
    "huggingface": Provider("huggingface.co", {"id": "hello"}, fields=KEY, sdk="huggingface-hub"),
    "jira": Provider("acme.atlassian.net", {"id": "1", "key": "hello", "fields": {}}, value=f"Basic {USER}:{{}}", fields=PAIR, parameters=TENANT, sdk="atlassian-python-api"),
    "mistral": Provider("api.mistral.ai", CHAT, fields=KEY, sdk="mistralai"),
    "notion": Provider("api.notion.com", {"object": "user", "id": "u", "name": "hello"}, sdk="notion-client"),
    "openai": Provider("api.openai.com", CHAT, fields=KEY),
    "openrouter": Provider("openrouter.ai", CHAT, fields=KEY, sdk="openai"),
    "pagerduty": Provider("api.pagerduty.com", {"user": {"id": "PU1", "name": "hello"}}, value="Token token={}", fields=KEY),
    "pypi": Provider("upload.pypi.org", b"", printed="uploaded", value="Basic __token__:{}", sdk="twine"),
    "sendgrid": Provider("api.sendgrid.com", {"scopes": ["hello"]}, fields=KEY),
    "sentry": Provider("sentry.io", [{"id": "1", "slug": "hello", "name": "hello", "dateCreated": "2026-01-01T00:00:00Z", "isEarlyAdopter": False, "require2FA": False, "requireEmailVerification": False, "features": []}], sdk="sentry-cli"),
    "shopify": Provider("acme.myshopify.com", {"shop": {"id": 1, "name": "hello"}}, header="X-Shopify-Access-Token", value="{}", parameters=TENANT, sdk="shopifyapi"),
    "slack": Provider("slack.com", {"ok": True, "ts": "hello"}, sdk="slack-sdk"),
    "twilio": Provider("api.twilio.com", {"sid": "hello"}, value="Basic AC1:{}", fields={"account_sid": "AC1", "auth_token": "{}"}),
    "xai": Provider("api.x.ai", CHAT, fields=KEY, sdk="openai"),
    "zendesk": Provider("acme.zendesk.com", {"user": {"id": 1, "name": "hello"}}, value=f"Basic {USER}/token:{{}}", fields=PAIR, parameters=TENANT, sdk="zenpy"),
}  # fmt: skip


def locked(distribution: str) -> str:
    """The version in the lock file."""
    found = re.search(rf"^{re.escape(distribution)}==(\S+)", LOCK.read_text(), re.MULTILINE)
    assert found is not None, distribution
    return found[1]


def test_what_presets_say_is_what_is_driven_here() -> None:
    driven = {name: f"{row.sdk or name} {locked(row.sdk or name)}" for name, row in PROVIDERS.items()}
    elsewhere = {"anthropic", "gemini", "stripe"}  # tests/clients/test_preset_sdks.py
    elsewhere |= {"docker-hub", "github-git", "linear", "npm"}  # test_provider_tools.py
    elsewhere |= {"vertex", "salesforce"}  # tests/slow/test_derived_elsewhere.py
    said = {name: built_in(name).driven for name in built_in_names() if built_in(name).driven and name not in elsewhere}
    assert said == driven


@pytest.fixture(scope="session")
def sdk_python() -> Path:
    """A Python with the locked SDKs beside it, made once for a lock file."""
    return python_with("sdks", LOCK, patience_s=600)


def wanted(row: Provider, key: str) -> str:
    """The header as the server must see it."""
    if row.value.startswith("Basic "):
        return f"Basic {base64.b64encode(row.value[6:].format(key).encode()).decode()}"
    return row.value.format(key)


def serving(row: Provider, key: str, verifier: Verifier, refused: list[str]) -> Callable[[Seen, Wire], None]:
    """The provider: it takes the right credential alone."""

    def wrong(seen: Seen) -> bool:
        if row.signed:
            assert f"/eu-west-1/{row.signed}/aws4_request" in (seen.get("Authorization") or "")
            return bool(verifier.judge(seen.method, row.host, seen.target, seen.headers, seen.body_sha256))
        return seen.get(row.header) != wanted(row, key)

    def script(seen: Seen, wire: Wire) -> None:
        if wrong(seen):
            refused.append(f"{seen.method} {seen.target}")
            wire.answer(401, b"{}", (("Content-Type", "application/json"),))
            return
        body = row.answer if isinstance(row.answer, bytes) else json.dumps(row.answer).encode()
        kind = "application/x-amz-json-1.0" if row.signed else "application/json"
        extra = (("X-Elastic-Product", "Elasticsearch"),) if "elastic" in row.host else ()
        wire.answer(200, body, (("Content-Type", kind), *extra))

    return script


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES[-1:], indirect=True)
@pytest.mark.parametrize("name", list(PROVIDERS))
def test_p9_an_sdk_through_its_preset(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], sdk_python: Path, tmp_path: Path, name: str
) -> None:
    row, key, refused = PROVIDERS[name], canary(), list[str]()
    with verifying(sdk_python, access="AKIDEXAMPLE", secret=key) as verifier:
        api = upstream(serving(row, key, verifier, refused), names=(row.host,))
        use = ", ".join([f"preset: {name}", *(f"{parameter}: {value}" for parameter, value in row.parameters.items())])
        proxy = ostiary(
            f"workloads: {{billing: {{proofs: [{{any: true}}]}}}}\nroutes: {{api: {{use: {{{use}}}, allow: billing}}}}\n",
            start=False,
            upstreams={f"{row.host}:443": api.port},
            secrets={f"secret/egress/{name}": {part: value.format(key) for part, value in row.fields.items()}},
        )
        with tarfile.open(tmp_path / "keyless-1.0.tar.gz", "w:gz") as package:
            (tmp_path / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: keyless\nVersion: 1.0\n\n")
            for member in ("PKG-INFO", "keyless.py"):
                package.add(tmp_path / "PKG-INFO", f"keyless-1.0/{member}")
        program = "foursapi" if name == "4sapi" else name
        done = subprocess.run(
            [
                sys.executable, "-m", "ostiary", "exec", "--config", str(proxy.folder / "ostiary.yaml"), "--",
                str(sdk_python), str(PROGRAMS / "python" / "providers.py"), program,
            ],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
            env=clean_environment(PYTHONPATH=str(ROOT), AWS_EC2_METADATA_DISABLED="true"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split()[-1] == row.printed
        assert api.requests
        assert refused == []
        assert key not in done.stdout + done.stderr
