"""What is a client certificate and what is none; pins; and a key that nobody prints."""

from __future__ import annotations

import copy
import datetime as dt
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.x509.oid import NameOID

from addons.client_certificate import MAX_CHAIN, ClientCertificate, Shown, pinned, read, spki_sha256
from ostiary.engines.fast.tls import load_by_pipes, load_client
from tests.harness.pki import Pki
from vault.secret import Secret


def certificate(pki: Pki, name: str = "one") -> tuple[ClientCertificate, tuple[str, str]]:
    pair = pki.client(name)
    found = read(Secret(pair[0]), Secret(pair[1]), "cert")
    assert isinstance(found, ClientCertificate)
    return found, pair


def test_what_is_refused(pki: Pki) -> None:
    (cert, key), (_, other) = pki.client("one"), pki.client("two")
    loaded = serialization.load_pem_private_key(key.encode(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    locked = loaded.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    ).decode()
    unfit = (
        x25519.X25519PrivateKey.generate()
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode()
    )
    for chain, private, why in (
        ("", key, "its certificate is no PEM"),
        (key, key, "its certificate is no PEM"),
        (cert[:200], key, "its certificate is no PEM"),
        (cert, "", "its key is no PEM"),
        (cert, cert, "its key is no PEM"),
        (cert, locked, "its key is encrypted"),
        (cert, other, "its key belongs to another certificate"),
        (pki.ca_file.read_text() + cert, key, "its key belongs to another certificate"),
        (cert, unfit, "its key is of a kind that TLS does not sign with"),
        (cert * (MAX_CHAIN + 1), key, "its chain has more than"),
        (cert + "x" * 70_000, key, "it is larger than 64 KiB"),
    ):
        found = read(Secret(chain), Secret(private), "cert")
        assert isinstance(found, str), why
        assert found.startswith(why)


def test_an_rsa_key_is_tried(pki: Pki) -> None:
    """Its parts may not belong together, though its public half is the certificate's."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    now = dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rsa")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1)).sign(pki.key, hashes.SHA256())
    )  # fmt: skip
    cert = made.public_bytes(serialization.Encoding.PEM).decode()
    numbers = key.private_numbers()
    torn = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, numbers.d ^ 6, numbers.dmp1 ^ 6, numbers.dmq1 ^ 6, numbers.iqmp, numbers.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)  # fmt: skip

    def pem(one: rsa.RSAPrivateKey) -> Secret:
        text = one.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        return Secret(text.decode())

    assert isinstance(read(Secret(cert), pem(key), "cert"), ClientCertificate)
    assert read(Secret(cert), pem(torn), "cert") == "its key does not sign"


def test_it_is_parsed_once_and_shown_to_nobody(pki: Pki) -> None:
    cert, key = pki.client("one")
    chain, secret = Secret(cert), Secret(key)
    found = read(chain, secret, "cert")
    assert read(chain, secret, "cert") is found
    assert isinstance(found, ClientCertificate)
    shown = Shown(found, "secret/a", "3")
    line = key.splitlines()[1]
    assert line not in repr(found) + repr(shown) + str(found) + f"{found}{shown}"
    assert line in found.key_pem().decode()
    assert shown.identity.startswith("secret/a@3:")
    with pytest.raises(TypeError):
        copy.copy(found)
    other, _ = certificate(pki, "one")
    assert other.fingerprint != found.fingerprint


def test_it_is_loaded_without_a_file(pki: Pki, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By memory files and, where a system has none, by pipes: nothing is written anywhere."""
    found, _ = certificate(pki)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for load in (load_client, load_by_pipes):
        before = sorted(Path("/proc/self/fd").iterdir())
        load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), found)
        assert len(sorted(Path("/proc/self/fd").iterdir())) == len(before)
    assert not any(tmp_path.iterdir())
    big = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(ssl.SSLError):
        load_by_pipes(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ClientCertificate(found.chain, big))


def test_pins(pki: Pki) -> None:
    leaf = x509.load_pem_x509_certificate(pki.client("one")[0].encode())
    pins = frozenset({spki_sha256(pki.cert)})
    assert pinned((leaf, pki.cert), pins)
    assert not pinned((leaf,), pins)
    assert not pinned((), pins)
