"""The environment for clients."""

from __future__ import annotations

from pathlib import Path

import pytest

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
