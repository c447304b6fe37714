"""A listener's TLS: which certificate serves, when it changes, and that nothing wrong replaces what is right."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from ostiary.certificate import CertificateFault
from ostiary.engines import listener_tls
from ostiary.engines.fast.tls import CONTEXT_LIFE_S
from ostiary.engines.listener_tls import Certificates, ListenerTls, protocols
from ostiary.settings.model import TlsSetting
from tests.harness.pki import Pki
from tests.ostiary.engines.fast.test_tls import client_context, shake


class Case:
    def __init__(self, folder: Path, pki: Pki) -> None:
        self.pki = pki
        self.files = TlsSetting(folder / "tls.pem", folder / "tls.pem")
        self.put("gw.test")
        self.now_s = 0.0
        self.tls = ListenerTls("gateway", self.files, lambda: self.now_s)

    def put(self, *names: str, **bad: bool) -> None:
        made = self.pki.certificate(*names, **bad)
        made.replace(self.files.cert)

    def shown(
        self, alpn: tuple[str, ...] = ("http/1.1",), offered: tuple[bytes, ...] = (b"http/1.1",)
    ) -> tuple[x509.Certificate, str | None]:
        client, _ = shake(self.tls.context(offered), client_context(self.pki.ca_file, alpn), "gw.test")
        return x509.load_der_x509_certificate(
            client.getpeercert(binary_form=True) or b""
        ), client.selected_alpn_protocol()


@pytest.fixture
def case(tmp_path: Path, pki: Pki) -> Case:
    return Case(tmp_path, pki)


def test_protocols(case: Case) -> None:
    assert protocols(reverse=False, http2_first=True) == (b"http/1.1",)
    for first, chosen in ((True, "h2"), (False, "http/1.1")):
        offered = protocols(reverse=True, http2_first=first)
        assert case.shown(("http/1.1", "h2"), offered)[1] == chosen
        assert case.shown(("h2",), offered)[1] == "h2"
        assert case.shown((), offered)[1] is None
    assert case.shown(("h2",))[1] is None  # what is not offered is not chosen, and HTTP/1.1 goes on
    assert case.tls.context((b"http/1.1",)).minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_context_lives_for_an_hour(case: Case) -> None:
    first = case.tls.context((b"http/1.1",))
    case.now_s = CONTEXT_LIFE_S - 1
    assert case.tls.context((b"http/1.1",)) is first
    case.now_s = CONTEXT_LIFE_S
    assert case.tls.context((b"http/1.1",)) is not first


def test_what_changes_and_what_does_not(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, _ = case.shown()
    context = case.tls.context((b"http/1.1",))
    assert not case.tls.changed()
    case.tls.read_again()
    assert case.tls.context((b"http/1.1",)) is context, "the same certificate: sessions go on"
    case.put("gw.test", "more.test")
    assert case.tls.changed()
    assert case.shown()[0] == first, "not before it is read"
    case.tls.read_again()
    second, _ = case.shown()
    assert second != first
    assert not case.tls.changed()
    for wrong in (b"", b"nonsense", case.pki.ca_file.read_bytes()):
        case.files.cert.write_bytes(wrong)
        assert case.tls.changed()
        caplog.clear()
        case.tls.read_again()
        assert "keeps the certificate it has" in caplog.text
        assert not case.tls.changed(), "told once"
        assert case.shown()[0] == second
    case.files.cert.unlink()
    case.tls.read_again()
    assert case.shown()[0] == second
    caplog.clear()
    case.put("gw.test", expired=True)
    case.tls.read_again()
    assert "its certificate is expired" in caplog.text, "the operator's to judge: callers that do not verify go on"


def test_files_that_never_served(tmp_path: Path) -> None:
    with pytest.raises(CertificateFault):
        ListenerTls("gateway", TlsSetting(tmp_path / "no", tmp_path / "no"), lambda: 0.0)


async def test_a_change_is_seen_without_a_signal(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_tls, "LOOK_S", 0.01)
    first, _ = case.shown()
    all_of_them = Certificates((case.tls,))
    all_of_them.keep_looking()
    case.put("gw.test", "more.test")
    os.utime(case.files.cert, ns=(1, 1))
    try:
        async with asyncio.timeout(20):
            while case.shown()[0] == first:
                await asyncio.sleep(0.01)
    finally:
        all_of_them.stop()
