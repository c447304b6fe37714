"""What settings and policy must agree on about signatures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ostiary.settings import load_all
from policies import FaultError
from tests.harness.ostiary_process import command

REST = """
ca: {dir: ca}
secrets_file: s.sealed
secrets_key: {file: s.key}
audit: {sinks: [{file: audit.jsonl}]}
policies: [p.yaml]
"""
SECRET = "secret: {path: secret/keys, field: k}"
HOOKS = f'routes: {{r: {{match: {{paths: /hook}}, listener: hooks, upstream: "http://receiver:8080", allow: verified, {SECRET}, verify: VERIFY}}}}'
HMAC, GITHUB = '{hmac: {keys: "{secret}"}}', '{github: {keys: "{secret}"}}'
LISTEN = 'listen: [{name: hooks, bind: "127.0.0.1:9001", mode: reverse}]'


def write(folder: Path, verify: str, settings: str) -> Path:
    (folder / "p.yaml").write_text(HOOKS.replace("VERIFY", verify))
    (folder / "ostiary.yaml").write_text(settings + REST)
    return folder / "ostiary.yaml"


@pytest.mark.parametrize(
    ("verify", "settings", "wanted"),
    [
        (HMAC, LISTEN, None),
        (GITHUB, f"{LISTEN}\nworkers: 2", None),
        (HMAC, f'{LISTEN}\nworkers: 2\nstate: {{url: "sqlite:///state.db"}}', None),
        (HMAC, f"{LISTEN}\nworkers: 2", "wants each nonce once, and 2 workers share no state"),
        (HMAC.replace('"}', '", nonce: false}'), f"{LISTEN}\nworkers: 2", None),
        ('{http_message: {keys: {k: "{secret}"}, algorithm: ed25519, components: ["@method", "@target-uri"]}}', f"{LISTEN}\nworkers: 2", "share no state"),
        (GITHUB, LISTEN.replace("reverse}", "reverse, workload: w}"), "its listener 'hooks' takes all callers for workload 'w'"),
    ],
)  # fmt: skip
def test_what_must_agree(tmp_path: Path, verify: str, settings: str, wanted: str | None) -> None:
    path = write(tmp_path, verify, settings)
    if "workload: w" in settings:
        (tmp_path / "p.yaml").write_text("workloads: {w: {proofs: {any: true}}}\n" + (tmp_path / "p.yaml").read_text())
    if wanted is None:
        load_all(path, {})
        return
    with pytest.raises(FaultError) as error:
        load_all(path, {})
    assert any(wanted in str(fault) for fault in error.value.faults), error.value.faults


def test_explain_speaks_of_it(tmp_path: Path) -> None:
    write(tmp_path, HMAC, LISTEN)
    done = command("explain", "POST", "http://127.0.0.1:9001/hook", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["verify"] == "hmac (sha256) in header X-Signature, 1 key, each nonce once, within 300 s"
    assert (shown["workload"], shown["upstream"], shown["inject"]) == ("verified", "receiver:8080", [])
    assert [secret["path"] for secret in shown["secrets"]] == ["secret/keys"]
    told = command("explain", "POST", "http://127.0.0.1:9001/hook", cwd=tmp_path).stdout.decode()
    assert "  verify    hmac (sha256)" in told
    assert "cleartext" not in told
    refused = command("explain", "POST", "http://127.0.0.1:9001/other", "--json", cwd=tmp_path)
    assert (refused.returncode, json.loads(refused.stdout)["code"]) == (1, "path_denied")
