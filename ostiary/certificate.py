"""The certificate of a TLS listener: read whole, judged before it is used.

`ssl` would read two files at two moments, ask a terminal for a passphrase, and say of a wrong key only that it is wrong.
So both files are read once, here, and what was judged is what is used. `check`, `run` and `doctor` ask the same questions.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

MAX_FILE_BYTES: Final = 1024 * 1024


class CertificateFault(Exception):
    """The files cannot serve.

    Args:
        about: `cert` or `key`: which of the two.
        message: what is wrong.
        mend: what to do.
    """

    def __init__(self, about: str, message: str, mend: str) -> None:
        super().__init__(message)
        self.about = about
        self.message = message
        self.mend = mend


@dataclass(frozen=True, slots=True)
class ListenerCertificate:
    """A chain, leaf first, and its key."""

    leaf: x509.Certificate
    names: tuple[str, ...]
    """What clients may call the listener by: DNS names and addresses of the leaf."""
    pem: bytes = field(repr=False)
    """Chain and key, for `ssl`."""

    def expired(self, now: dt.datetime) -> bool:
        return now >= self.leaf.not_valid_after_utc

    def too_early(self, now: dt.datetime) -> bool:
        return now < self.leaf.not_valid_before_utc


def read_certificate(cert: Path, key: Path) -> ListenerCertificate:
    """Reads and judges both files. Dates are not judged: they pass while a process runs.

    Raises:
        CertificateFault: one cannot be read, is no PEM, or the two do not belong together.
    """
    chain_pem, key_pem = _read("cert", cert), _read("key", key)
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
    except ValueError:
        raise CertificateFault(
            "cert", f"{cert} holds no certificate in PEM", "write the leaf first, then the intermediates"
        ) from None
    try:
        private = serialization.load_pem_private_key(key_pem, None)
    except TypeError:
        raise CertificateFault(
            "key",
            f"{key} is encrypted, and nobody is there to type a passphrase",
            f"openssl pkey -in {key} -out plain.key",
        ) from None
    except Exception:  # noqa: BLE001 - whatever a parser says of a key is not repeated
        raise CertificateFault("key", f"{key} holds no private key in PEM", "write an EC or RSA key, PKCS #8") from None
    leaf = chain[0]
    try:
        same = _public(leaf.public_key()) == _public(private.public_key())
        names = _names(leaf)
    except Exception:  # noqa: BLE001 - parts of a certificate are read when they are asked for, and fail in many ways
        raise CertificateFault(
            "cert",
            f"{cert} cannot be used: its key or its names are of a kind that is not known",
            "use an EC or RSA key",
        ) from None
    if not same:
        raise CertificateFault(
            "key", f"{key} is not the key of {cert}", "the first certificate of cert must be the one of this key"
        )
    pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain) + private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return ListenerCertificate(leaf, names, pem)


def _read(about: str, path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            found = handle.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CertificateFault(
            about, f"{path} cannot be read: {error.strerror}", "paths are relative to the settings file"
        ) from None
    if len(found) > MAX_FILE_BYTES:
        raise CertificateFault(about, f"{path} is larger than {MAX_FILE_BYTES} bytes", "is it the right file?")
    return found


def _public(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]  # every public key of the library has it
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    names = found.get_values_for_type(x509.DNSName)
    return (*names, *(str(address) for address in found.get_values_for_type(x509.IPAddress)))
