"""The certificate that is shown to an upstream, or to a token endpoint: read from the secret that holds it, checked, and kept with it.

Rules:
- It is looked at before anything is dialled: what does not parse, does not belong together or is out of date is
  `secret_malformed`, and no upstream is connected to.
- What was parsed lives exactly as long as the version of the secret that it came from.
- Its key is shown to nobody: no repr, no pickle. `key_pem` is the one way out, for an engine that loads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final, NoReturn, final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa

from addons.credentials import Credential, SealedCredential
from addons.exchange import Exchange
from addons.refusal import Code, Refusal
from policies.template import FieldRef
from policies.tls import CLIENT_CERT, ClientCertSpec
from vault.secret import Secret

MAX_PEM_BYTES: Final = 64 * 1024
MAX_CHAIN: Final = 10
MIN_RSA_BITS: Final = 2048
MIN_EC_BITS: Final = 224
"""112 bits of security: OpenSSL refuses to load less at its level 2."""
MAX_RSA_BITS: Final = 8192
_PROBE: Final = b"ostiary: does this key sign?"
type SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
_KINDS: Final = (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)


@final
class ClientCertificate:
    """One chain and its key. Compared by identity."""

    __slots__ = ("__key", "begins_s", "chain", "ends_s", "fingerprint")

    def __init__(self, chain: tuple[x509.Certificate, ...], key: SigningKey) -> None:
        self.chain = chain
        self.__key = key
        self.begins_s = max(cert.not_valid_before_utc.timestamp() for cert in chain)
        self.ends_s = min(cert.not_valid_after_utc.timestamp() for cert in chain)
        self.fingerprint = hashlib.sha256(b"".join(_der(cert) for cert in chain)).hexdigest()
        """Of all that is shown. It names the key as well: the first certificate holds its public half."""

    @property
    def key(self) -> SigningKey:
        """For a library that takes keys as objects."""
        return self.__key

    def chain_pem(self) -> bytes:
        """The chain as it was parsed."""
        return b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in self.chain)

    def key_pem(self) -> bytes:
        """The key, PKCS #8, not encrypted."""
        return self.__key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def __repr__(self) -> str:
        return "ClientCertificate(…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("client certificates are not serialised")


@final
class Shown:
    """The certificate that this request's connection shows, and the version of the secret that it is."""

    __slots__ = ("certificate", "identity")

    def __init__(self, certificate: ClientCertificate, secret: str, version: str) -> None:
        self.certificate = certificate
        self.identity = f"{secret}@{version}:{certificate.fingerprint}"
        """Connections and sessions are shared only where this is the same."""

    def __repr__(self) -> str:
        return f"Shown({self.identity!r})"


def references(spec: ClientCertSpec | None) -> tuple[FieldRef, ...]:
    """What has to be read for it."""
    return () if spec is None else spec.references(CLIENT_CERT)


def show(
    exchange: Exchange, spec: ClientCertSpec, sealed: SealedCredential, credential: Credential, now_s: float
) -> None:
    """Puts `Shown`, in the place of one that was there.

    Args:
        exchange: of the request.
        spec: which fields.
        sealed: what the credential was opened from.
        credential: opened for this request.
        now_s: seconds since the epoch.

    Raises:
        Refusal: `secret_malformed` or `secret_missing`.
    """
    secret = sealed.entries[CLIENT_CERT]
    found = opened(spec, CLIENT_CERT, credential, secret.name, now_s)
    exchange.forget(Shown)
    exchange.put(Shown(found, secret.name, secret.version))


def opened(spec: ClientCertSpec, entry: str, credential: Credential, name: str, now_s: float) -> ClientCertificate:
    """The certificate of an opened credential, if it can be shown now.

    Args:
        spec: which fields.
        entry: of the credential.
        credential: opened.
        name: of the secret, for the refusal.
        now_s: seconds since the epoch.

    Raises:
        Refusal: `secret_malformed` or `secret_missing`.
    """
    chain, key = (credential.value(reference) for reference in spec.references(entry))
    found = read(chain, key, spec.cert)
    if isinstance(found, ClientCertificate):
        if now_s >= found.ends_s:
            found = "it has expired"
        elif now_s < found.begins_s:
            found = "it is not valid yet"
    if not isinstance(found, ClientCertificate):
        raise Refusal(Code.SECRET_MALFORMED, f"The client certificate {name} is not usable: {found}.")
    return found


def read(chain: Secret, key: Secret, name: str) -> ClientCertificate | str:
    """The certificate, or what is wrong with it.

    Args:
        chain: PEM, the certificate itself first.
        key: PEM, of the same version as the chain.
        name: of the field with the chain; other routes may read another beside the same key.
    """
    # Also what is wrong is remembered: a caller cannot make us parse it again and again.
    return key.derive(("client_certificate", name), lambda pem: _parsed(chain.reveal_bytes(), pem))


def _parsed(chain_pem: bytes, key_pem: bytes) -> ClientCertificate | str:
    if len(chain_pem) > MAX_PEM_BYTES or len(key_pem) > MAX_PEM_BYTES:
        return "it is larger than 64 KiB"
    # What the parsers say may quote what they read.
    try:
        chain = tuple(x509.load_pem_x509_certificates(chain_pem))
        public = chain[0].public_key()
    except (ValueError, UnsupportedAlgorithm, IndexError):
        return "its certificate is no PEM"
    if len(chain) > MAX_CHAIN:
        return f"its chain has more than {MAX_CHAIN} certificates"
    try:
        # OpenSSL's full check of an RSA key takes up to half a second, and this is the event loop: what the key signs is
        # verified below instead.
        key = serialization.load_pem_private_key(key_pem, None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        return "its key is encrypted"
    except (ValueError, UnsupportedAlgorithm):
        return "its key is no PEM"
    if not isinstance(key, _KINDS):
        return "its key is of a kind that TLS does not sign with"
    if getattr(key, "key_size", MIN_RSA_BITS) < (MIN_RSA_BITS if isinstance(key, rsa.RSAPrivateKey) else MIN_EC_BITS):
        return "its key is too short for TLS"
    if key.public_key() != public:
        return "its key belongs to another certificate"
    if isinstance(key, rsa.RSAPrivateKey) and not _signs(key):
        return "its key does not sign"
    return ClientCertificate(chain, key)


def _signs(key: rsa.RSAPrivateKey) -> bool:
    if key.key_size > MAX_RSA_BITS:
        return False
    try:
        signature = key.sign(_PROBE, padding.PKCS1v15(), hashes.SHA256())
        key.public_key().verify(signature, _PROBE, padding.PKCS1v15(), hashes.SHA256())
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _der(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.DER)


def spki_sha256(cert: x509.Certificate) -> bytes:
    """What a pin names (RFC 7469 section 2.4)."""
    spki = cert.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


def pinned(chain: Collection[x509.Certificate], pins: frozenset[bytes]) -> bool:
    """Whether one certificate of a verified chain has a pinned key."""
    for cert in chain:
        try:
            if spki_sha256(cert) in pins:
                return True
        except (ValueError, UnsupportedAlgorithm):
            continue  # a key of a kind that cannot be read is no pinned one
    return False


def pinned_der(chain: Collection[bytes], pins: frozenset[bytes]) -> bool:
    """As `pinned`, of certificates in DER. OpenSSL verifies some that are not read here: those have no pinned key."""
    for der in chain:
        try:
            cert = x509.load_der_x509_certificate(der)
        except (ValueError, UnsupportedAlgorithm):
            continue
        if pinned((cert,), pins):
            return True
    return False
