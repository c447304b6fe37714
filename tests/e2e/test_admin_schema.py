"""Schemathesis against the real process: what the API does is what its document says, for every operation and every check."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ostiary.admin.table import OPERATIONS
from tests.harness.admin import Token, block, call
from tests.harness.ostiary_process import Ostiary, clean_environment

EXAMPLES = 25
"""For each operation and phase."""


def schemathesis(folder: Path, document: Any, address: str, token: Token) -> tuple[int, str]:
    """Exit code and output."""
    (folder / "openapi.json").write_text(json.dumps(document))
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"),
            "run",
            "openapi.json",
            f"--url=http://{address}",
            f"--header=Authorization: Bearer {token.value}",
            "--checks=all",
            "--phases=examples,coverage,fuzzing",
            f"--max-examples={EXAMPLES}",
            "--seed=7",
            "--no-color",
            "--request-timeout=10",
        ],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        timeout=100,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.timeout(180)
def test_the_api_keeps_its_document(ostiary: Callable[..., Ostiary], tmp_path: Path) -> None:
    token = Token("tester", "admin")
    proxy = ostiary(admin=block(token, more=', probes: "127.0.0.1:0"'))
    document = call(proxy, "GET", "/openapi.json", token=token).json()
    code, told = schemathesis(tmp_path, document, proxy.ready["admin"], token)
    assert code == 0, told
    assert f"{len(OPERATIONS)} selected / {len(OPERATIONS)} total" in told
    # Every operation was really asked: reloads were recorded, and what came without the token was refused.
    assert any(record.get("by") == "tester" for record in proxy.audit("policy.loaded"))
    assert "token_required" in {record["code"] for record in proxy.wait_audit("request.refused")}


@pytest.mark.parametrize("lie", ["schema", "status", "auth"])
def test_a_document_that_lies_is_found_out(ostiary: Callable[..., Ostiary], tmp_path: Path, lie: str) -> None:
    """The test above can fail: three ways to say what the process does not do."""
    token = Token("tester", "admin")
    proxy = ostiary(admin=block(token))
    document = call(proxy, "GET", "/openapi.json", token=token).json()
    match lie:
        case "schema":
            document["components"]["schemas"]["Reloaded"]["properties"]["routes"] = {"type": "string"}
        case "status":
            del document["paths"]["/routes"]["get"]["responses"]["200"]
        case _:
            document["paths"]["/healthz"]["get"]["security"] = [{"token": []}]
    code, told = schemathesis(tmp_path, document, proxy.ready["admin"], token)
    assert code == 1, told
    wanted = {
        "schema": "Response violates schema",
        "status": "Undocumented status code",
        "auth": "API accepts requests without authentication",
    }[lie]
    assert wanted in told, told
