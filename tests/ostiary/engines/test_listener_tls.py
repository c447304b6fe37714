"""A listener's TLS: which certificate serves, when it changes, and that nothing wrong replaces what is right."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from ostiary.certificate import CertificateFault, ListenerCertificate, read_certificate
from ostiary.engines import listener_tls
from ostiary.engines.fast.tls import CONTEXT_LIFE_S, load_pem
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
        caplog.clear()
        case.tls.read_again(quietly=True)
        assert not caplog.text, "told once, but at every reload"
        case.tls.read_again()
        assert "keeps the certificate it has" in caplog.text
        assert case.shown()[0] == second
    case.files.cert.unlink()
    case.tls.read_again()
    assert case.shown()[0] == second
    caplog.clear()
    case.put("gw.test", expired=True)
    case.tls.read_again()
    assert "its certificate is expired" in caplog.text, "the operator's to judge: callers that do not verify go on"


def test_a_change_while_a_context_is_made(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are read in a thread: what was made of the certificate before must not be kept for that of now."""
    load = load_pem

    def slow(context: ssl.SSLContext, pem: bytes) -> None:
        monkeypatch.setattr(listener_tls, "load_pem", load)
        case.put("gw.test", "more.test")
        case.tls.read_again()
        load(context, pem)

    monkeypatch.setattr(listener_tls, "load_pem", slow)
    case.tls.context((b"http/1.1",))
    (wanted,) = x509.load_pem_x509_certificates(case.files.cert.read_bytes())
    assert case.shown()[0] == wanted


def test_a_certificate_that_only_openssl_refuses(tmp_path: Path, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """It is a fault of the start, not of every handshake; later it changes nothing."""
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is what is wrong with it
    name, now = x509.Name([]), dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    weak = (
        x509.CertificateBuilder(name, name, key.public_key(), 7, now, now.replace(year=2090))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("gw.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "weak.pem"
    file.write_bytes(
        weak.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(CertificateFault, match="listener gateway: OpenSSL refuses"):
        ListenerTls("gateway", TlsSetting(file, file), lambda: 0.0)
    first, _ = case.shown()
    file.replace(case.files.cert)
    case.tls.read_again()
    assert "OpenSSL refuses" in caplog.text
    assert case.shown()[0] == first


def test_what_passes_is_tried_again(
    case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no descriptor was free just when the files had changed, they are read at the next look."""
    read, fault = (
        read_certificate,
        CertificateFault("cert", "tls.pem cannot be read: Too many open files", ""),
    )

    def full(*_: Path) -> ListenerCertificate:
        raise fault

    first, _ = case.shown()
    case.put("gw.test", "more.test")
    monkeypatch.setattr(listener_tls, "read_certificate", full)
    case.tls.read_again(quietly=True)
    assert "Too many open files" in caplog.text
    monkeypatch.setattr(listener_tls, "read_certificate", read)
    assert case.tls.changed()
    case.tls.read_again(quietly=True)
    assert case.shown()[0] != first
    assert not case.tls.changed()


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
