"""P9: providers whose tool is no Python SDK, through their presets: git, npm, Linear's SDK for Node, and clients of Docker Hub.

As in test_provider_sdks.py: `ostiary exec` with nothing but `use:`, and a server that takes the right credential alone.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from policies.preset import built_in
from tests.harness.canaries import canary
from tests.harness.git_server import git, git_server, repository
from tests.harness.installed import node_with, python_with
from tests.harness.ostiary_process import ENGINES, Ostiary, clean_environment
from tests.harness.registries import Images, npm
from tests.harness.two_ways import NODE, NPM, PLACEHOLDER, PROGRAMS, Done, Served
from tests.harness.upstream import Script, Seen, Upstream, Wire
from tests.slow.test_provider_sdks import LOCK, locked

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("engine", ENGINES[-1:], indirect=True)]
NOBODY = ("env", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_TERMINAL_PROMPT=0")
LINEAR = PROGRAMS / "linear"
HUB = ("registry-1.docker.io", "auth.docker.io", "production.cloudflare.docker.com")
HUB_ROUTES = f"""  registry: {{match: {{host: {HUB[0]}}}, allow: billing, caller_credentials: keep}}
  blobs: {{match: {{host: {HUB[2]}}}, allow: billing}}
"""
DOCKER = shutil.which("docker")


@dataclass
class Guarded:
    """A provider that takes the right credential alone: what came with another is answered with 401, and kept here."""

    script: Script
    value: str
    host: str
    refused: list[str]

    def __call__(self, seen: Seen, wire: Wire) -> None:
        if (seen.get("Host") or "") == self.host and seen.get("Authorization") != self.value:
            self.refused.append(f"{seen.method} {seen.target}")
            wire.answer(401, b"{}", (("WWW-Authenticate", 'Basic realm="it"'), ("Content-Type", "application/json")))
        else:
            self.script(seen, wire)


type Through = Callable[..., tuple[Served, Guarded]]


@pytest.fixture
def through(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> Iterator[Through]:
    """Puts a preset before a provider, whose script is given."""
    made: list[tuple[Served, Guarded]] = []

    def make(
        name: str, script: Script, value: str, *hosts: str, routes: str = "", field: str = "token", guarded: int = 0,
        **fields: str,
    ) -> tuple[Served, Guarded]:  # fmt: skip
        key = canary(name)
        wanted = value.format(key)
        if value.startswith("Basic "):
            wanted = f"Basic {base64.b64encode(wanted[6:].encode()).decode()}"
        guard = Guarded(script, wanted, hosts[guarded], [])
        api = upstream(guard, names=hosts)
        proxy = ostiary(
            f"workloads: {{billing: {{proofs: [{{any: true}}]}}}}\nroutes:\n  api: {{use: {name}, allow: billing}}\n{routes}",
            start=False,
            upstreams={f"{host}:443": api.port for host in hosts},
            secrets={f"secret/egress/{name}": {field: key, **fields}},
        )
        made.append((Served(proxy, api, key, "-"), guard))
        return made[-1]

    yield make
    for served, guard in made:
        assert served.api.requests
        assert guard.refused == []
        assert PLACEHOLDER.encode() not in bytes(served.api.raw)


def assert_done(done: Done, served: Served, route: str = "api") -> None:
    assert done.code == 0, done.stderr[-2000:]
    assert served.secret not in done.stdout + done.stderr
    assert {record["route"] for record in done.events("credential.opened")} == {route}


def test_git_clones_and_pushes(through: Through, tmp_path: Path) -> None:
    root = repository(tmp_path)
    (root / "acme").mkdir()
    (root / "r.git").rename(root / "acme" / "r.git")
    one, _ = through("github-git", git_server(root), "Basic x-access-token:{}", "github.com")
    assert_done(one.run("exec", *NOBODY, "git", "clone", "-q", "https://github.com/acme/r.git", "c", cwd=tmp_path), one)
    cloned = tmp_path / "c"
    (cloned / "notes").write_text("line\n")
    git("add", "notes", cwd=cloned)
    git("commit", "-q", "-m", "second", cwd=cloned)
    assert_done(one.run("exec", *NOBODY, "git", "push", "-q", "origin", "main", cwd=cloned), one)
    assert git("log", "--format=%s", "main", cwd=root / "acme" / "r.git") == "second\nfirst\n"
    assert built_in("github-git").driven == "git"


def test_npm_installs_and_publishes(through: Through, tmp_path: Path) -> None:
    published: list[dict[str, object]] = []
    registry = npm("registry.npmjs.org")

    def script(seen: Seen, wire: Wire) -> None:
        if seen.method == "PUT":
            published.append(json.loads(seen.body))
            wire.answer(201, b"{}", (("Content-Type", "application/json"),))
        else:
            registry(seen, wire)

    one, _ = through("npm", script, "Bearer {}", "registry.npmjs.org")
    work = tmp_path / "work"
    work.mkdir()
    # The line that npm's page on continuous integration has: npm itself reads the variable.
    (work / ".npmrc").write_text("//registry.npmjs.org/:_authToken=${NPM_TOKEN}\n")
    (work / "package.json").write_text(
        json.dumps({"name": "ours", "version": "1.0.0", "dependencies": {"keyless": "1"}})
    )
    quiet = ("--no-audit", "--no-fund", "--no-update-notifier", "--cache", str(tmp_path / "npm-cache"))
    assert_done(one.run("exec", NODE, NPM, "install", *quiet, cwd=work), one)
    assert (work / "node_modules/keyless/index.js").read_text() == "module.exports = 'from the registry';\n"
    assert_done(one.run("exec", NODE, NPM, "publish", *quiet, cwd=work), one)
    assert [document["name"] for document in published] == ["ours"]
    told = subprocess.run([NODE, NPM, "--version"], capture_output=True, text=True, check=True, env=clean_environment())
    assert built_in("npm").driven == f"npm {told.stdout.strip()}"


def test_the_sdk_of_linear(through: Through) -> None:
    def script(seen: Seen, wire: Wire) -> None:
        assert (seen.method, seen.target) == ("POST", "/graphql")
        assert "viewer" in json.loads(seen.body)["query"]
        wire.answer(200, b'{"data": {"viewer": {"id": "u", "name": "hello"}}}', (("Content-Type", "application/json"),))

    packages = node_with(
        "npm-linear", LINEAR / "package-lock.json", [LINEAR / name for name in ("viewer.mjs", "package.json", ".npmrc")]
    )
    one, _ = through("linear", script, "{}", "api.linear.app", field="api_key")
    done = one.run("exec", NODE, "viewer.mjs", cwd=packages)
    assert_done(done, one)
    assert done.stdout.split() == ["hello"]
    named = json.loads((LINEAR / "package.json").read_text())["dependencies"]
    assert [f"{name} {version}" for name, version in named.items()] == [built_in("linear").driven]


def hub(through: Through) -> tuple[Served, Images]:
    images = Images(*HUB, "acme/app", "short-lived-pull-token")
    one, _ = through("docker-hub", images, "Basic jdoe:{}", *HUB, routes=HUB_ROUTES, guarded=1, username="jdoe")
    return one, images


def assert_pulled(images: Images, one: Served) -> None:
    """The registry saw the short-lived token and nothing else, the store of blobs nothing."""
    seen = {host: {sent for other, _, sent in images.seen if other == host} for host, _, _ in images.seen}
    assert seen[HUB[0]] == {None, f"Bearer {images.token}"}
    assert seen.get(HUB[2], {None}) == {None}
    assert HUB[1] in seen


def test_a_client_of_docker_hub(through: Through, tmp_path: Path) -> None:
    one, images = hub(through)
    python = python_with("sdks", LOCK, patience_s=600)
    program = PROGRAMS / "python" / "docker_hub.py"
    done = one.run("exec", str(python), str(program), "acme/app", "1", images.digest, cwd=tmp_path)
    assert_done(done, one)
    assert done.stdout.split() == [str(len(images.blob))]
    assert_pulled(images, one)
    assert built_in("docker-hub").driven == f"python-dxf {locked('python-dxf')}"


@pytest.mark.skipif(DOCKER is None, reason="no docker command on this machine")
def test_the_docker_command_at_docker_hub(through: Through, tmp_path: Path) -> None:
    """`docker login` keeps user and password in this file: here the placeholders."""
    one, images = hub(through)
    held = base64.b64encode(f"ostiary:dckr_pat_{PLACEHOLDER}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": held}}}))
    done = one.run("exec", str(DOCKER), "manifest", "inspect", "acme/app:1", DOCKER_CONFIG=str(tmp_path))
    assert_done(done, one)
    assert json.loads(done.stdout)["layers"][0]["digest"] == images.digest
    assert_pulled(images, one)
