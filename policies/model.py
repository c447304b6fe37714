"""The frozen, typed model of a loaded policy: what the YAML means once every key has been judged.

Owns the nouns only. `load.py` makes them from YAML and reports faults, `matcher.py` compiles them, `grant.py` is what a
match returns. All values here are immutable and hashable where that is cheap; none holds a secret, only references to
secrets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from policies.derive import Derivation
from policies.faults import Place
from policies.paths import PathPattern
from policies.pointer import Pointer
from policies.sign import Signer
from policies.template import Template
from policies.tls import IssueSpec, TlsSpec
from policies.verify import Verifier

# --- who calls
# -------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyHashProof:
    """A caller key, stored as the lower-case hex SHA-256 of the key text."""

    sha256: str


@dataclass(frozen=True, slots=True)
class PeerProof:
    """Peer credentials of a Unix-socket connection."""

    uid: int


@dataclass(frozen=True, slots=True)
class AnyProof:
    """Whoever reaches a listener that names this one workload."""


type Proof = KeyHashProof | PeerProof | AnyProof


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    proofs: tuple[Proof, ...]
    """Any one suffices."""
    labels: Mapping[str, str] = field(default_factory=dict)


# --- what it may have
# ------------------------------------------------------------------------------------------------------------------------


KV: Final = "kv"
LENDING: Final = (
    "alicloud", "aws", "azure", "consul", "database", "gcp", "ldap", "mongodbatlas", "nomad", "rabbitmq", "terraform",
)  # fmt: skip
"""Engines of Vault that make a credential at a read and lend it."""


@dataclass(frozen=True, slots=True)
class SecretSpec:
    """`secret:` of a route or credential. `path` is as written, variables already put in."""

    path: str
    field: str | None = None
    """What `{secret}` stands for; None where every reference names its field."""
    mount: str | None = None
    namespace: str | None = None
    kv: Literal[1, 2] | None = None
    version: int | None = None
    ttl_s: float = 15.0
    max_stale_s: float = 600.0
    watch_s: float = 0.0
    """How often the version is asked for between reads of the value; 0: never."""
    public: bool = False
    rotates: bool = False
    """Whether a refresh token of it is replaced by the one that comes in its place."""
    needs: tuple[str, ...] = ()
    """Fields that must be there beside `field`."""
    issue: IssueSpec | None = None
    """Where it is no stored secret but a certificate that Vault issues."""
    engine: str = KV
    """`kv`, or one of `LENDING`."""

    @property
    def is_made(self) -> bool:
        """Whether the store makes it when it is asked: a certificate, or what is lent."""
        return self.issue is not None or self.is_lent

    @property
    def is_lent(self) -> bool:
        """Whether it is made anew for each lease, and is gone with it."""
        return self.engine != KV

    @property
    def named_fields(self) -> tuple[str, ...]:
        """Fields that the policy names here."""
        return self.needs if self.field is None else (self.field, *self.needs)


@dataclass(frozen=True, slots=True)
class CredentialSpec:
    """What the injectors of a route draw from. `secret:` gives one entry named `secret`; `secrets:` gives one for each
    of its names.
    """

    name: str
    """Name in `credentials:`, or the route's own name where the secret stands in the route."""
    secrets: Mapping[str, SecretSpec]
    derive: Derivation | None = None
    """What makes `{token}` of them."""


# --- where it is put
# -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeaderInjector:
    name: str
    value: Template


@dataclass(frozen=True, slots=True)
class BearerInjector:
    value: Template


@dataclass(frozen=True, slots=True)
class BasicInjector:
    username: Template
    password: Template


@dataclass(frozen=True, slots=True)
class QueryInjector:
    name: str
    value: Template


@dataclass(frozen=True, slots=True)
class PathInjector:
    """Writes the path anew where it matches `pattern`. `head` and `tail` are the segments before and behind what `**`
    matched, which is kept; without a `**` in the pattern there is no tail.
    """

    pattern: PathPattern
    head: tuple[Template, ...]
    tail: tuple[Template, ...]
    value: Template
    """All of it, for the references in it."""

    @property
    def deep(self) -> bool:
        return "**" in self.pattern.segments


@dataclass(frozen=True, slots=True)
class CookieInjector:
    name: str
    value: Template


@dataclass(frozen=True, slots=True)
class JsonInjector:
    pointer: Pointer
    value: Template


@dataclass(frozen=True, slots=True)
class FormInjector:
    name: str
    value: Template


