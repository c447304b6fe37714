"""A real OpenBao for the tests of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.openbao import OpenBao, openbao_server


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with openbao_server(tmp_path_factory.mktemp("openbao")) as server:
        yield server
