"""What `sign:` means: the frozen model of the signers of a route.

`load_sign.py` makes these from YAML, `addons/signing` computes with them. None holds a secret, only references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from policies.template import FieldRef, Template

type KeyEncoding = Literal["utf8", "hex", "base64"]
type Digest = Literal["sha1", "sha256", "sha384", "sha512"]
type Encoding = Literal["hex", "base64", "base64url"]
type TimestampForm = Literal["seconds", "milliseconds", "rfc3339"]
type Payload = Literal["auto", "signed", "unsigned"]
type MessageAlgorithm = Literal["hmac-sha256", "ed25519", "ecdsa-p256-sha256", "rsa-pss-sha512"]
type ProofAlgorithm = Literal["ES256", "EdDSA"]
type TransitOperation = Literal[
    "hmac-sha256", "hmac-sha384", "hmac-sha512", "ed25519", "ecdsa-p256-sha256", "rsa-pss-sha512"
]

_HMACS: Final[dict[str, TransitOperation]] = {
    "sha256": "hmac-sha256",
    "sha384": "hmac-sha384",
    "sha512": "hmac-sha512",
}
REQUEST_PARTS: Final = frozenset({
    "method", "target", "path", "query", "host", "timestamp", "nonce", "body", "body_sha256", "header",
})  # fmt: skip
"""What `template:` of `hmac` takes from the request; every other reference names a secret."""


@dataclass(frozen=True, slots=True)
class SentName:
    """Where a value is sent: a header field, or a query parameter."""

    place: Literal["header", "query"]
    name: str


@dataclass(frozen=True, slots=True)
class TransitKey:
    """`transit:`: a key that stays in Vault."""

    key: str
    mount: str = "transit"
    namespace: str | None = None
    version: int | None = None
    """Pinned version; None: the newest signs."""


@dataclass(frozen=True, slots=True)
class TransitUse:
    """What a key that stays in Vault is asked for."""

    key: TransitKey
    operation: TransitOperation

    @property
    def path(self) -> str:
        """Path of Vault's API, mount first, on which `update` is needed."""
        what = "hmac" if self.operation.startswith("hmac-") else "sign"
        return f"{self.key.mount}/{what}/{self.key.key}"


@dataclass(frozen=True, slots=True)
class HmacSigner:
    """`hmac:`, the profile or a template."""

    key: Template | TransitKey
    """One reference, and literal text around it where a vendor derives its key so; or a key that stays in Vault."""
    signature: SentName
    timestamp: SentName | None
    """None: it is not sent."""
    nonce: SentName | None
    """None: there is none."""
    key_encoding: KeyEncoding = "utf8"
    algorithm: Digest = "sha256"
    encoding: Encoding = "hex"
    prefix: str = "sha256="
    timestamp_form: TimestampForm = "seconds"
    headers: tuple[str, ...] = ()
    """Lower-case, in the order of their lines."""
    host: bool = False
    template: Template | None = None
    """None: the profile."""

    @property
    def reads_body(self) -> bool:
        if self.template is None:
            return True
        return any(reference.entry in {"body", "body_sha256"} for reference in self.template.references)

    @property
    def binds_host(self) -> bool:
        if self.template is None:
            return self.host or "host" in self.headers
        return any(
            reference.entry == "host" or (reference.entry == "header" and reference.field == "host")
            for reference in self.template.references
        )


@dataclass(frozen=True, slots=True)
class AwsSigV4Signer:
    """`aws_sigv4:`; the first region and service are those of a caller that signs nothing."""

    access_key_id: Template
    secret_access_key: Template
    regions: tuple[str, ...]
    services: tuple[str, ...]
    session_token: Template | None = None
    payload: Payload = "auto"
    asymmetric: bool = False
    """Version 4A: a signature that is good for a set of regions."""

    binds_host = True


@dataclass(frozen=True, slots=True)
class Component:
    """A component identifier (RFC 9421 section 2): a lower-case field name or a derived `@name`, with parameters."""

    name: str
    parameter: str | None = None
    """The `name` of `@query-param`; no other parameter is built."""
    bytes_form: bool = False
    """The `bs` parameter of a field: each line base64 (section 2.1.3)."""


