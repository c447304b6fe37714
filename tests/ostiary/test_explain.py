"""`explain`: the proxy's own answer, with what nearly matched, and never a value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness.canaries import canary, scan
from tests.harness.ostiary_process import command

SETTINGS = """
listen: [{name: sidecar, bind: "127.0.0.1:8080", workload: billing}]
ca: {dir: ca}
secrets_file: s.sealed
secrets_key: {file: s.key}
audit: {sinks: [{file: audit.jsonl}]}
policies: [policy.yaml]
limits: {connect_timeout: 7s}
"""
POLICY = """
workloads: {billing: {proofs: {any: true}}, reports: {proofs: {key_hash: "sha256:%s"}}}
routes:
  charges:
    match: {host: api.stripe.com, methods: [GET, POST], paths: ["/v1/charges", "/v1/charges/**"]}
    allow: [billing, {workload: reports, methods: [GET]}]
    deny: [{workload: billing, paths: ["/v1/charges/*/refund"]}]
    secret: {path: secret/egress/stripe, field: api_key, ttl: 30s}
    inject: {bearer: "{secret}"}
    timeouts: {total: 1h}
  balance:
    match: {host: api.stripe.com, paths: ["/v1/balance"]}
    allow: reports
  other-port:
    match: {host: api.stripe.com, port: 8443}
    allow: billing
""" % ("0" * 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ostiary.yaml").write_text(SETTINGS)
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path


def ask(folder: Path, method: str, url: str, workload: str = "billing", *, code: int) -> dict[str, Any]:
    done = command("explain", "--json", "--workload", workload, method, url, cwd=folder)
    assert done.returncode == code, (done.stdout, done.stderr)
    shown = json.loads(done.stdout)
    assert shown["allowed"] is (code == 0)
    return dict(shown)


def test_a_grant_names_everything_but_the_value(folder: Path) -> None:
    assert command("secret", "init", cwd=folder).returncode == 0
    value = canary()
    command("secret", "set", "secret/egress/stripe", "api_key", cwd=folder, stdin=value.encode())
    shown = ask(folder, "POST", "https://API.stripe.com:443/v1/charges?x=1#f", code=0)
    assert shown["route"] == "charges"
    assert shown["place"].startswith("policy.yaml:4:")
    assert shown["rule"] == "allow[0]"
    assert shown["secrets"] == [
        {"name": "secret", "path": "secret/egress/stripe", "field": "api_key", "ttl_s": 30.0, "max_stale_s": 600.0}
    ]
    assert shown["inject"] == ["header Authorization (Bearer)"]
    assert shown["timeouts"] == {"connect_s": 7.0, "first_byte_s": 300.0, "idle_s": 300.0, "total_s": 3600.0}
    assert {miss["route"]: miss["why"] for miss in shown["near_misses"]} == {
        "balance": "it does not name workload billing (it allows reports)",
        "other-port": "it serves port 8443, not 443",
    }
    done = command("explain", "--workload", "billing", "GET", "https://api.stripe.com/v1/charges", cwd=folder)
    assert done.returncode == 0
    assert b"secret    secret/egress/stripe field api_key (ttl 30 s" in done.stdout
    assert not scan([("json", json.dumps(shown).encode()), ("text", done.stdout + done.stderr)], [value])


@pytest.mark.parametrize(
    ("method", "url", "workload", "code", "rule"),
    [
        ("DELETE", "https://api.stripe.com/v1/charges", "billing", "method_denied", None),
        ("GET", "https://api.stripe.com/v1/customers", "billing", "path_denied", None),
        ("GET", "https://api.stripe.com/v1/charges/%2e%2e/x", "billing", "path_denied", None),
        ("POST", "https://api.stripe.com/v1/charges/ch_1/refund", "billing", "path_denied", "deny[0]"),
        ("POST", "https://api.stripe.com/v1/charges", "reports", "method_denied", "allow[1]"),
        ("GET", "https://api.strip.com/v1/charges", "billing", "route_denied", None),
        ("GET", "http://api.stripe.com/v1/charges", "billing", "route_denied", None),
        ("GET", "https://0x7f.1/", "billing", "bad_request", None),
        ("GET", "https://user@api.stripe.com/", "billing", "bad_request", None),
        ("GET", "https://api.stripe.com/a b", "billing", "bad_request", None),
        ("G T", "https://api.stripe.com/", "billing", "bad_request", None),
    ],
)
def test_a_refusal_has_the_code_of_the_wire(
    folder: Path, method: str, url: str, workload: str, code: str, rule: str | None
) -> None:
    shown = ask(folder, method, url, workload, code=1)
    assert shown["code"] == code
    assert shown.get("rule") == rule
    assert "secrets" not in shown


def test_near_misses_say_what_would_have_been_right(folder: Path) -> None:
    shown = ask(folder, "DELETE", "https://api.stripe.com/v1/charges", code=1)
    assert {miss["route"]: miss["why"] for miss in shown["near_misses"]}["charges"] == "its methods are GET, POST"
    shown = ask(folder, "GET", "https://api.stripe.com/v1/x", code=1)
    why = {miss["route"]: miss["why"] for miss in shown["near_misses"]}["charges"]
    assert why == "its paths are /v1/charges, /v1/charges/**"


def test_an_unknown_host_is_told_its_neighbour(folder: Path) -> None:
    shown = ask(folder, "GET", "https://api.strip.com/", code=1)
    assert shown["nearest_host"] == "api.stripe.com"
    assert shown["near_misses"] == []


def test_wrong_questions(folder: Path) -> None:
    done = command("explain", "GET", "https://api.stripe.com/", cwd=folder)
    assert done.returncode == 64
    assert b"billing, reports" in done.stderr
    assert command("explain", "--workload", "nobody", "GET", "https://a.test/", cwd=folder).returncode == 64
    assert command("explain", "--workload", "billing", "GET", "a.test/", cwd=folder).returncode == 64
    (folder / "policy.yaml").write_text("routes: {r: {}}")
    assert command("explain", "--workload", "billing", "GET", "https://a.test/", cwd=folder).returncode == 78


def test_plain_http_and_what_is_passed_on(folder: Path) -> None:
    more = """
  plain:
    match: {host: inside.test, port: 80}
    allow: billing
    secret: {path: secret/egress/stripe, field: api_key}
    inject: {bearer: "{secret}"}
