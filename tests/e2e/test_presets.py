"""P9: `use: NAME` through a running proxy: the credential where the API wants it, the denied paths, and what is told."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.harness.canaries import canary
from tests.harness.client import get
from tests.harness.ostiary_process import Ostiary, clean_environment
from tests.harness.token_server import TokenServer, new_key
from tests.harness.upstream import Upstream

ROOT = Path(__file__).parents[2]
POLICY = """
workloads:
  billing: {proofs: [{any: true}]}
routes:
  chat: {use: openai, allow: billing}
  pay: {use: stripe, allow: billing, deny: {methods: DELETE}}
  text: {use: twilio, allow: billing}
  bot: {use: telegram, allow: billing}
  azure: {use: {preset: azure-openai, tenant: acme}, allow: billing}
  queue: {use: {preset: aws-sqs, region: eu-west-1}, allow: billing}
  models: {use: {preset: vertex, region: us-central1}, allow: billing}
"""
HOSTS = (
    "api.openai.com", "api.stripe.com", "api.twilio.com", "api.telegram.org", "acme.openai.azure.com",
    "sqs.eu-west-1.amazonaws.com", "us-central1-aiplatform.googleapis.com",
)  # fmt: skip


def run(proxy: Ostiary, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ostiary", *arguments], cwd=proxy.folder, capture_output=True, text=True, timeout=60,
        check=False, env=clean_environment(PYTHONPATH=str(ROOT), **environ),
    )  # fmt: skip


def test_a_name_is_a_working_route(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream(names=HOSTS)
    private, pem = new_key()
    email = "models@corp.iam.gserviceaccount.com"
    google = TokenServer(keys={email: (private.public_key(), "RS256")}, audience="https://oauth2.googleapis.com/token")
    login = upstream(google, names=("oauth2.googleapis.com",))
    keys = {name: canary(name) for name in ("openai", "stripe", "twilio", "telegram", "azure-openai", "aws-sqs")}
    proxy = ostiary(
        POLICY,
        upstreams={**{f"{host}:443": api.port for host in HOSTS}, "oauth2.googleapis.com:443": login.port},
        secrets={
            "secret/egress/vertex": {
                "key_json": json.dumps({"type": "service_account", "client_email": email, "private_key": pem})
            },
            "secret/egress/openai": {"api_key": keys["openai"]},
            "secret/egress/stripe": {"api_key": keys["stripe"]},
            "secret/egress/twilio": {"account_sid": "AC" + canary("sid"), "auth_token": keys["twilio"]},
            "secret/egress/telegram": {"token": "7:" + keys["telegram"]},
            "secret/egress/azure-openai": {"api_key": keys["azure-openai"]},
            "secret/egress/aws-sqs": {"access_key_id": "AKID" + canary("id"), "secret_access_key": keys["aws-sqs"]},
        },
    )

    def ask(method: str, host: str, path: str, *fields: str) -> tuple[int, str | None]:
        answer = get(
            proxy.address("sidecar"), proxy.ca, path, *fields, authority=f"{host}:443", method=method,
            body=b"{}" if method == "POST" else b"",
        )  # fmt: skip
        return answer.status, answer.code

    placeholder = "Authorization: Bearer sk-ostiary-placeholder"
    assert ask("POST", "api.openai.com", "/v1/chat/completions", placeholder) == (200, None)
    assert api.requests[-1].get("authorization") == f"Bearer {keys['openai']}"
    assert ask("GET", "api.stripe.com", "/v1/charges", placeholder) == (200, None)
    assert api.requests[-1].get("authorization") == f"Bearer {keys['stripe']}"
    assert ask("POST", "api.twilio.com", "/2010-04-01/Accounts/AC1/Messages.json", placeholder) == (200, None)
    basic = base64.b64decode((api.requests[-1].get("authorization") or "").removeprefix("Basic ")).decode()
    assert basic.startswith("AC")
    assert basic.endswith(f":{keys['twilio']}")
    assert ask("GET", "api.telegram.org", "/bot0:ostiary-placeholder/getMe") == (200, None)
    assert api.requests[-1].target == f"/bot7:{keys['telegram']}/getMe"
    assert ask("POST", "acme.openai.azure.com", "/openai/v1/chat/completions", "Api-Key: mine") == (200, None)
    assert api.requests[-1].get("api-key") == keys["azure-openai"]
    assert ask("POST", "sqs.eu-west-1.amazonaws.com", "/") == (200, None)
    signed = api.requests[-1].get("authorization") or ""
    assert signed.startswith("AWS4-HMAC-SHA256 Credential=AKID")
    assert "/eu-west-1/sqs/aws4_request" in signed

    models = "/v1/projects/corp/locations/us-central1"
    assert ask(
        "POST", "us-central1-aiplatform.googleapis.com", f"{models}/publishers/google/models/g:generateContent"
    ) == (200, None)
    assert api.requests[-1].get("authorization") == f"Bearer {google.given[0]}"
    proxy.canaries += [google.given[0], *pem.splitlines()[1:-1]]

    before = len(api.requests)
    for method, host, path in (
        ("POST", "api.openai.com", "/v1/organization/admin_api_keys"),
        ("POST", "api.openai.com", "/v1/realtime/client_secrets"),
        ("POST", "api.openai.com", "/v1/realtime%2Fclient_secrets"),
        ("POST", "api.openai.com", "//v1/realtime/client_secrets"),
        ("POST", "api.stripe.com", "/v1/ephemeral_keys"),
        ("POST", "api.stripe.com", "/v1/webhook_endpoints"),
        ("POST", "api.stripe.com", "/v1/charges/../ephemeral_keys"),
        ("GET", "api.twilio.com", "/2010-04-01/Accounts/AC1.json"),
        ("POST", "api.twilio.com", "/2010-04-01/Accounts/AC1/Tokens.json"),
        ("POST", "us-central1-aiplatform.googleapis.com", f"{models}/endpoints/7:setIamPolicy"),
        ("POST", "us-central1-aiplatform.googleapis.com", f"{models}/notebookRuntimes/7:start"),
    ):
        assert ask(method, host, path)[1] in {"path_denied", "bad_request"}, path
    assert ask("DELETE", "api.stripe.com", "/v1/charges/ch_1")[1] == "method_denied"
    assert len(api.requests) == before, "what is denied reaches nobody"

    told = run(proxy, "explain", "--config", "ostiary.yaml", "--json", "GET", "https://api.stripe.com/v1/charges")
    assert json.loads(told.stdout)["presets"] == {
        "stripe": ["deny[1]", "deny[2]", "inject", "match.host", "secret.field", "secret.path"]
    }
    told = run(proxy, "explain", "--config", "ostiary.yaml", "POST", "https://api.stripe.com/v1/ephemeral_keys")
    assert "rule      deny[1] of preset stripe" in told.stdout
    told = run(proxy, "check", "--config", "ostiary.yaml", "--live")
    assert told.returncode == 0, told.stderr
    assert "policy.yaml:5:3: route chat has deny[0] of openai, inject of openai, match.host of openai" in told.stdout
    told = run(proxy, "env", "--config", "ostiary.yaml", "--proxy", "127.0.0.1:9", TWILIO_AUTH_TOKEN="own")
    assert "export TELEGRAM_BOT_TOKEN='0:ostiary-placeholder'" in told.stdout
    assert "export AZURE_OPENAI_API_KEY='ostiary-placeholder'" in told.stdout
    assert "TWILIO_AUTH_TOKEN" not in told.stdout
    assert "TWILIO_AUTH_TOKEN hold keys already" in told.stderr
