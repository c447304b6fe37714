"""A real OpenBao for the tests of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.pki import Pki


@pytest.fixture(scope="session")
def vault_pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Signs the server's certificate and those of clients."""
    return Pki.make(tmp_path_factory.mktemp("vault-pki"))


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory, vault_pki: Pki) -> Iterator[OpenBao]:
    with openbao_server(tmp_path_factory.mktemp("openbao"), tls=vault_pki.certificate("127.0.0.1")) as server:
        yield server