"""
    (folder / "policy.yaml").write_text("default: observe\n" + POLICY + more)
    shown = ask(folder, "GET", "http://inside.test/x", code=0)
    assert (shown["route"], shown["cleartext"], shown["inject"]) == ("plain", True, [])
    assert "secrets" not in shown
    (folder / "policy.yaml").write_text("default: observe\n" + POLICY + more + "    allow_cleartext: true\n")
    shown = ask(folder, "GET", "http://inside.test/x", code=0)
    assert shown["inject"] == ["header Authorization (Bearer)"]
    shown = ask(folder, "GET", "https://elsewhere.test/x", code=0)
    assert (shown["passage"], shown["rule"]) == ("observe", "default: observe")
    assert command("explain", "--workload", "billing", "GET", "https://elsewhere.test/", cwd=folder).returncode == 0
    # What a route names is never passed on, and plain http never is.
    assert ask(folder, "GET", "https://api.stripe.com:8443/", "reports", code=1)["code"] == "route_denied"
    assert ask(folder, "GET", "http://elsewhere.test/", code=1)["code"] == "route_denied"
    text = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text()
    assert "`passage`" in text
    assert "`cleartext`" in text


@pytest.mark.parametrize(("word", "shown"), [("auto", None), ("prefer", "prefer"), ("never", "never")])
def test_http2_is_told_where_it_is_not_automatic(folder: Path, word: str, shown: str | None) -> None:
    (folder / "policy.yaml").write_text(POLICY + f"    http2: {word}\n")
    url = "https://api.stripe.com:8443/"
    assert ask(folder, "GET", url, code=0).get("http2") == shown
    text = command("explain", "--workload", "billing", "GET", url, cwd=folder).stdout.decode()
    assert ("  http2     " in text) == (shown is not None)
    assert "`http2`" in (Path(__file__).parents[2] / "docs/reference/cli.md").read_text()


def test_the_example_of_the_documents(folder: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text()
    asked, _, shown = text.partition("```text explain ")[2].partition("```")[0].partition("\n")
    done = command("explain", "--workload", "billing", *asked.split(), cwd=folder)
    assert done.returncode == 1
    lines = [line for line in done.stdout.decode().splitlines() if "balance" not in line and "other-port" not in line]
    assert lines == shown.splitlines()


def test_every_key_is_documented(folder: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text()
    granted = ask(folder, "POST", "https://api.stripe.com/v1/charges", code=0)
    refused = ask(folder, "GET", "https://api.strip.com/", code=1)
    for key in {*granted, *refused, *granted["secrets"][0], *granted["timeouts"], *granted["near_misses"][0]}:
        assert f"`{key}`" in text, key


def test_a_reverse_listener(tmp_path: Path) -> None:
    """By the URL that the client uses, or by its name."""
    listen = 'listen: [{name: sidecar, bind: "127.0.0.1:8080", workload: billing}, {name: local, bind: "127.0.0.1:9001", mode: reverse, workload: billing, hosts: gw.test}]'
    (tmp_path / "ostiary.yaml").write_text(listen + "\n" + SETTINGS.partition("\n")[2].partition("\n")[2])
    (tmp_path / "policy.yaml").write_text(
        'workloads: {billing: {proofs: {any: true}}}\nroutes:\n  inside: {match: {paths: "/v1/**"}, listener: local, upstream: "http://in.test:8080", allow: billing}\n'
        "  other: {match: {host: a.test}, allow: billing}\n"
    )
    for url in ("http://127.0.0.1:9001/v1/x", "http://localhost:9001/v1/x", "http://gw.test/v1/x"):
        done = command("explain", "--json", "GET", url, cwd=tmp_path)
        shown = json.loads(done.stdout)
        assert (done.returncode, shown["route"], shown["listener"], shown["upstream"]) == (
            0,
            "inside",
            "local",
            "in.test:8080",
        )
        assert shown["cleartext"] is True
    named = command("explain", "--listener", "local", "GET", "https://whatever.test/v2", cwd=tmp_path)
    assert named.returncode == 1
    assert b"path_denied" in named.stdout
    assert b"near miss inside" in named.stdout
    assert b"other" not in named.stdout
    assert command("explain", "GET", "http://in.test:8080/v1/x", cwd=tmp_path).returncode == 1
    assert b"there are local" in command("explain", "--listener", "x", "GET", "https://a.test/", cwd=tmp_path).stderr


def test_what_is_made_when_it_is_asked_for(folder: Path) -> None:
    """A certificate that is issued, and what is lent, have no ttl of their own to tell."""
    settings = SETTINGS.replace("secrets_file: s.sealed\n", "").replace(
        "secrets_key: {file: s.key}", 'vault: {addresses: ["http://127.0.0.1:1"], auth: {method: token_file, file: t}}'
    )
    (folder / "ostiary.yaml").write_text(settings)
    shown = "{pki: {role: egress, common_name: billing}}"
    (folder / "policy.yaml").write_text(
        "workloads: {billing: {proofs: {any: true}}}\nroutes:\n"
        f"  made: {{match: {{host: a.test}}, allow: billing, tls: {{client_cert: {shown}}}, inject: {{bearer: '{{token}}'}},\n"
        f"         derive: {{client_credentials: {{token_url: 'https://login.test/t', client_id: me, client_cert: {shown}}}}}}}\n"
        "  lent: {match: {host: b.test}, allow: billing, secret: {path: aws/creds/reader, engine: aws, field: secret_key}, inject: {bearer: '{secret}'}}\n"
    )
    told = [command("explain", "GET", f"https://{host}/", cwd=folder) for host in ("a.test", "b.test")]
    assert [one.returncode for one in told] == [0, 0], told
    made, lent = (one.stdout.decode() for one in told)
    assert "  secret    pki/sign/egress (issued for billing), a certificate shown to the token endpoint\n" in made
    assert "  secret    pki/sign/egress (issued for billing), a certificate shown to the upstream\n" in made
    assert "  derive    client_credentials at login.test:443\n" in made
    assert "  secret    aws/creds/reader field secret_key (lent by aws)\n" in lent
