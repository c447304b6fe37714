"""How to reach a Vault and how to log in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

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
    """AppRole: a role id, and a secret id that is read from its file at every login."""

    role_id: Secret = field(repr=False)
    secret_id_file: Path | None = None
    mount: str = "approle"


type VaultAuth = TokenFileAuth | TokenAuth | AppRoleAuth


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
