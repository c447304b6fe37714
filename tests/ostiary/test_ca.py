"""The CA and its leaves (K1, G31, G32)."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from ostiary.ca import CaError, LeafStore, load, load_or_create

NOW = dt.datetime.now(dt.UTC)


def test_made_once_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    first = load_or_create(folder, NOW)
    assert load_or_create(folder, NOW).pem == first.pem
    assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == ["ca.key", "ca.pem"]


def _create(folder: Path) -> None:
    load_or_create(folder, NOW)


def test_two_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_create, args=(tmp_path / "ca",)) for _ in range(4)]
    for one in both:
        one.start()
    for one in both:
        one.join(30)
        assert one.exitcode == 0
    load(tmp_path / "ca", NOW)


def test_k1_what_cannot_be_trusted_stops_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    load_or_create(folder, NOW)
    with pytest.raises(CaError, match="expired"):
        load(folder, NOW + dt.timedelta(days=4000))
    (folder / "ca.key").chmod(0o640)
    with pytest.raises(CaError, match="chmod 600"):
        load(folder, NOW)
    (folder / "ca.key").chmod(0o600)
    other = tmp_path / "other"
    load_or_create(other, NOW)
    pem = (folder / "ca.pem").read_bytes()
    (folder / "ca.pem").write_bytes((other / "ca.pem").read_bytes())
    with pytest.raises(CaError, match="does not belong"):
        load(folder, NOW)
    (folder / "ca.pem").write_bytes(b"garbage")
    with pytest.raises(CaError, match="damaged"):
        load(folder, NOW)
    (folder / "ca.pem").write_bytes(pem)
    (folder / "ca.key").unlink()
    with pytest.raises(CaError, match="cannot be read"):
        load_or_create(folder, NOW)


def test_a_certificate_that_is_no_ca(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    authority = load_or_create(folder, NOW)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(authority.key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=1))
        .sign(authority.key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(CaError, match="no CA certificate"):
        load(folder, NOW)


def handshake(store: LeafStore, ca: bytes, host: str, tmp_path: Path) -> None:
    leaf = store.leaf(host)
    pem = tmp_path / "leaf.pem"
    key = leaf.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(key + leaf.cert.public_bytes(serialization.Encoding.PEM))
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(pem)
    client_context = ssl.create_default_context(cadata=ca.decode())
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.getpeercert()


@pytest.mark.parametrize("host", ["api.test", "xn--bcher-kva.test", "192.0.2.1", "2001:db8::1"])
def test_leaves_pass_strict_verification(tmp_path: Path, host: str) -> None:
    authority = load_or_create(tmp_path / "ca", NOW)
    handshake(LeafStore(authority, lambda: NOW), authority.pem, host, tmp_path)


def test_leaves_are_kept_renewed_and_bounded(tmp_path: Path) -> None:
    now = [NOW]
    store = LeafStore(load_or_create(tmp_path / "ca", NOW), lambda: now[0], capacity=2)
    first = store.leaf("a.test")
    assert store.leaf("a.test") is first
    now[0] += dt.timedelta(days=4)
    renewed = store.leaf("a.test")
    assert renewed.cert.serial_number != first.cert.serial_number
    assert renewed.cert.not_valid_after_utc > first.cert.not_valid_after_utc
    for host in ("b.test", "c.test"):
        store.leaf(host)
    assert store.leaf("a.test") is not renewed
    assert first.cert.not_valid_before_utc < NOW
