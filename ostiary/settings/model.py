"""What a process is told about itself: listeners, stores, audit, limits. Frozen; no value here is a secret but
those of `VaultConfig` and `StateConfig`, which hide their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from addons.audit import AuditConfig
from addons.bodies import DEFAULT_CAP_BYTES
from addons.state import StateConfig
from policies.faults import Place
from policies.sources import Source
from vault.hashicorp.config import VaultConfig
from vault.sealed import KeySource

type EngineName = Literal["fast", "mitmproxy"]
ENGINES: Final = ("fast", "mitmproxy")
DEFAULT_ENGINE: Final[EngineName] = "fast"
ROLES: Final = ("viewer", "operator", "approver", "admin")
"""Of admin tokens; `ostiary.admin.tokens` says what each may do."""
SIGNAL: Final = "SIGHUP"
"""Who asked for a reload, where it was a signal. No admin token may have this name."""


@dataclass(frozen=True, slots=True)
class Bound:
    """An address to listen on: host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


type ListenMode = Literal["forward", "reverse"]


@dataclass(frozen=True, slots=True)
class TlsSetting:
    """PEM files of a TLS listener: the chain, leaf first, and its key."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class ListenSetting:
    name: str
    bind: Bound
    workload: str | None
    place: Place
    socket_mode: int = 0o600
    mode: ListenMode = "forward"
    hosts: tuple[tuple[str, int | None], ...] = ()
    """What a reverse listener is called by beside its address; None: with any port."""
    tls: TlsSetting | None = None


@dataclass(frozen=True, slots=True)
class AdminToken:
    """A token of the admin API, by its lower-case hex SHA-256."""

    name: str
    sha256: str
    roles: frozenset[str]


@dataclass(frozen=True, slots=True)
class AdminSetting:
    bind: Bound | None = None
    """Loopback or a Unix socket."""
    probes: Bound | None = None
    tokens: tuple[AdminToken, ...] = ()
    socket_mode: int = 0o600


@dataclass(frozen=True, slots=True)
class EgressSetting:
    allow: tuple[str, ...] = ()
    resolve: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class AddonSetting:
    """A user's addon, not yet loaded. Either a file or an importable module holds its class."""

    name: str
    """As written."""
    file: Path | None
    module: str
    class_name: str
    options: Mapping[str, object]
    """Keyword arguments of its constructor."""
    timeout_s: float
    place: Place


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps and deadlines; docs/reference/limits.md tells the reason of each. Seconds and bytes; 0 seconds means
    none.
    """

    request_line: int = 16 * 1024
    header_bytes: int = 64 * 1024
    header_count: int = 128
    header_timeout: float = 10.0
    connect_timeout: float = 5.0
    first_byte_timeout: float = 300.0
    idle_timeout: float = 300.0
    total_timeout: float = 0.0
    drain_timeout: float = 10.0
    connections: int = 10_000
    connections_per_source: int = 1_000
    connections_per_workload: int = 0
    """0: any number."""
    buffers: int = 256 * 1024 * 1024
    buffered_body: int = DEFAULT_CAP_BYTES
    """Of one body that must be whole before it may leave."""


@dataclass(frozen=True, slots=True)
class Settings:
    file: Path
    listen: tuple[ListenSetting, ...]
    ca_dir: Path
    audit: AuditConfig
    policies: tuple[Source, ...]
    """Looked up anew at each load: a file that was dropped into a folder counts from the next reload on."""
    variables: Mapping[str, str]
    store: Literal["vault", "sealed"]
    vault: VaultConfig | None
    secrets_file: Path | None
    secrets_key: KeySource | None
    egress: EgressSetting
    admin: AdminSetting | None
    limits: Limits
    engine: EngineName
    addons: tuple[AddonSetting, ...] = ()
    state: StateConfig | None = None
    workers: int = 1
    """Processes that serve. 1: this one, and no supervisor."""
