"""Contexts that hold a client certificate's key are let go of, in both engines (P8)."""

from __future__ import annotations

import gc
import weakref

import pytest

from addons.client_certificate import ClientCertificate, read
from ostiary.engines.contexts import MOST, UNUSED_S, Contexts
from ostiary.engines.fast.tls import UpstreamContexts as FastContexts
from ostiary.engines.mitm.dialling import TlsTerms
from ostiary.engines.mitm.tls import UpstreamContexts as MitmContexts
from tests.harness.pki import Pki
from vault.secret import Secret


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("kind", [FastContexts, MitmContexts])
def test_a_key_that_is_shown_no_more_goes(kind: type[FastContexts | MitmContexts], pki: Pki) -> None:
    clock = Clock()
    contexts = kind(pki.ca_file, clock)
    cert, key = pki.client("one")
    one = read(Secret(cert), Secret(key), "cert")
    assert isinstance(one, ClientCertificate)
    plain, old = contexts.of(None), weakref.ref(contexts.of(None, TlsTerms("a@1"), one))
    clock.now_s += UNUSED_S
    new = contexts.of(None, TlsTerms("a@2"), one)
    assert old() is contexts.of(None, TlsTerms("a@1"), one)
    clock.now_s += UNUSED_S / 2
    assert contexts.of(None, TlsTerms("a@2"), one) is new
    clock.now_s += UNUSED_S / 2 + 1
    contexts.sweep()
    gc.collect()
    assert old() is None
    assert contexts.of(None, TlsTerms("a@2"), one) is new
    assert contexts.of(None) is plain


def test_there_are_only_so_many() -> None:
    contexts = Contexts[object](Clock())
    first = object()
    contexts.put((None, TlsTerms("a@1")), first)
    for number in range(MOST):
        contexts.put((None, TlsTerms(str(number))), object())
    assert contexts.get((None, TlsTerms("a@1"))) is None
    assert len(contexts) == MOST
