"""What `tls:` of a route means: the certificate we show, and the keys that the upstream must have.

A client certificate is read like any secret: it is one more entry of the route's credential, under a name that no
template can spell. So it is sealed, recorded and opened with the rest, from one version. Token endpoints may be shown one
too (`derive.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from policies.template import FieldRef

CLIENT_CERT: Final = "tls.client_cert"
"""The entry of a credential that holds the client certificate. Names that policies give have no dot."""
ISSUED_CERT: Final = "certificate"
ISSUED_KEY: Final = "private_key"
"""The fields of a certificate that is issued."""


@dataclass(frozen=True, slots=True)
class IssueSpec:
    """`pki:`: a certificate that Vault signs for a key made here."""

    mount: str
    role: str
    common_name: str
    uri_sans: tuple[str, ...] = ()
    ttl_s: float | None = None
    """What is asked for; None leaves it to the role."""


@dataclass(frozen=True, slots=True)
class ClientCertSpec:
    """Which fields of an entry are the chain and its key, both PEM."""

    cert: str
    key: str
    issued: bool = False

    def references(self, entry: str) -> tuple[FieldRef, FieldRef]:
        """The chain and the key, in the entry of this name."""
        return FieldRef(entry, self.cert), FieldRef(entry, self.key)


@dataclass(frozen=True, slots=True)
class TlsSpec:
    """`tls:` of a route."""

    client_cert: ClientCertSpec | None = None
    pins: frozenset[bytes] = frozenset()
    """SHA-256 of SubjectPublicKeyInfo (RFC 7469 section 2.4): a certificate of the upstream's chain must have one."""
    roots: str = ""
    """SHA-256 of `ca_file` as it was when the policy was loaded; empty without one."""
