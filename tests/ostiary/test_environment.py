"""The environment for clients."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
from pathlib import Path

import certifi
import pytest
import yaml

from ostiary.cli.env import SHELLS, render
from ostiary.environment import ADDING, PLACEHOLDERS, REPLACING, client_environment, proxy_url, write_bundle


def made(**inherited: str) -> tuple[dict[str, str], tuple[str, ...]]:
    found = client_environment(
        "http://p:1", Path("/ca.pem"), Path("/bundle.pem"), inherited, ["api.test", "*.wild.test", "192.0.2.1"]
    )
    return dict(found.variables), found.warnings


def test_both_spellings_and_every_ca_variable() -> None:
    variables, warnings = made()
    assert {variables[name] for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")} == {"http://p:1"}
    assert {variables[name] for name in REPLACING} == {"/bundle.pem"}
    assert {variables[name] for name in ADDING} == {"/ca.pem"}
    assert variables["NODE_USE_ENV_PROXY"] == "1"
    assert warnings == ()


@pytest.mark.parametrize(
    "entry",
    ["*", "api.test", ".test", "*.test", "test", "API.test", "api.test:443", "wild.test", "192.0.2.0/24", "192.0.2.1"],
)
def test_a_no_proxy_that_bypasses_a_route(entry: str) -> None:
    _, warnings = made(NO_PROXY=f"other.example, {entry}")
    assert any(repr(entry) in warning for warning in warnings)


@pytest.mark.parametrize("entry", ["", "other.test", "i.test", "10.0.0.0/8", "localhost"])
def test_a_no_proxy_that_does_not(entry: str) -> None:
    assert made(NO_PROXY=entry)[1] == ()


def test_keys_that_are_there_are_left_and_named() -> None:
    variables, warnings = made(OPENAI_API_KEY="cnry-real")
    assert "OPENAI_API_KEY" not in variables
    assert variables["ANTHROPIC_API_KEY"] == PLACEHOLDERS["ANTHROPIC_API_KEY"]
    assert "OPENAI_API_KEY" in warnings[0]
    assert "cnry" not in " ".join(warnings)


def test_proxy_urls() -> None:
    assert proxy_url("127.0.0.1:1", None) == "http://127.0.0.1:1"
    assert proxy_url("http://a:b@[::1]:1", "k/ey") == "http://ostiary:k%2Fey@[::1]:1"


def test_the_bundle_is_replaced_only_when_it_changed(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, b"ours")
    before = bundle.stat().st_ino
    assert write_bundle(tmp_path, b"ours").stat().st_ino == before
    assert write_bundle(tmp_path, b"theirs").stat().st_ino != before
    assert bundle.read_bytes().startswith(b"theirs\n")


def test_the_bundle_does_not_take_itself_for_the_systems_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corporate.pem").write_bytes(b"corporate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "corporate.pem"))
    bundle = write_bundle(tmp_path, b"ours")
    first = bundle.read_bytes()
    assert first.endswith(b"\ncorporate\n")
    # A shell that has our environment already.
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    assert write_bundle(tmp_path, b"ours").read_bytes() == first
    renewed = write_bundle(tmp_path, b"anew").read_bytes()
    assert renewed.startswith(b"anew\n")
    assert b"ours" not in renewed


def test_the_bundle_holds_the_systems_roots_certifis_and_ours(tmp_path: Path) -> None:
    certificate = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
    kept = set(
        certificate.findall(
            write_bundle(tmp_path, certificate.findall(Path(certifi.where()).read_bytes())[0]).read_bytes()
        )
    )
    assert set(certificate.findall(Path(certifi.where()).read_bytes())) <= kept
    system = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    if Path(system).exists():
        assert set(certificate.findall(Path(system).read_bytes())) <= kept


FORMATS = {
    "OPENAI_API_KEY": r"sk-[\w-]+",
    "ANTHROPIC_API_KEY": r"sk-ant-[\w-]+",
    "GEMINI_API_KEY": r"[\w-]+",
    "GITHUB_TOKEN": r"ghp_[\w-]+",
    "STRIPE_API_KEY": r"sk_test_\w+",
    "AWS_ACCESS_KEY_ID": r"AKIA[A-Z0-9]{16}",
    "AWS_SECRET_ACCESS_KEY": r"\S+",
}


@pytest.mark.parametrize("name", list(FORMATS))
def test_placeholders_look_like_what_they_stand_for(name: str) -> None:
    assert re.fullmatch(FORMATS[name], PLACEHOLDERS[name])


def test_every_placeholder_is_known_as_one() -> None:
    assert {name for name, value in PLACEHOLDERS.items() if "placehold" not in value.lower()} == set()


AWKWARD = """it's a "test" \\ $HOME `id` %PATH% #1; &\t*"""


@pytest.mark.parametrize("shell", SHELLS)
def test_values_survive_each_shell(shell: str, tmp_path: Path) -> None:
    text = render({"AWKWARD": AWKWARD}, shell)
    match shell:
        case "sh" | "fish":
            if shutil.which(shell) is None:
                pytest.skip(f"no {shell} on this machine")
            (tmp_path / "variables").write_text(text)
            script = f"{'.' if shell == 'sh' else 'source'} {tmp_path}/variables; printenv AWKWARD"
            done = subprocess.run([shell, "-c", script], capture_output=True, text=True, check=True, timeout=30)
            assert done.stdout == f"{AWKWARD}\n"
        case "k8s":
            assert yaml.safe_load(text)["env"] == [{"name": "AWKWARD", "value": AWKWARD}]
        case "docker":
            # An env file knows no quotes: everything behind the sign is the value.
            assert text == f"AWKWARD={AWKWARD}\n"
        case _:
            # PowerShell reads a single-quoted word literally but for the doubled quote.
            assert text == f"$env:AWKWARD = '{AWKWARD.replace(chr(39), chr(39) * 2)}'\n"
