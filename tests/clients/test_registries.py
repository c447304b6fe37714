"""npm, cargo and the image registry flow, each against a scripted registry."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import SECRET
from tests.harness.registries import Images, cargo, npm
from tests.harness.report import client as stated
from tests.harness.report import measuring
from tests.harness.two_ways import NODE, NPM, PLACEHOLDER, PROGRAMS, WAYS, Served, with_roots
from tests.harness.versions import told_by, usable

CARGO = usable("cargo")
DOCKER = shutil.which("docker")


@pytest.mark.parametrize("way", WAYS)
def test_npm_install(served: Callable[..., Served], tmp_path: Path, way: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / ".npmrc").write_text(f"registry=https://npm.example.com/\n//npm.example.com/:_authToken={PLACEHOLDER}\n")
    (work / "package.json").write_text(json.dumps({"name": "w", "version": "1.0.0", "dependencies": {"keyless": "1"}}))
    one = served(npm("npm.example.com"), "npm.example.com")
    quiet = ("--no-audit", "--no-fund", "--no-update-notifier", "--cache", str(tmp_path / "npm-cache"))
    with measuring("npm (install)", way, language="Node", version=told_by(NODE, NPM, "--version"), set="-"):
        done = one.run(way, NODE, NPM, "install", *quiet, cwd=work)
        one.assert_injected(done)
    assert (work / "node_modules/keyless/index.js").read_text() == "module.exports = 'from the registry';\n"
    assert {seen.target for seen in one.api.requests} == {"/keyless", "/keyless/-/keyless-1.0.0.tgz"}


@pytest.mark.skipif(CARGO is None, reason="no cargo that runs on this machine")
@pytest.mark.parametrize("way", WAYS)
def test_cargo_fetch(served: Callable[..., Served], tmp_path: Path, way: str) -> None:
    shutil.copytree(PROGRAMS / "cargo", tmp_path / "work")
    one = served(cargo("crates.example.com"), "crates.example.com", inject='{header: Authorization, value: "{secret}"}')
    with measuring(
        "cargo (fetch, sparse registry)", way, language="Rust", version=told_by(str(CARGO), "--version"), set="-"
    ):
        done = one.run(way, str(CARGO), "fetch", cwd=tmp_path / "work", CARGO_HOME=str(tmp_path / "cargo-home"))
        one.assert_injected(done, value="{}")
    assert list((tmp_path / "cargo-home/registry/cache").glob("*/keyless-1.0.0.crate"))
    assert [seen.target for seen in one.api.requests][-1] == "/dl/keyless-1.0.0.crate"


@pytest.mark.parametrize(
    ("without", "works"),
    [
        (("npm_config_cafile",), True),
        (("NODE_EXTRA_CA_CERTS",), True),
        (("npm_config_cafile", "NODE_EXTRA_CA_CERTS"), False),
    ],
)
def test_npm_takes_either_variable(
    served: Callable[..., Served], tmp_path: Path, without: tuple[str, ...], works: bool
) -> None:
    one = served(npm("npm.example.com"), "npm.example.com")
    unset = [part for name in without for part in ("-u", name)]
    view = (NODE, NPM, "view", "keyless", "version", "--registry", "https://npm.example.com", "--fetch-retries=0")
    done = one.run("environment", "env", *unset, *view, cwd=tmp_path, npm_config_cache=str(tmp_path / "npm-cache"))
    if works:
        one.assert_injected(done)
        assert done.stdout.strip() == "1.0.0"
        stated("npm (install)", roots="`npm_config_cafile` or `NODE_EXTRA_CA_CERTS`")
    else:
        assert done.code != 0
        assert re.search("UNABLE_TO_|SELF_SIGNED_CERT", done.stderr)
        assert not one.api.requests


@pytest.mark.skipif(CARGO is None, reason="no cargo that runs on this machine")
@pytest.mark.parametrize(
    ("without", "works"),
    [
        (("CARGO_HTTP_CAINFO",), True),
        (("SSL_CERT_FILE",), True),
        (("CARGO_HTTP_CAINFO", "SSL_CERT_FILE"), False),
    ],
)
def test_cargo_takes_either_variable(
    served: Callable[..., Served], tmp_path: Path, without: tuple[str, ...], works: bool
) -> None:
    shutil.copytree(PROGRAMS / "cargo", tmp_path / "work")
    one = served(cargo("crates.example.com"), "crates.example.com", inject='{header: Authorization, value: "{secret}"}')
    unset = [part for name in without for part in ("-u", name)]
    done = one.run(
        "environment", "env", *unset, str(CARGO), "fetch", cwd=tmp_path / "work",
        CARGO_HOME=str(tmp_path / "cargo-home"), CARGO_NET_RETRY="0",
    )  # fmt: skip
    if works:
        one.assert_injected(done, value="{}")
        stated("cargo (fetch, sparse registry)", roots="`CARGO_HTTP_CAINFO` or `SSL_CERT_FILE`")
    else:
        assert "SSL" in done.stderr
        assert not one.api.requests


IMAGE_ROUTES = f"""
  tokens: {{match: {{host: auth.example.com}}, allow: billing, {SECRET}, inject: {{basic: {{username: puller, password: "{{secret}}"}}}}}}
  registry: {{match: {{host: registry.example.com}}, allow: billing, caller_credentials: keep}}
  blobs: {{match: {{host: layers.example.com}}, allow: billing}}
