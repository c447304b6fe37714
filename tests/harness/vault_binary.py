"""Which server the tests of Vault talk to: OpenBao as it comes with the test packages, or the binary that the variable
`OSTIARY_TEST_VAULT` names (`make test-vault`: HashiCorp Vault).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

import pytest

VARIABLE: Final = "OSTIARY_TEST_VAULT"


@cache
def vault_binary() -> str:
    """The server's binary."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        assert os.access(named, os.X_OK), f"{VARIABLE} names no program: {named}"
        return named
    found = shutil.which("bao", path=str(Path(sys.executable).parent))
    assert found is not None, "the bao binary is missing: run make setup"
    return found


@cache
def vault_version() -> str:
    """As the binary tells it: `OpenBao v2.7.2 …`, `Vault v1.21.0 …`."""
    done = subprocess.run([vault_binary(), "version"], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def has_namespaces() -> bool:
    """OpenBao has them; the Community edition of HashiCorp Vault answers 400 "enterprise-only feature"."""
    return VARIABLE not in os.environ or vault_version().startswith("OpenBao")


needs_aws = pytest.mark.skipif(
    vault_version().startswith("OpenBao"), reason="OpenBao has no login by AWS IAM: it is tested by make test-vault"
)
needs_namespaces = pytest.mark.skipif(
    not has_namespaces(), reason="this server has no namespaces: they are tested on OpenBao"
)