@dataclass(frozen=True, slots=True)
class SwapInjector:
    """Replaces a placeholder where it is the whole value of one of `headers` (or the value after `Bearer `, or user
    name or password inside Basic), of one of the query `parameters`, or of a member of the JSON body.
    """

    placeholder: str
    headers: tuple[str, ...]
    value: Template
    parameters: tuple[str, ...] = ()
    pointers: tuple[Pointer, ...] = ()


type Injector = (
    HeaderInjector
    | BearerInjector
    | BasicInjector
    | QueryInjector
    | PathInjector
    | CookieInjector
    | JsonInjector
    | FormInjector
    | SwapInjector
)


# --- how it is reached
# -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EgressSpec:
    """How an upstream is reached: exceptions to the egress guard, and fixed dial targets. Keys of `resolve` are
    `host:port`, values are `(address, port)`.
    """

    allow: tuple[str, ...] = ()
    """CIDR blocks, canonical text."""
    resolve: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    share_connections: bool = False
    """Whether workloads may use each other's idle connections to this upstream."""


type ScrubMode = Literal["scrub", "block", "none"]
"""What becomes of a credential that an answer shows: filled, the answer ended, passed on."""

type Http2 = Literal["auto", "prefer", "never"]
"""Where HTTP/2 is offered to an upstream: for callers that speak it, for all, for none."""


@dataclass(frozen=True, slots=True)
class TimeoutSpec:
    """Deadlines in seconds; None leaves the process default of `limits:`, 0 means none."""

    connect_s: float | None = None
    first_byte_s: float | None = None
    idle_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class AllowEntry:
    """One entry of `allow:`, groups already spelled out."""

    workloads: frozenset[str]
    rule: str
    """How audit records name this entry: `allow[0]`."""
    methods: frozenset[str] | None = None
    paths: tuple[PathPattern, ...] | None = None
    credential: CredentialSpec | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class DenyEntry:
    """One entry of `deny:`. No workloads means every workload."""

    rule: str
    workloads: frozenset[str] | None = None
    methods: frozenset[str] | None = None
    paths: tuple[PathPattern, ...] | None = None


@dataclass(frozen=True, slots=True)
class HostPattern:
    """An exact host, or `*.` before a suffix, which stands for exactly one label. Text is lower-case ASCII
    (A-labels).
    """

    text: str

    @property
    def wildcard(self) -> bool:
        return self.text.startswith("*.")


@dataclass(frozen=True, slots=True)
class UpstreamSpec:
    """Where a reverse listener leads: an origin, as `upstream:` says it or `match` implies it."""

    host: str
    port: int
    cleartext: bool = False


@dataclass(frozen=True, slots=True)
class PresetUse:
    """What a route has from presets: their names in order, which of its keys (`match.host`, `deny[1]`) come from which,
    and the variables that satisfy their SDKs, with placeholders.
    """

    names: tuple[str, ...]
    keys: Mapping[str, str]
    placeholders: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Route:
    name: str
    place: Place
    hosts: tuple[HostPattern, ...]
    port: int
    allow: tuple[AllowEntry, ...]
    deny: tuple[DenyEntry, ...] = ()
    methods: frozenset[str] | None = None
    """None: all but TRACE, TRACK and CONNECT."""
    paths: tuple[PathPattern, ...] | None = None
    """None: all."""
    credential: CredentialSpec | None = None
    inject: tuple[Injector, ...] = ()
    sign: tuple[Signer, ...] = ()
    """In the order in which they sign."""
    verify: Verifier | None = None
    """What the caller must have signed."""
    caller_credentials: Literal["replace", "reject", "keep"] = "replace"
    mode: Literal["enforce", "observe"] = "enforce"
    egress: EgressSpec | None = None
    ca_file: Path | None = None
    """Absolute path of extra roots for this route's upstream."""
    tls: TlsSpec | None = None
    """None: nothing is asked of TLS beyond the process's own roots."""
    timeouts: TimeoutSpec = field(default_factory=TimeoutSpec)
    http2: Http2 = "auto"
    scrub: ScrubMode = "scrub"
    allow_cleartext: bool = False
    """Whether the credential may go over plain http, to an address that is not public."""
    listeners: tuple[str, ...] = ()
    """Reverse listeners that serve it."""
    upstream: UpstreamSpec | None = None
    """Where they lead; there where `listeners` is."""
    forward: bool = True
    """Whether forward listeners serve it: not where `match` names no host. `hosts` and `port` are then the upstream's."""
    presets: PresetUse | None = None
    """None: all of it stands in the route itself."""

    def secrets(self) -> Iterator[SecretSpec]:
        """Every secret that it may read, for whichever workload."""
        for spec in (self.credential, *(entry.credential for entry in self.allow)):
            if spec is not None:
                yield from spec.secrets.values()
