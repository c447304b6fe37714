"""How to reach a Vault and how to log in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vault.hashicorp.aws import AwsKeys, AwsProfile
from vault.secret import Secret


@dataclass(frozen=True, slots=True)
class TokenFileAuth:
    """A token that an Agent (or anything else) writes to a file; read again when the file changes. Never revoked by
    Ostiary: it is shared.
    """

    file: Path


@dataclass(frozen=True, slots=True)
class TokenAuth:
    """A static token, for development. Never renewed into being a habit: a warning is logged."""

    token: Secret = field(repr=False)


@dataclass(frozen=True, slots=True)
class AppRoleAuth:
    """AppRole: a role id, and a secret id. The latter is read from its file at every login, or unwrapped once from the token in
    `wrapped_file` and kept in memory.
    """

    role_id: Secret | Path = field(repr=False)
    """Itself, or a file that is read at every login."""
    secret_id_file: Path | None = None
    mount: str = "approle"
    wrapped_file: Path | None = None


SERVICE_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""Where Kubernetes puts the token of a pod's service account."""


@dataclass(frozen=True, slots=True)
class KubernetesAuth:
    """Kubernetes: the token of the pod's service account, read from its file at every login, for Kubernetes renews it."""

    role: str
    jwt_file: Path = SERVICE_ACCOUNT_TOKEN
    mount: str = "kubernetes"


@dataclass(frozen=True, slots=True)
class JwtAuth:
    """A JWT of an issuer that Vault trusts, read from its file at every login. Without a role: the mount's default."""

    role: str | None
    jwt_file: Path
    mount: str = "jwt"


@dataclass(frozen=True, slots=True)
class CertAuth:
    """The client certificate that every connection to Vault presents. Without a role Vault tries all it has."""

    role: str | None = None
    mount: str = "cert"


@dataclass(frozen=True, slots=True)
class AwsAuth:
    """AWS IAM, of HashiCorp Vault: a signed request to STS, which Vault sends on."""

    role: str
    keys: AwsKeys | AwsProfile
    region: str | None = None
    """Of the STS that Vault asks; None for the global one."""
    header_value: str | None = None
    """What Vault wants in `X-Vault-AWS-IAM-Server-ID`."""
    mount: str = "aws"


type VaultAuth = TokenFileAuth | TokenAuth | AppRoleAuth | KubernetesAuth | JwtAuth | CertAuth | AwsAuth


@dataclass(frozen=True, slots=True)
class VaultConfig:
    """`vault:` of the settings."""

    addresses: tuple[str, ...]
    auth: VaultAuth
    namespace: str | None = None
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    deadline_s: float = 2.0
    """Total for one call: dial, TLS, sending, reading."""
    threads: int = 8
    max_answer_bytes: int = 4 * 1024 * 1024
