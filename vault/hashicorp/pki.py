"""Vault's PKI engine: certificates for keys that are made here and never leave this process.

The key is EC P-256. What Vault is sent is a signing request with its public half; what comes back is checked: it is for
this very key, it reads as a certificate, it has an end that is to come. The chain goes as far as it is needed by whoever
verifies it, so without a self-signed root.
https://developer.hashicorp.com/vault/api-docs/secret/pki#sign-certificate
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, Protocol

import hvac
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vault.control import Control
from vault.issued import Issued, IssuedRef
from vault.secret import Secret
from vault.store import SecretDenied, SecretMalformed, SecretMissing, SecretRef, SecretVersion

CERTIFICATE: Final = "certificate"
PRIVATE_KEY: Final = "private_key"
MAX_CHAIN: Final = 10
MAX_PEM: Final = 64 * 1024


class Calls(Protocol):
    """One call by the rules of the store: one deadline, one new login after a 403, its errors as `StoreError`."""

    async def __call__[T](self, ref: SecretRef, work: Callable[[hvac.Client, Literal[1, 2]], T]) -> T: ...


async def issue(calls: Calls, ref: IssuedRef) -> Issued:
    """See `IssuingStore.issue`."""
    try:
        return await calls(ref, lambda client, _: _asked(client, ref))
    except SecretMissing:
        # 400 and 404: no such role, or one that does not sign this name, this kind of key or so long a life.
        raise SecretDenied(
            ref.name, f"Vault does not sign this: does {ref.mount}/roles/{ref.path.partition('/')[2]} allow it?"
        ) from None
    except SecretDenied:
        raise SecretDenied(ref.name, f"Vault denies update on {ref.mount}/{ref.path}") from None
    except SecretMalformed:
        raise SecretMalformed(ref.name, "was answered by something that is no certificate for its key") from None


def _asked(client: hvac.Client, ref: IssuedRef) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ref.common_name)])
    )
    if ref.uri_sans:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in ref.uri_sans])
        builder = builder.add_extension(names, critical=False)
    request = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode("ascii")
    # A role takes names from the request or from beside it; so both say the same.
    body: dict[str, Any] = {
        "csr": request, "common_name": ref.common_name, "format": "pem", "exclude_cn_from_sans": True,
    }  # fmt: skip
    if ref.uri_sans:
        body["uri_sans"] = ",".join(ref.uri_sans)
    if ref.life_s is not None:
        body["ttl"] = f"{int(ref.life_s)}s"
    # A second one may be issued: a connection that was just closed is no outage.
    answer = client.adapter.post(f"/v1/{ref.mount}/{ref.path}", json=body, repeatable=True)
    return _read(answer["data"], key)


def _read(told: dict[str, Any], key: ec.EllipticCurvePrivateKey) -> Issued:
    """Raises KeyError, TypeError, ValueError: it is nothing that PKI answers."""
    leaf = x509.load_pem_x509_certificate(_pem(told["certificate"]))
    if leaf.public_key() != key.public_key():
        raise ValueError("another key")
    above = told.get("ca_chain") or [told["issuing_ca"]]
    if not isinstance(above, list) or len(above) > MAX_CHAIN:
        raise ValueError("no chain")
    chain = [leaf]
    for text in above:
        cert = x509.load_pem_x509_certificate(_pem(text))
        if cert.issuer != cert.subject and cert != leaf:
            chain.append(cert)
    begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    fields = {
        CERTIFICATE: Secret(b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in chain)),
        PRIVATE_KEY: Secret(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        ),
    }
    version = SecretVersion(
        fields,
        f"{leaf.serial_number:x}",
        begins.isoformat().replace("+00:00", "Z"),
        Control(expires_at_s=ends.timestamp(), renewed=True),
    )
    return Issued(version, begins.timestamp(), ends.timestamp())


def _pem(text: object) -> bytes:
    if not isinstance(text, str) or len(text) > MAX_PEM:
        raise ValueError("no PEM")
    return text.encode("ascii")
