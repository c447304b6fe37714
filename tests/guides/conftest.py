"""A reader of a guide, whose upstreams are scripted ones of this test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.canaries import files_below, scan
from tests.harness.guides import Reader
from tests.harness.ostiary_process import HIDDEN
from tests.harness.pki import Pki


@pytest.fixture
def reader(tmp_path: Path, pki: Pki) -> Iterator[Callable[..., Reader]]:
    """Makes a reader; at the end what it started is ended and what is left is searched for the `secrets` given.

    `upstreams` are authorities and the ports they really have.
    """
    made: list[tuple[Reader, tuple[str, ...], tuple[str, ...]]] = []

    def make(
        *, upstreams: dict[str, int], secrets: tuple[str, ...], written: tuple[str, ...] = (), **given: Any
    ) -> Reader:
        resolve = ", ".join(f'"{name}": "127.0.0.1:{port}"' for name, port in upstreams.items())
        egress = f'egress: {{allow: ["127.0.0.0/8"], resolve: {{{resolve}}}, ca_file: {pki.ca_file}}}\n'
        one = Reader.at(tmp_path, egress=egress, **given)
        made.append((one, secrets, written))
        return one

    yield make
    for one, secrets, written in made:
        one.stop()
        outputs = [*one.outputs(), *files_below(one.folder, {*HIDDEN, *written})]
        assert not scan(outputs, secrets)
