"""The certificate authority that intercepts: its key and certificate on disk, leaves in memory.

Rules:
- The CA key lies in `ca.dir/ca.key`, mode 0600, and is used for nothing but signing leaves. A key that others can read,
  that does not fit its certificate, or a certificate that has expired or is no CA stops the start.
- Leaves are EC P-256, one a host, for hosts that a policy routes. They share one key that lives and dies with the
  process: a key of its own for each would protect nothing more, since whoever reads one of them in memory reads them
  all.
- Certificates follow RFC 5280 closely enough for `ssl.VERIFY_X509_STRICT`: SKI and AKI, critical CA constraints, key
  usages, positive random serials.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KEY_FILE: Final = "ca.key"
CERT_FILE: Final = "ca.pem"
CA_DAYS: Final = 3650
LEAF_DAYS: Final = 7
BACKDATED: Final = dt.timedelta(hours=1)
"""Callers' clocks may be behind."""
MAX_LEAVES: Final = 1024


class CaError(Exception):
    """The CA cannot be used; the message says why and what to do. The process exits with 78."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate for one host with the key to it."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """Certificate and key of the CA."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate, as callers need it."""
        return self.cert.public_bytes(serialization.Encoding.PEM)


def load_or_create(folder: Path, now: dt.datetime) -> CertificateAuthority:
    """The CA of a folder, made at the first start.

    Raises:
        CaError: it cannot be read, made or trusted.
    """
    if not (folder / KEY_FILE).exists() and not (folder / CERT_FILE).exists():
        _create(folder, now)
    return load(folder, now)


def load(folder: Path, now: dt.datetime) -> CertificateAuthority:
    """The CA of a folder.

    Raises:
        CaError: it is not there, readable by others, broken or expired.
    """
    key_path, cert_path = folder / KEY_FILE, folder / CERT_FILE
    try:
        mode = key_path.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise CaError(
                f"the CA key {key_path} is open to others (mode {stat.S_IMODE(mode):04o}): chmod 600 {key_path}"
            )
        key_pem, cert_pem = key_path.read_bytes(), cert_path.read_bytes()
    except OSError as error:
        raise CaError(f"the CA in {folder} cannot be read: {error.strerror} ({error.filename})") from None
    try:
        key = serialization.load_pem_private_key(key_pem, None)
        cert = x509.load_pem_x509_certificate(cert_pem)
    except (ValueError, TypeError):
        raise CaError(
            f"the CA in {folder} is damaged: {KEY_FILE} or {CERT_FILE} is no PEM; restore it or remove both for a new one"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CaError(f"the CA key {key_path} is no EC key")
    if key.public_key() != cert.public_key():
        raise CaError(f"the CA key {key_path} does not belong to {cert_path}")
    if now > cert.not_valid_after_utc:
        raise CaError(
            f"the CA {cert_path} expired on {cert.not_valid_after_utc:%Y-%m-%d}: remove {KEY_FILE} and {CERT_FILE} for a new one, and give it to the callers"
        )
    try:
        constraints = cert.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = None
    if constraints is None or not constraints.ca:
        raise CaError(f"{cert_path} is no CA certificate")
    return CertificateAuthority(cert, key)


def _create(folder: Path, now: dt.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Ostiary"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Ostiary CA {os.urandom(4).hex()}"),
        ]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + dt.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Key and certificate appear together or not at all, and of two processes that start at once one wins.
        fresh = folder / f".new-{os.getpid()}"
        fresh.mkdir(mode=0o700)
        try:
            _write(fresh / KEY_FILE, pem, 0o600)
            _write(fresh / CERT_FILE, cert.public_bytes(serialization.Encoding.PEM), 0o644)
            with contextlib.suppress(FileExistsError):
                (folder / KEY_FILE).hardlink_to(fresh / KEY_FILE)
                (fresh / CERT_FILE).replace(folder / CERT_FILE)
        finally:
            for left in fresh.iterdir():
                left.unlink()
            fresh.rmdir()
    except OSError as error:
        raise CaError(f"the CA cannot be made in {folder}: {error.strerror}") from None
    _await_certificate(folder)


def _await_certificate(folder: Path) -> None:
    """The other process may have linked its key a moment before its certificate."""
    import time

    for _ in range(100):
        if (folder / CERT_FILE).exists():
            return
        time.sleep(0.01)


def _write(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


class LeafStore:
    """Leaves by host, in memory, made when first asked for and renewed at half life.

    Args:
        authority: signs them.
        now: wall clock.
        capacity: leaves kept.
    """

    def __init__(
        self, authority: CertificateAuthority, now: Callable[[], dt.datetime], *, capacity: int = MAX_LEAVES
    ) -> None:
        self._authority = authority
        self._now = now
        self._capacity = capacity
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._leaves: OrderedDict[str, tuple[dt.datetime, Leaf]] = OrderedDict()

    def leaf(self, host: str) -> Leaf:
        """The leaf for a host name (A-labels) or an address."""
        now = self._now()
        known = self._leaves.get(host)
        if known is not None and now < known[0]:
            self._leaves.move_to_end(host)
            return known[1]
        leaf = Leaf(self._mint(host, now), self._key)
        self._leaves[host] = (now + dt.timedelta(days=LEAF_DAYS) / 2, leaf)
        self._leaves.move_to_end(host)
        if len(self._leaves) > self._capacity:
            self._leaves.popitem(last=False)
        return leaf

    def _mint(self, host: str, now: dt.datetime) -> x509.Certificate:
        authority = self._authority
        if now > authority.cert.not_valid_after_utc:
            raise CaError("the CA has expired while the process ran")
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        issuer = authority.cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            x509.CertificateBuilder()
            # An empty subject makes the SAN the one name; it is critical then (RFC 5280 section 4.2.1.6).
            .subject_name(x509.Name([]))
            .issuer_name(authority.cert.subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - BACKDATED, authority.cert.not_valid_before_utc))
            .not_valid_after(min(now + dt.timedelta(days=LEAF_DAYS), authority.cert.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
            .sign(authority.key, hashes.SHA256())
        )
