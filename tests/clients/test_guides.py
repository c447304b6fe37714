"""The language guides, word by word: their policy, their programs, their commands, their output."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.canaries import canary
from tests.harness.guides import GUIDES, Block, blocks, shims
from tests.harness.ostiary_process import Ostiary, clean_environment
from tests.harness.ports import free_port
from tests.harness.registries import Images, cargo
from tests.harness.two_ways import CACHE, NODE, PROGRAMS, ROOT
from tests.harness.upstream import Script, Seen, Upstream, Wire, plain
from tests.harness.vendors import anthropic, openai, stripe
from tests.harness.versions import usable

SECRET = re.compile(r"secret: \{path: ([\w/]+), field: (\w+)\}")
LANGUAGES = {"node": "node", "go": "go", "java": "java", "rust": "cargo", "docker": "docker", "python": "python"}
"""Guides, and the command that each cannot do without."""


def hosts_of(policy: str) -> list[str]:
    return re.findall(r"host: ([\w.]+)", policy)


def by_host(scripts: dict[str, Script]) -> Script:
    """One upstream that plays several hosts."""

    def script(seen: Seen, wire: Wire) -> None:
        scripts.get(seen.get("Host") or "", plain())(seen, wire)

    return script


@pytest.mark.parametrize("guide", list(LANGUAGES))
def test_programs_stand_in_the_guide_as_they_are_run(guide: str) -> None:
    for language, mark, text in blocks(guide):
        if language in {"javascript", "go", "java", "toml", "python"}:
            (path,) = PROGRAMS.rglob(mark)
            assert text == path.read_text(), mark


@pytest.mark.parametrize("guide", list(LANGUAGES))
def test_commands(
    ostiary: Callable[..., Ostiary],
    upstream: Callable[..., Upstream],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    guide: str,
) -> None:
    if guide not in {"node", "python"} and usable(LANGUAGES[guide]) is None:
        pytest.skip(f"no {LANGUAGES[guide]} on this machine")
    found = blocks(guide)
    (policy,) = (text for language, mark, text in found if (language, mark) == ("yaml", "policy"))
    images = Images("registry.example.com", "auth.example.com", "layers.example.com", "team/app", "short-lived")
    scripts: dict[str, Script] = {
        "api.openai.com": openai,
        "api.anthropic.com": anthropic,
        "api.stripe.com": stripe,
        "crates.example.com": cargo("crates.example.com"),
        **dict.fromkeys(hosts_of((GUIDES / "docker.md").read_text()), images),
    }
    api = upstream(by_host(scripts), names=tuple(hosts_of(policy)))
    key = canary()
    proxy = ostiary(
        policy,
        # A port that is known before: `ostiary env` reads it from the settings.
        listen=f'[{{name: sidecar, bind: "127.0.0.1:{free_port()}", workload: app}}]',
        upstreams={f"{host}:443": api.port for host in hosts_of(policy)},
        secrets={path: {field: key} for path, field in SECRET.findall(policy)},
    )
    environment = prepare(proxy.folder, tmp_path, guide, request)
    output = ""
    for language, _, text in found:
        if language == "sh":
            done = subprocess.run(
                ["sh", "-e", "-c", text], cwd=proxy.folder, capture_output=True, text=True, timeout=100, check=False,
                stdin=subprocess.DEVNULL, env=environment,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            output += done.stdout
    expected = "".join(text for language, _, text in found if language == "text")
    if expected:
        assert output == expected
    # Each command reached an upstream with the key, and nothing the reader holds came along.
    sent = [shown(seen.get("Authorization") or seen.get("x-api-key") or "") for seen in api.requests]
    assert sum(key in value for value in sent) >= commands(found)
    assert not any("placeholder" in value or "undefined" in value for value in sent)


def commands(found: list[Block]) -> int:
    """How many client commands the guide runs."""
    lines = [line for language, _, text in found if language == "sh" for line in text.splitlines()]
    return sum(not line.startswith(("eval ", "go build")) for line in lines)


def shown(authorization: str) -> str:
    """An Authorization with Basic taken apart."""
    scheme, _, rest = authorization.partition(" ")
    return base64.b64decode(rest).decode() if scheme == "Basic" else authorization


def prepare(folder: Path, tmp_path: Path, guide: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """Lays the programs where the guide's reader has them; gives the environment of the reader's shell."""
    python = request.getfixturevalue("client_python") if guide == "python" else sys.executable
    path = shims(tmp_path / "bin", node=f'"{NODE}"', python=f'"{python}"')
    extra = {"PATH": path, "PYTHONPATH": str(ROOT)}
    if guide == "node":
        packages: Path = request.getfixturevalue("packages")
        (folder / "node_modules").symlink_to(packages / "node_modules")
    source = PROGRAMS / ("cargo" if guide == "rust" else guide if (PROGRAMS / guide).is_dir() else "")
    shutil.copytree(source, folder, dirs_exist_ok=True)
    if guide == "docker":
        (config,) = (text for _, mark, text in blocks(guide) if mark == "config.json")
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker" / "config.json").write_text(config)
    return clean_environment(
        **extra,
        CARGO_HOME=str(tmp_path / "cargo-home"),
        DOCKER_CONFIG=str(tmp_path / "docker"),
        GOCACHE=str(CACHE / "go"),
        GOTOOLCHAIN="local",
        API_KEY="ostiary-placeholder",
    )
