"""What `derive:` means: the frozen model of the grants by which a token is made of stored secrets.

`load_derive.py` makes these from YAML, `addons/deriving` asks with them. None holds a secret, only references; each says
by itself which endpoint it asks, so that nothing that is stored as a secret ever chooses where a secret is sent.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Literal

from policies.template import FieldRef, Template
from policies.tls import ClientCertSpec

type JwtAlgorithm = Literal["HS256", "RS256", "PS256", "ES256", "EdDSA"]
type ClientAuth = Literal["basic", "post", "private_key_jwt", "mtls", "none"]

JWT_ALGORITHMS: Final = ("HS256", "RS256", "PS256", "ES256", "EdDSA")
MAX_JWT_TTL_S: Final = 3600.0
TOKEN_FIELD: Final = "token"  # noqa: S105 - the name of a field
"""What a bare `{token}` stands for."""
CLIENT_CERT: Final = "derive.client_cert"
"""The entry of a credential that holds the certificate shown to its token endpoint. Names that policies give have no dot."""
AWS_FIELDS: Final = frozenset({"access_key_id", "secret_access_key", "session_token"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An https URL, taken apart."""

    host: str
    port: int
    target: str
    """Path and query, as they are sent."""

    @property
    def url(self) -> str:
        """As assertions name it in `aud`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}{'' if self.port == 443 else f':{self.port}'}{self.target}"


GOOGLE_TOKEN: Final = Endpoint("oauth2.googleapis.com", 443, "/token")


@dataclass(frozen=True, slots=True)
class ClientAssertion:
    """`auth: private_key_jwt` (RFC 7523 section 2.2)."""

    key: Template
    algorithm: JwtAlgorithm
    key_id: Template | None
    audience: str | None
    """None: the token endpoint."""


@dataclass(frozen=True, slots=True)
class Client:
    """How the client proves itself to a token endpoint (RFC 6749 section 2.3)."""

    client_id: Template | None
    client_secret: Template | None
    auth: ClientAuth
    assertion: ClientAssertion | None = None
    certificate: ClientCertSpec | None = None
    """Shown to the endpoint by TLS: with `mtls` it is the proof (RFC 8705 section 2), beside another it is what the endpoint
    asks of every connection, or binds its tokens to (section 3)."""


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """`client_credentials:` (RFC 6749 section 4.4)."""

    endpoint: Endpoint
    client: Client
    scopes: tuple[str, ...] = ()
    audience: str | None = None
    per_workload: bool = False

    word = "client_credentials"
    names = frozenset({TOKEN_FIELD})


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """`refresh_token:` (RFC 6749 section 6)."""

    endpoint: Endpoint
    client: Client
    refresh_token: Template
    """One reference alone: what is made anew goes back there."""
    scopes: tuple[str, ...] = ()

    word = "refresh_token"
    names = frozenset({TOKEN_FIELD})
    per_workload = False


@dataclass(frozen=True, slots=True)
class JwtBearer:
    """`jwt_bearer:` (RFC 7523 section 2.1)."""

    endpoint: Endpoint
    issuer: Template
    key: Template
    algorithm: JwtAlgorithm
    subject: Template | None = None
    audience: str | None = None
    """None: the token endpoint."""
    key_id: Template | None = None
    scopes: tuple[str, ...] = ()

    word = "jwt_bearer"
    names = frozenset({TOKEN_FIELD})
    per_workload = False


@dataclass(frozen=True, slots=True)
class TokenExchange:
    """`token_exchange:` (RFC 8693)."""

    endpoint: Endpoint
    client: Client
    subject_token: Template
    subject_token_type: str
    actor_token: Template | None = None
    actor_token_type: str | None = None
    requested_token_type: str | None = None
    audience: str | None = None
    resource: str | None = None
    scopes: tuple[str, ...] = ()
    per_workload: bool = False

    word = "token_exchange"
    names = frozenset({TOKEN_FIELD})


@dataclass(frozen=True, slots=True)
class GoogleServiceAccount:
    """`google_service_account:`; scopes give an access token, an audience an ID token."""

    endpoint: Endpoint
    key_json: Template
    scopes: tuple[str, ...] = ()
    audience: str | None = None
    subject: Template | None = None
    """Whom it acts for, by domain-wide delegation."""

    word = "google_service_account"
    names = frozenset({TOKEN_FIELD})
    per_workload = False


@dataclass(frozen=True, slots=True)
class GithubApp:
    """`github_app:`; `endpoint.target` is what stands before `/app/installations/…`."""

    endpoint: Endpoint
    app_id: Template
    installation_id: Template
    private_key: Template
    permissions: tuple[tuple[str, str], ...] = ()
    repositories: tuple[str, ...] = ()

    word = "github_app"
    names = frozenset({TOKEN_FIELD})
    per_workload = False


@dataclass(frozen=True, slots=True)
class MintedJwt:
    """`jwt:` (RFC 7519), made here: no endpoint is asked."""

    algorithm: JwtAlgorithm
    key: Template
    issuer: Template | None = None
    subject: Template | None = None
    audience: tuple[str, ...] = ()
    ttl_s: float = 300.0
    claims: tuple[tuple[str, Template | tuple[str, ...]], ...] = ()
    key_id: Template | None = None

    word = "jwt"
    names = frozenset({TOKEN_FIELD})
    endpoint = None
    per_workload = False


@dataclass(frozen=True, slots=True)
class AwsAssumeRole:
    """`aws_assume_role:` (https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html)."""

    endpoint: Endpoint
    role_arn: Template
    access_key_id: Template
    secret_access_key: Template
    region: str
    session_name: str
    session_token: Template | None = None
    external_id: Template | None = None
    duration_s: float = 3600.0

    word = "aws_assume_role"
    names = AWS_FIELDS
    per_workload = False


@dataclass(frozen=True, slots=True)
class AwsWebIdentity:
    """`aws_web_identity:` (https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html)."""

    endpoint: Endpoint
    role_arn: Template
    token: Template
    region: str
    session_name: str
    duration_s: float = 3600.0

    word = "aws_web_identity"
    names = AWS_FIELDS
    per_workload = False


@dataclass(frozen=True, slots=True)
class Azure:
    """`azure:`; `endpoint.target` is `/`: the tenant stands before the rest."""

    endpoint: Endpoint
    tenant: Template
    client_id: Template
    scope: str
    client_secret: Template | None = None
    certificate: Template | None = None
    """PEM with the private key and its certificate."""

    word = "azure"
    names = frozenset({TOKEN_FIELD})
    per_workload = False


type Derivation = (
    ClientCredentials
    | RefreshToken
    | JwtBearer
    | TokenExchange
    | GoogleServiceAccount
    | GithubApp
    | MintedJwt
    | AwsAssumeRole
    | AwsWebIdentity
    | Azure
)


def references_of_derivation(derivation: Derivation) -> tuple[FieldRef, ...]:
    """Every secret field that this grant asks with, each once."""
    return tuple(dict.fromkeys(_references(derivation)))


def _references(found: object) -> list[FieldRef]:
    if isinstance(found, Template):
        return list(found.references)
    if isinstance(found, tuple):
        return [reference for one in found for reference in _references(one)]
    if isinstance(found, ClientCertSpec):
        return list(found.references(CLIENT_CERT))
    if isinstance(found, Client | ClientAssertion | Derivation.__value__):
        return [reference for field in fields(found) for reference in _references(getattr(found, field.name))]
    return []
