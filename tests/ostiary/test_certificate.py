"""A listener's certificate: what fits serves, and what does not says why."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ostiary.certificate import MAX_FILE_BYTES, CertificateFault, read_certificate
from tests.harness.pki import Pki


def key_pem(password: bytes | None = None) -> bytes:
    sealed = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed
    )


def test_what_fits(pki: Pki, tmp_path: Path) -> None:
    both = pki.certificate("gw.test", "127.0.0.1")
    found = read_certificate(both, both)
    assert found.names == ("gw.test", "127.0.0.1")
    assert b"PRIVATE" not in repr(found).encode()
    chain = tmp_path / "chain.pem"
    chain.write_bytes(both.read_bytes() + pki.ca_file.read_bytes())
    assert read_certificate(chain, both).pem.count(b"BEGIN CERTIFICATE") == 2
    assert read_certificate(chain, both).leaf == found.leaf


@pytest.mark.parametrize(
    ("cert", "key", "about", "message"),
    [
        (None, b"", "cert", "cannot be read: No such file"),
        (b"", b"", "cert", "holds no certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"", "cert", "holds no certificate"),
        ("good", None, "key", "cannot be read: No such file"),
        ("good", b"", "key", "holds no private key"),
        ("good", b"x" * (MAX_FILE_BYTES + 1), "key", "is larger than"),
        ("good", key_pem(), "key", "is not the key of"),
        ("good", key_pem(b"a passphrase"), "key", "is encrypted"),
        ("swapped", "good", "key", "is not the key of"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_does_not(
    pki: Pki, tmp_path: Path, cert: bytes | str | None, key: bytes | str | None, about: str, message: str
) -> None:
    good = pki.certificate("gw.test").read_bytes()
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    for path, content in zip(files, (cert, key), strict=True):
        if content == "swapped":  # the issuer first, the leaf behind it
            path.write_bytes(pki.ca_file.read_bytes() + good)
        elif content is not None:
            path.write_bytes(good if isinstance(content, str) else content)
    with pytest.raises(CertificateFault, match=message) as fault:
        read_certificate(*files)
    assert fault.value.about == about
    assert fault.value.mend
    assert "passphrase" not in str(fault.value) or "nobody is there" in str(fault.value)


def test_a_key_of_a_kind_that_nobody_knows(pki: Pki, tmp_path: Path) -> None:
    """The parser has taken the certificate by then; its key is read when it is asked for."""
    good = pki.certificate("gw.test")
    der = x509.load_pem_x509_certificate(good.read_bytes()[good.read_bytes().index(b"-----BEGIN CERT") :]).public_bytes(
        serialization.Encoding.DER
    )
    curve = bytes.fromhex("06082a8648ce3d030107")  # prime256v1
    assert der.count(curve) == 1
    odd = base64.encodebytes(der.replace(curve, curve[:-1] + b"\x63"))
    cert = tmp_path / "odd.pem"
    cert.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + odd + b"-----END CERTIFICATE-----\n")
    with pytest.raises(CertificateFault, match="cannot be used") as fault:
        read_certificate(cert, good)
    assert fault.value.about == "cert"