"""


def images(served: Callable[..., Served]) -> tuple[Served, Images]:
    script = Images(
        "registry.example.com", "auth.example.com", "layers.example.com", "team/app", "short-lived-pull-token"
    )
    return served(script, "registry.example.com", "auth.example.com", "layers.example.com", routes=IMAGE_ROUTES), script


def assert_only_the_token_endpoint_saw_the_secret(one: Served, script: Images) -> None:
    basic = f"Basic {base64.b64encode(f'puller:{one.secret}'.encode()).decode()}"
    assert {sent for host, _, sent in script.seen if host == "auth.example.com"} == {basic}
    assert {sent for host, _, sent in script.seen if host == "registry.example.com"} <= {None, f"Bearer {script.token}"}
    assert {sent for host, _, sent in script.seen if host == "layers.example.com"} <= {None}


@pytest.mark.parametrize("way", WAYS)
def test_image_pull(served: Callable[..., Served], way: str) -> None:
    one, script = images(served)
    held = base64.b64encode(f"puller:{PLACEHOLDER}".encode()).decode()
    program = str(PROGRAMS / "docker_pull.py")
    done = one.run(way, sys.executable, program, "registry.example.com", "team/app", "1", held)
    assert done.code == 0, done.stderr
    assert done.stdout.split() == [script.digest, str(len(script.blob))]
    assert_only_the_token_endpoint_saw_the_secret(one, script)
    assert [host for host, _, _ in script.seen] == [
        "registry.example.com", "auth.example.com", "registry.example.com", "registry.example.com", "layers.example.com",
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
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {"registry.example.com": {"auth": held}}}))
    facts = {"language": "Docker", "version": told_by(str(DOCKER), "--version"), "set": "-"}
    command = (str(DOCKER), "manifest", "inspect", "registry.example.com/team/app:1")
    with measuring("docker (manifest)", way, **facts):
        done = one.run(way, *command, DOCKER_CONFIG=str(tmp_path / "docker"))
        assert done.code == 0, done.stderr
    stated("docker (manifest)", cannot="`pull`: the daemon has an environment of its own")
    assert json.loads(done.stdout)["layers"][0]["digest"] == script.digest
    assert_only_the_token_endpoint_saw_the_secret(one, script)
    assert held.encode() not in bytes(one.api.raw)


@pytest.mark.skipif(DOCKER is None, reason="no docker command on this machine")
def test_where_docker_reads_its_roots(served: Callable[..., Served], tmp_path: Path) -> None:
    one, script = images(served)
    (tmp_path / "docker").mkdir()
    command = (str(DOCKER), "manifest", "inspect", "registry.example.com/team/app:1")
    with measuring("docker (manifest)", "roots", "`SSL_CERT_FILE`"):
        for kept, works in ((("CURL_CA_BUNDLE",), False), (("SSL_CERT_FILE",), True)):
            done = one.run("environment", *with_roots(*kept), *command, DOCKER_CONFIG=str(tmp_path / "docker"))
            assert (done.code == 0) == works, done.stderr
            assert bool(script.seen) == works
