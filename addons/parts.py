"""What a running process hands to its stages: built once in the composition root, passed by constructor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from addons.audit import AuditLog
from addons.bodies import DEFAULT_CAP_BYTES
from addons.boundary import Boundary
from addons.buffers import Buffers
from addons.clock import Clock
from addons.deriving.source import Deriving
from addons.edge import HeadLimits
from addons.egress import EgressRules, Resolver
from addons.state import StateStore
from addons.telemetry import Metrics
from addons.user_addon import UserAddon
from policies import Policy
from vault.keys import Keys
from vault.leases import Leases
from vault.observer import Silent, StoreObserver
from vault.store import SecretSource


@dataclass(slots=True)
class PolicyInForce:
    """The policy that new requests are judged by. Replaced whole; an exchange keeps the one it began with."""

    policy: Policy


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Process-wide deadlines in seconds; a route's `timeouts:` wins. 0 means none."""

    connect_s: float = 5.0
    first_byte_s: float = 300.0
    idle_s: float = 300.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a stage may need."""

    in_force: PolicyInForce
    secrets: SecretSource
    audit: AuditLog
    metrics: Metrics
    clock: Clock
    boundary: Boundary
    resolver: Resolver
    egress: EgressRules = field(default_factory=EgressRules)
    heads: HeadLimits = field(default_factory=HeadLimits)
    deadlines: Deadlines = field(default_factory=Deadlines)
    connections_per_workload: int = 0
    """0: any number."""
    store_observer: StoreObserver = field(default_factory=Silent)
    """Told of what becomes of rejected credentials."""
    keys: Keys = field(default_factory=lambda: Keys(None, Silent()))
    """Keys that sign and never leave their store."""
    made: SecretSource | None = None
    """What the store makes when it is asked (certificates that it issues, credentials that it lends), and all that `secrets`
    has; None: nothing is made.
    """
    leases: Leases | None = None
    """What is lent of it: given back at the end."""
    buffers: Buffers | None = None
    """None: nothing is counted."""
    buffered_body_bytes: int = DEFAULT_CAP_BYTES
    """Cap of a body that is held until it is whole."""
    state: StateStore | None = None
    """None: nothing remembers what was used, so what needs that is refused."""
    ca_file: Path | None = None
    """Extra roots for upstreams."""
    user_addons: tuple[UserAddon, ...] = ()
    """In the order of the settings."""
    deriving: Deriving | None = None
    """Makes tokens of secrets; None where no credential derives any."""
    extra_keys: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 hex of keys of this process alone, to workloads."""
