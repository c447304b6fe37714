"""A throw-away CA for upstreams: good certificates, and those that must be refused."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_TRUE = bytes.fromhex("0603551d130101ff")
"""basicConstraints, critical: the boolean in DER, where true has one spelling, and in BER, where it has 255."""
_TRUE_AS_WELL = bytes.fromhex("0603551d13010101")
_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")


@dataclass(frozen=True, slots=True)
class Pki:
    """The CA, its PEM file, and a folder for certificates."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    cert: x509.Certificate

    @property
    def ca_file(self) -> Path:
        return self.folder / "upstream-ca.pem"

    @classmethod
    def make(cls, folder: Path) -> Pki:
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        cert = _build("Test upstream CA", key, None, key, ca=True)
        made = cls(folder, key, cert)
        made.ca_file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        return made

    def context(
        self, *names: str, expired: bool = False, self_signed: bool = False, alpn: tuple[str, ...] = ("http/1.1",)
    ) -> ssl.SSLContext:
        """A server context with a certificate for these names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate(*names, expired=expired, self_signed=self_signed))
        context.set_alpn_protocols(list(alpn))
        return context

    def lax(self, *names: str) -> Path:
        """As `certificate`, one that OpenSSL verifies and a strict reader of DER does not read."""
        path = self.certificate(*names)
        key, mark, rest = path.read_text().partition("-----BEGIN CERTIFICATE-----")
        inner = x509.load_pem_x509_certificate((mark + rest).encode()).tbs_certificate_bytes
        assert inner.count(_TRUE) == 1
        inner = inner.replace(_TRUE, _TRUE_AS_WELL)
        signature = b"\0" + self.key.sign(inner, ec.ECDSA(hashes.SHA256()))
        outer = inner + _ECDSA_SHA256 + bytes([3, len(signature)]) + signature
        der = b"\x30\x82" + len(outer).to_bytes(2, "big") + outer
        path.write_text(key + ssl.DER_cert_to_PEM_cert(der))
        return path

    def asking(self, *names: str, clients: Pki | None = None, alpn: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLContext:
        """A server context for these names that wants a client certificate of this CA, or of `clients`."""
        context = self.context(*names, alpn=alpn)
        context.load_verify_locations(str((clients or self).ca_file))
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self, name: str, *, expired: bool = False) -> tuple[str, str]:
        """A client certificate and its key, each PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        cert = _build(name, key, self, self.key, expired=expired)
        return cert.public_bytes(serialization.Encoding.PEM).decode(), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    def certificate(self, *names: str, expired: bool = False, self_signed: bool = False) -> Path:
        """A file with a key and its certificate for these names."""
        key = ec.generate_private_key(ec.SECP256R1())
        cert = _build(
            names[0], key, None if self_signed else self, key if self_signed else self.key, names=names, expired=expired
        )
        path = self.folder / f"{names[0]}-{cert.serial_number:x}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + cert.public_bytes(serialization.Encoding.PEM)
        )
        return path


def _build(
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: Pki | None,
    signer: ec.EllipticCurvePrivateKey,
    *,
    names: tuple[str, ...] = (),
    ca: bool = False,
    expired: bool = False,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.cert.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now - dt.timedelta(days=1) if expired else now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if ca:
        builder = builder.add_extension(
            x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True
        )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
