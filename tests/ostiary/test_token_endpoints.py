"""Contexts towards token endpoints: shared while they are used, and a key that nothing shows any more is let go of."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from addons.client_certificate import ClientCertificate, read
from ostiary.token_endpoints import contexts
from tests.harness.pki import Pki
from vault.secret import Secret


def shown(pki: Pki) -> ClientCertificate:
    chain, key = pki.client("me")
    found = read(Secret(chain), Secret(key), "cert")
    assert isinstance(found, ClientCertificate)
    return found


async def test_a_context_is_of_its_roots_and_its_certificate(pki: Pki) -> None:
    of, one, two = contexts(None), shown(pki), shown(pki)
    bare = of(pki.ca_file, "a", None)
    assert of(pki.ca_file, "a", None) is bare
    # The same file with other content, and each certificate, are others.
    found = [bare, of(pki.ca_file, "b", None), of(pki.ca_file, "a", one), of(pki.ca_file, "a", two), of(None, "", one)]
    assert len({id(context) for context in found}) == 5
    assert of(pki.ca_file, "a", one) is found[2]


async def test_a_key_that_is_shown_no_more_goes(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostiary.engines.contexts.UNUSED_S", 0.0)
    monkeypatch.setattr("ostiary.token_endpoints.UNUSED_S", -1.0)
    monkeypatch.setattr("ostiary.token_endpoints.SPARE_S", 1.01)
    of = contexts(None)
    bare, held = weakref.ref(of(None, "", None)), weakref.ref(of(None, "", shown(pki)))
    async with asyncio.timeout(20):
        while held() is not None:
            gc.collect()
            await asyncio.sleep(0.01)
    assert bare() is not None
