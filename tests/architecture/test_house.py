"""Rules of the house that no linter knows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("addons", "ostiary", "policies", "vault")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def tracked() -> list[Path]:
    listed = (
        subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    )
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_first_what_it_owns(path: Path) -> None:
    text = path.read_text()
    assert text.startswith('"""')
    assert text.count("\n") < 600, "one idea a file"
    assert not re.search(r"\b(manager|helper|util)s?\.py$", path.name)


def test_secrets_leave_in_few_places() -> None:
    """`reveal` is the one way out; whoever adds a place adds it here, for a reviewer to see."""
    found = {
        str(path.relative_to(ROOT)) for path in MODULES if re.search(r"\.(reveal(_bytes)?|derive)\(", path.read_text())
    }
    assert found == {
        "addons/client_certificate.py",  # into the chain and key that TLS with an upstream shows
        "addons/deriving/azure.py",  # into the thumbprint of a certificate
        "addons/deriving/google_service_account.py",  # into what a key file holds
        "addons/deriving/jws.py",  # into a signing key
        "addons/injection/render.py",  # into the head that leaves
        "addons/reply/scrub.py",  # into the spellings that answers are searched for
        "addons/signing/acs3.py",  # into the key of a signature
        "addons/signing/aws.py",  # into the key of a day, region and service
        "addons/signing/aws_asymmetric.py",  # into the key pair that is derived from it
        "addons/signing/edgegrid.py",  # into the key of a signature
        "addons/signing/hmac_lines.py",  # into the text that a template signs
        "addons/signing/keys.py",  # into the key of an HMAC
        "addons/signing/tc3.py",  # into the key of a day and service
        "addons/state/valkey.py",  # the password of the state's server, into its client
        "addons/stages/remote_keys.py",  # a signature that Vault made, into the request that leaves
        "addons/verifying/webhooks.py",  # into the key of a Standard Webhook
        "vault/hashicorp/answers.py",  # out of what Vault says, should it quote what was sent
        "vault/hashicorp/aws.py",  # into the key of a signed login, and a session token into its head
        "vault/hashicorp/kv.py",  # a new refresh token, back into Vault
        "ostiary/workers/login.py",  # the token of the one login, to a worker over its socket pair
        "vault/hashicorp/client.py",  # a Vault token, into Vault's client
        "vault/hashicorp/methods.py",  # what logs in, likewise
        "vault/hashicorp/wrapped.py",  # a wrapping token, likewise
        "vault/secret.py",  # into what is derived from it and lives with it
        "vault/sealed.py",  # the file's key, and values on their way into the seal
    }


def test_only_stages_and_the_engines_know_mitmproxy() -> None:
    for path in MODULES:
        name = str(path.relative_to(ROOT))
        if re.search(r"^\s*(from|import) mitmproxy", path.read_text(), re.MULTILINE):
            assert name.startswith(("addons/stages/", "ostiary/engines/")) or name == "ostiary/dispatch.py", name


def test_lock_files_carry_hashes_and_no_address() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text, path
        for line in text.splitlines():
            if line and not line.startswith((" ", "#", "-")):
                assert "==" in line
                assert line.rstrip().endswith("\\"), line


def test_nothing_names_the_machine_it_was_made_on() -> None:
    # Written in two parts, so that this file does not name what it looks for.
    wanted = re.compile(r"(?<![\w./-])/(" + "|".join(("wo" + "rk", "ro" + "ot", "fa" + "rm")) + r")/")
    for path in tracked():
        if path.suffix in {".txt", ".c"}:
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        assert not wanted.search(text), path
