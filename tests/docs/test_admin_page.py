"""docs/reference/admin.md says what the code does, and its examples run as they are written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from ostiary.admin import server
from ostiary.admin.problems import Kind
from ostiary.admin.table import OPERATIONS
from ostiary.admin.tokens import COVERS
from tests.conftest import POLICY
from tests.harness.ostiary_process import Ostiary, clean_environment, command

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/admin.md").read_text()
BLOCKS = re.findall(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
EXAMPLES = [
    (where, text, answer) for (kind, where, text), (two, _, answer) in pairwise(BLOCKS) if (kind, two) == ("sh", "text")
]


def test_every_operation() -> None:
    rows = re.findall(r"^\| `([A-Z]+) (/[\w./{}]*)` \| (\w+) \|", PAGE, re.MULTILINE)
    assert [(method, path, role) for method, path, role in rows] == [
        (one.method, one.path, one.role or "none") for one in OPERATIONS
    ]


def test_every_problem() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", PAGE, re.MULTILINE)
    assert [(code, int(status)) for code, status in rows] == [(kind.code, kind.status) for kind in Kind]


def test_every_role_and_number() -> None:
    assert re.findall(r"^\| `(\w+)` \| [a-z]", PAGE[PAGE.index("| role | may |") :], re.MULTILINE) == list(COVERS)
    assert (server.MAX_CONNECTIONS, server.MAX_HEAD_BYTES, server.MAX_DROPPED_BYTES) == (64, 16 << 10, 64 << 10)
    assert (server.HEAD_S, server.BODY_S, server.ANSWER_S, server.EXCHANGE_S) == (30, 10, 30, 60)
    for said in ("64 connections", "16 KiB and 30 s", "64 KiB and 10 s", "An exchange: 60 s", "longer than 30 s"):
        assert said in PAGE
    for name, value in server.HEADERS:
        assert name in PAGE
        assert "default-src" in value or value in PAGE


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_examples_run(tmp_path: Path) -> None:
    assert {where for where, _, _ in EXAMPLES} == {"unix", "loopback"}
    assert len(EXAMPLES) == 4
    minted = json.loads(command("key", "mint", "--admin", "deploy", cwd=tmp_path).stdout)
    block = next(text for kind, where, text in BLOCKS if (kind, where) == ("yaml", "settings"))
    admin = block[block.index("admin:\n") :].removeprefix("admin:").replace(f"sha256:{'0' * 64}", minted["hash"])
    admin = "\n" + admin.strip("\n").replace("0.0.0.0:9090", "127.0.0.1:0")
    binds = {"unix": 'bind: "unix:admin.sock"', "loopback": 'bind: "127.0.0.1:0"'}
    running: dict[str, Ostiary] = {}
    try:
        for where, bind in binds.items():
            given = admin.replace(binds["unix"], bind)
            if where == "loopback":
                given = re.sub(r"^ *socket_mode.*\n", "", given, flags=re.MULTILINE)
            running[where] = Ostiary(tmp_path / where, POLICY, admin=given).start()

        def run(where: str, text: str) -> str:
            proxy = running[where]
            done = subprocess.run(
                ["sh", "-ec", text.replace("127.0.0.1:9901", proxy.ready["admin"])],
                cwd=proxy.folder,
                env=clean_environment(
                    PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", OSTIARY_ADMIN_TOKEN=minted["key"]
                ),
                capture_output=True,
                timeout=30,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.decode()

        for where, text, answer in EXAMPLES:
            pattern = ".+".join(re.escape(part) for part in answer.strip().split("…"))
            assert re.fullmatch(pattern, run(where, text).strip()), text
    finally:
        for proxy in running.values():
            proxy.stop()