@dataclass(frozen=True, slots=True)
class HttpMessageSigner:
    """`http_message:` (RFC 9421)."""

    key_id: Template
    algorithm: MessageAlgorithm
    key: Template | TransitKey
    components: tuple[Component, ...]
    key_encoding: KeyEncoding = "utf8"
    label: str = "sig1"
    expires_s: int | None = None
    nonce: bool = False
    tag: str | None = None

    @property
    def reads_body(self) -> bool:
        return self.digests

    @property
    def digests(self) -> bool:
        """Whether a Content-Digest of ours is among the components."""
        return any(component.name == "content-digest" for component in self.components)

    @property
    def binds_host(self) -> bool:
        return any(component.name in {"@authority", "@target-uri", "host"} for component in self.components)


@dataclass(frozen=True, slots=True)
class EdgeGridSigner:
    """`edgegrid:` (Akamai EG1-HMAC-SHA256)."""

    client_token: Template
    client_secret: Template
    access_token: Template
    headers: tuple[str, ...] = ()
    """Lower-case, in the order in which the API wants them."""
    max_body_bytes: int = 131_072
    """How much of a longer POST body the signature covers."""

    binds_host = True


@dataclass(frozen=True, slots=True)
class Acs3Signer:
    """`acs3:` (Alibaba Cloud ACS3-HMAC-SHA256)."""

    access_key_id: Template
    access_key_secret: Template
    security_token: Template | None = None

    binds_host = True


@dataclass(frozen=True, slots=True)
class Tc3Signer:
    """`tc3:` (Tencent Cloud TC3-HMAC-SHA256)."""

    secret_id: Template
    secret_key: Template
    services: tuple[str, ...]
    token: Template | None = None

    binds_host = True


@dataclass(frozen=True, slots=True)
class DpopSigner:
    """`dpop:` (RFC 9449): a proof that whoever sends the token has the key to which it is bound."""

    key: Template
    algorithm: ProofAlgorithm = "ES256"

    binds_host = True


type Signer = HmacSigner | AwsSigV4Signer | HttpMessageSigner | EdgeGridSigner | Acs3Signer | Tc3Signer | DpopSigner


def templates_of(signer: Signer) -> tuple[Template, ...]:
    """Every template of a signer that names secrets."""
    match signer:
        case HmacSigner(key=key, template=template):
            return tuple(one for one in (key, template) if isinstance(one, Template))
        case AwsSigV4Signer(access_key_id=access, secret_access_key=secret, session_token=token):
            return (access, secret) if token is None else (access, secret, token)
        case HttpMessageSigner(key_id=key_id, key=key):
            return (key_id, key) if isinstance(key, Template) else (key_id,)
        case EdgeGridSigner(client_token=client, client_secret=secret, access_token=access):
            return (client, secret, access)
        case Acs3Signer(access_key_id=access, access_key_secret=secret, security_token=token):
            return (access, secret) if token is None else (access, secret, token)
        case Tc3Signer(secret_id=access, secret_key=secret, token=token):
            return (access, secret) if token is None else (access, secret, token)
        case DpopSigner(key=key):
            return (key,)


def transit_use(signer: Signer) -> TransitUse | None:
    """What a signer asks of a key that stays in Vault, if it has one."""
    match signer:
        case HmacSigner(key=TransitKey() as key, algorithm="sha256" | "sha384" | "sha512" as algorithm):
            return TransitUse(key, _HMACS[algorithm])
        case HttpMessageSigner(key=TransitKey() as key, algorithm=algorithm):
            return TransitUse(key, algorithm)
        case _:
            return None


def references_of_signers(signers: Sequence[Signer]) -> tuple[FieldRef, ...]:
    """Every secret field that these signers will ask for, each once."""
    found: dict[FieldRef, None] = {}
    for signer in signers:
        own = signer.template if isinstance(signer, HmacSigner) else None
        for template in templates_of(signer):
            for reference in template.references:
                if template is own and reference.entry in REQUEST_PARTS:
                    continue
                found[reference] = None
    return tuple(found)
