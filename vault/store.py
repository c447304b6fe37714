"""The one interface behind which secrets live: names, answers and errors shared by every store.

Rules:
- A secret is named by a `SecretRef`. The name may be logged; what it stands for may not.
- A read gives a `SealedSecret`: version, field names, cache state and age are known, the values are not to be had until
  somebody shows an `Opening`, an audit record that is already durable and names this very secret and version.
- One `SealedSecret` is one version: several fields of one path always come from one read.
- Every failure is one of the four `StoreError` kinds below. They carry names, status codes and reasons, never material;
  stores raise nothing else.

`vault/hashicorp/` and `vault/sealed.py` are the stores; `vault/cache.py` stands before them and gives `ttl`, single
flight and bounded staleness.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn, Protocol, final

from vault.secret import Secret

type CacheState = Literal["hit", "miss", "stale", "bypass"]
"""How a read was served: from memory inside `ttl`, by a fetch, from memory during an outage inside `max_stale`, or by a
forced fetch."""


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Names one secret in whichever store holds it.

    `path` is the whole path as policies write it, mount first (`secret/egress/stripe`), unless `mount` is given: then
    `path` is below that mount.
    """

    path: str
    mount: str | None = None
    version: int | None = None
    """Pinned version; None reads the newest."""
    kv: Literal[1, 2] | None = None
    """KV engine version; None means the store detects it."""
    namespace: str | None = None

    @property
    def name(self) -> str:
        """The whole path, as audit records, metrics and URLs name this secret."""
        return f"{self.mount.strip('/')}/{self.path.strip('/')}" if self.mount else self.path.strip("/")

    def __str__(self) -> str:
        return self.name


class Opening(Protocol):
    """What a durable `credential.opened` record must show before a secret is unsealed."""

    @property
    def secret(self) -> str | None:
        """Name of the secret the record is about."""

    @property
    def secret_version(self) -> str | None:
        """Version the record is about."""


@dataclass(frozen=True, slots=True)
class SecretVersion:
    """What a store returns for one read: all fields of one version. Kept inside `vault/`; callers get a
    `SealedSecret`.
    """

    fields: Mapping[str, Secret] = field(repr=False)
    version: str
    """Version as the store counts it (`"7"`), or `"v1"` for KV v1, which has none."""
    created_at: str | None = None
    """RFC 3339, where the store knows it."""
    custom_metadata: Mapping[str, str] = field(default_factory=dict)


@final
class SealedSecret:
    """One version of one secret, read but closed. `unseal` is the only way to its values."""

    __slots__ = ("__material", "age_s", "cache", "name", "version")

    def __init__(self, name: str, material: SecretVersion, *, cache: CacheState, age_s: float) -> None:
        self.__material = material
        self.name = name
        self.version = material.version
        self.cache: CacheState = cache
        self.age_s = age_s

    @property
    def field_names(self) -> frozenset[str]:
        return frozenset(self.__material.fields)

    def require(self, fields: Iterable[str]) -> None:
        """Checks that every named field is there, without opening anything.

        Raises:
            SecretMissing: names the first field that is not there.
        """
        for name in fields:
            if name not in self.__material.fields:
                raise SecretMissing(self.name, f"has no field {name!r} in version {self.version}")

    def unseal(self, record: Opening) -> Mapping[str, Secret]:
        """The fields of this version, in exchange for an audit record that names it.

        Raises:
            WrongOpening: the record is about another secret or version. A programming error; the request is refused.
        """
        if record.secret != self.name or record.secret_version != self.version:
            raise WrongOpening("the audit record names another secret or version than the one to be opened")
        return self.__material.fields

    def __repr__(self) -> str:
        return f"SealedSecret({self.name!r}, version={self.version!r}, cache={self.cache!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("secrets are not serialised")


class SecretStore(Protocol):
    """A place that holds secrets. Every method has a total deadline of its own and raises only `StoreError`."""

    name: Literal["vault", "sealed"]

    async def fetch(self, ref: SecretRef) -> SecretVersion:
        """Reads one version afresh, past any cache.

        Raises:
            SecretUnavailable, SecretDenied, SecretMissing, SecretMalformed.
        """

    async def probe(self) -> None:
        """Whether the store could serve a read now.

        Raises:
            SecretUnavailable: with the reason.
        """

    async def fields_of(self, ref: SecretRef) -> frozenset[str]:
        """Field names of a secret, never its values (KV v2 `subkeys`); for `check --live`. Raises as `fetch` does."""

    async def close(self) -> None:
        """Ends pools, renewals and own logins."""


class SecretSource(Protocol):
    """What the pipeline asks: a store behind its cache."""

    async def read(self, ref: SecretRef, *, ttl_s: float, max_stale_s: float, bypass: bool = False) -> SealedSecret:
        """One version, from memory inside `ttl_s`, else by one shared fetch; during an outage from memory inside
        `max_stale_s`.

        Raises:
            SecretUnavailable, SecretDenied, SecretMissing, SecretMalformed.
        """

    def read_now(self, ref: SecretRef, *, ttl_s: float) -> SealedSecret | None:
        """One version from memory, if it is younger than `ttl_s`; None where `read` has to be asked."""


class WrongOpening(Exception):
    """An audit record was shown for another secret or version."""


class StoreError(Exception):
    """Root of what a store can say no with. The message names the secret and the reason, never a value."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"secret {name}: {reason}" if name else reason)
        self.name = name
        self.reason = reason


class SecretUnavailable(StoreError):
    """An outage: sealed, standby, slow, down, rate limited. The only failure during which a cached value may still
    serve.
    """

    def __init__(self, name: str, reason: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(name, reason)
        self.retry_after_s = retry_after_s


class SecretDenied(StoreError):
    """The store said 403. Nothing cached is served after it."""


class SecretMissing(StoreError):
    """The secret, field or version is not there, deleted or destroyed. Nothing cached is served after it."""


class SecretMalformed(StoreError):
    """The store answered something that is no secret: not a mapping of names to scalars, or over the size cap."""
