"""What is known of one request and of the connection it came on.

Rules:
- A fact is a value of a type of its own (`Authority`, `WorkloadIdentity`, `Grant`, …). It is put once and asked for by
  type: a stage that asks for what no earlier stage has put gets `MissingFact`, which the boundary turns into a refusal.
  So a stage cannot run before its turn.
- An exchange keeps the policy it began with, however often policies are reloaded meanwhile.
- An exchange is settled exactly once: answered, refused or cut.
- Connection facts die with the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from addons.head import RequestHead
from addons.refusal import Answer
from policies import Policy


class MissingFact(LookupError):
    """A stage asked for a fact that no earlier stage has put."""


class FactSetTwice(LookupError):
    """A stage put a fact that is already there."""


@dataclass(frozen=True, slots=True)
class Reverse:
    """What a reverse listener may be called by: hosts are as `Authority` has them."""

    addresses: frozenset[tuple[str, int]] | None
    """Host and port; None: whatever the caller writes, on a Unix socket."""
    names: frozenset[str] = frozenset()
    """Hosts with any port, as it may be mapped on the way."""
    tls: bool = False

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def default_port(self) -> int:
        return 443 if self.tls else 80


@dataclass(frozen=True, slots=True)
class Listener:
    """The listener a connection came in on."""

    name: str
    workload: str | None
    """The one workload this listener serves, if it names one."""
    unix: bool = False
    reverse: Reverse | None = None
    """Where it is a reverse listener: callers speak to it as to the upstream itself."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Host and port that CONNECT, SNI and Host agree on. `host` is lower-case ASCII without a trailing dot, or a
    canonical IP literal without brackets.
    """

    host: str
    port: int
    cleartext: bool = False
    """Whether this is an `http://` origin."""
    host_header: bytes = field(init=False, repr=False, compare=False)
    """The Host field as a client of this origin writes it (RFC 9110 section 7.2)."""
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Once a tunnel: every request in it asks for both.
        host = f"[{self.host}]" if ":" in self.host else self.host
        shown = host if self.port == (80 if self.cleartext else 443) else f"{host}:{self.port}"
        object.__setattr__(self, "host_header", shown.encode())
        object.__setattr__(self, "_hash", hash((self.host, self.port, self.cleartext)))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


type ProofKind = Literal["key_hash", "peer", "any", "signature"]


@dataclass(frozen=True, slots=True)
class WorkloadIdentity:
    """The proven name of the caller and how it was proven. `key_sha256` lets the proof be checked again on every inner
    request.
    """

    workload: str
    proof: ProofKind
    key_sha256: str | None = None


@dataclass(slots=True)
class Tunnel:
    """An accepted CONNECT: what every inner request is bound to. `sni` stands once the caller's ClientHello has been
    read.
    """

    authority: Authority
    identity: WorkloadIdentity
    sni: str | None = None
    sni_seen: bool = False


@dataclass(slots=True, eq=False)
class Connection:
    """One connection of a caller."""

    id: str
    listener: Listener
    source: str
    """IP address of the peer, or `unix:uid=N`."""
    peer_uid: int | None = None
    tunnel: Tunnel | None = None
    exchanges: set[Exchange] = field(default_factory=set)
    """Begun and not yet settled."""


type Outcome = Literal["ok", "upstream_error", "truncated", "client_gone", "refused", "killed", "interrupted"]


class Exchange:
    """One request with its answer.

    Args:
        request_id: UUIDv7, shown to the caller and in every record.
        connection: where it came in.
        policy: the policy it is judged by from beginning to end.
        head: what the caller sent; a user's addon may replace its fields before the secret is read.
        started_s: monotonic seconds.
        connect: whether this is the CONNECT itself, not a request inside the tunnel.
    """

    __slots__ = (
        "__weakref__",
        "_facts",
        "addon",
        "bytes_in",
        "bytes_out",
        "caller_credential",
        "connect",
        "connection",
        "dialled_s",
        "first_byte_s",
        "head",
        "payload",
        "policy",
        "redactions",
        "reframed",
        "refused",
        "rejected",
        "replayable",
        "request_id",
        "retries",
        "rewrite",
        "route",
        "rule",
        "secret_ms",
        "settled",
        "started_s",
        "status",
        "streaming",
        "switched",
        "upgrade",
    )

    def __init__(
        self,
        request_id: str,
        connection: Connection,
        policy: Policy,
        head: RequestHead,
        started_s: float,
        *,
        connect: bool = False,
    ) -> None:
        self._facts: dict[type[Any], Any] = {}
        self.request_id = request_id
        self.connection = connection
        self.policy = policy
        self.head = head
        self.started_s = started_s
        self.connect = connect
        self.settled = False
        self.refused: Answer | None = None
        """The answer of a refusal that the engine must give instead of the upstream's."""
        self.addon: str | None = None
        """The user's addon that answered, refused or failed, if one did."""
        self.route: str | None = None
        self.rule: str | None = None
        self.status: int | None = None
        self.streaming = False
        """Whether the answer has begun to reach the caller."""
        self.upgrade = False
        """Whether the caller asks for WebSocket."""
        self.switched = False
        """Whether the upstream has agreed to it: from then on frames pass, and the end of the connection is the end."""
        self.rewrite: Callable[[bytes], bytes] | None = None
        """Makes what leaves of the body of what comes, piece by piece; an empty piece is its end."""
        self.retries = 0
        """How often the request was sent again."""
        self.rejected = False
        """Whether the upstream has rejected the credential once: a second time is the answer."""
        self.replayable = False
        """Whether the rejected request can be sent once more, byte for byte: it ended, and its body is held or empty."""
        self.redactions = 0
        """Places of the answer that showed a credential."""
        self.reframed = False
        """Whether a stage changes the size of the answer's body."""
        self.caller_credential: str | None = None
        """Where the caller sent a credential of its own, which does not travel."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.payload: Any = None
        """Running SHA-256 of the request body (`hashlib` object), once a credential is used."""
        self.secret_ms: float | None = None
        self.dialled_s: float | None = None
        self.first_byte_s: float | None = None
        connection.exchanges.add(self)

    def put(self, fact: object) -> None:
        """Records a fact of a type that has none yet.

        Raises:
            FactSetTwice: there is one already.
        """
        kind = type(fact)
        if kind in self._facts:
            raise FactSetTwice(f"{kind.__name__} is already known")
        self._facts[kind] = fact

    def ask[T](self, kind: type[T]) -> T:
        """The fact of this type.

        Raises:
            MissingFact: no stage has put one.
        """
        try:
            known: T = self._facts[kind]
        except KeyError:
            raise MissingFact(f"{kind.__name__} is not known yet") from None
        return known

    def find[T](self, kind: type[T]) -> T | None:
        """The fact of this type, or None."""
        known: T | None = self._facts.get(kind)
        return known

    def forget[T](self, kind: type[T]) -> T | None:
        """Takes a fact away and returns it: for the one that holds a credential, once it has been handed to the
        engine.
        """
        known: T | None = self._facts.pop(kind, None)
        return known
