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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol, final, runtime_checkable

from vault.control import NOTHING, Control
from vault.secret import Secret
from vault.uses import Opening, Uses

if TYPE_CHECKING:
    from vault.entry import Known

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
    name: str = field(init=False, repr=False, compare=False)
    """The whole path, as audit records, metrics and URLs name this secret."""
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Once: a reference lives as long as its policy, and is looked up by every request.
        name = f"{self.mount.strip('/')}/{self.path.strip('/')}" if self.mount else self.path.strip("/")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_hash", hash((self.path, self.mount, self.version, self.kv, self.namespace)))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self.name


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
    control: Control = NOTHING
    """What the owners say about the secret; KV version 2 alone has it."""
    lease: str = ""
    """Identifier of the lease, where it is lent."""
    uses: Uses = field(default_factory=Uses, repr=False, compare=False)

    def same(self, other: SecretVersion) -> bool:
        """Whether this is the same version with the same values. A path that was deleted whole and written anew counts
        from 1 again: then the time tells. KV version 1 has neither number nor time: its values are compared.
        """
        if self.version != other.version or self.created_at != other.created_at:
            return False
        if self.created_at is not None:
            return True
        return self.fields.keys() == other.fields.keys() and all(
            value.matches(other.fields[name]) for name, value in self.fields.items()
        )


@final
class SealedSecret:
    """One version of one secret, read but closed, for one request. `unseal` is the only way to its values; `release`
    says that the request has ended.
    """

    __slots__ = ("__held", "__material", "age_s", "cache", "lease", "name", "version")

    def __init__(self, name: str, material: SecretVersion, *, cache: CacheState, age_s: float) -> None:
        self.__material = material
        self.__held = False
        self.name = name
        self.version = material.version
        self.lease = material.lease
        self.cache: CacheState = cache
        self.age_s = age_s

    @property
    def field_names(self) -> frozenset[str]:
        return frozenset(self.__material.fields)

    def require(self, field: str) -> None:
        """Checks that a field is there, without opening anything.

        Raises:
            SecretMissing: it is not.
        """
        if field not in self.__material.fields:
            raise SecretMissing(self.name, f"has no field {field!r} in version {self.version}")

    def unseal(self, record: Opening) -> Mapping[str, Secret]:
        """The fields of this version, in exchange for an audit record that names it.

        Raises:
            WrongOpening: the record is about another secret or version. A programming error; the request is refused.
        """
        if record.secret != self.name or record.secret_version != self.version:
            raise WrongOpening("the audit record names another secret or version than the one to be opened")
        if not self.__held:
            self.__held = True
            self.__material.uses.began(record)
        return self.__material.fields

    def hold(self) -> None:
        """Counts as in use from now on without being opened, for what was made of a version that differs in nothing that
        matters to it.
        """
        if not self.__held:
            self.__held = True
            self.__material.uses.kept()

    def release(self) -> None:
        """The request for which it was opened has ended. Does nothing where it was not opened."""
        if self.__held:
            self.__held = False
            self.__material.uses.ended()

    def differs(self, version: SecretVersion) -> bool:
        """Whether this is another version than that, or another value where there are no versions."""
        return self.__material is not version and not self.__material.same(version)

    def derived(self, fields: Mapping[str, Secret]) -> SealedSecret:
        """What was made of this version: named and counted as it is, with other values. Records tell its version; while a
        request holds it, this version is in use.
        """
        return SealedSecret(self.name, replace(self.__material, fields=fields), cache=self.cache, age_s=self.age_s)

    def again(self, cache: CacheState, age_s: float) -> SealedSecret:
        """The same, for another request."""
        return SealedSecret(self.name, self.__material, cache=cache, age_s=age_s)

    def is_again(self, other: SealedSecret) -> bool:
        """Whether both have the very values of one read, or of one token."""
        return self.__material.fields is other.__material.fields

    def same(self, other: SealedSecret) -> bool:
        """Whether both are of the same version, with the same values where there are no versions."""
        return self.__material is other.__material or self.__material.same(other.__material)

    def agrees(self, other: SealedSecret, fields: Iterable[str]) -> bool:
        """Whether these fields have the same values in both."""
        mine, theirs = self.__material.fields, other.__material.fields
        return all(name in mine and name in theirs and mine[name].matches(theirs[name]) for name in fields)

    def before(self, now_s: float) -> int | None:
        """The version before this one, while the owners say that the upstream accepts it too (`overlap_until`); else
        None.

        Args:
            now_s: seconds since the epoch.
        """
        until_s = self.__material.control.overlap_until_s
        if until_s is None or now_s >= until_s or not self.version.isdecimal() or int(self.version) < 2:
            return None
        return int(self.version) - 1

    def __repr__(self) -> str:
        return f"SealedSecret({self.name!r}, version={self.version!r}, cache={self.cache!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("secrets are not serialised")


@dataclass(frozen=True, slots=True)
class Described:
    """What a store tells of a secret without its values."""

    fields: frozenset[str]
    version: str
    control: Control = NOTHING


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

    async def unchanged(self, ref: SecretRef, known: SecretVersion) -> bool:
        """Whether a read would still give this version and what its owners said with it, told without the value. False
        wherever that cannot be told: then a read has to tell.

        Raises:
            SecretUnavailable: the store cannot be asked.
        """

    async def describe(self, ref: SecretRef) -> Described:
        """Field names, version and what the owners say, never values. Raises as `fetch` does."""

    async def close(self) -> None:
        """Ends pools, renewals and own logins."""


@runtime_checkable
class SecretWriter(Protocol):
    """A store that takes back what a grant has made anew (a refresh token)."""

    async def write(self, ref: SecretRef, fields: Mapping[str, Secret], *, over: str) -> None:
        """Puts fields into a new version, if `over` is still the newest; the other fields stay as they are.

        Raises:
            VersionConflict: another version has been written meanwhile.
            SecretUnavailable, SecretDenied, SecretMissing, SecretMalformed: nothing was written, or nobody knows.
        """


class SecretSource(Protocol):
    """What the pipeline asks: a store behind its cache."""

    async def read(
        self, ref: SecretRef, *, ttl_s: float, max_stale_s: float, watch_s: float = 0.0, bypass: bool = False
    ) -> SealedSecret:
        """One version, from memory inside `ttl_s`, else by one shared fetch; during an outage from memory inside
        `max_stale_s`. With `watch_s`, what is in memory serves only if the store said so less than that ago.

        Raises:
            SecretUnavailable, SecretDenied, SecretMissing, SecretMalformed.
        """

    def read_now(self, ref: SecretRef, *, ttl_s: float, watch_s: float = 0.0) -> SealedSecret | None:
        """One version from memory, if it is younger than `ttl_s`; None where `read` has to be asked."""

    async def read_other(self, ref: SecretRef, used: SealedSecret, *, ttl_s: float) -> SealedSecret | None:
        """Another version than the one that an upstream has just rejected: from memory if it is there already, else by
        one forced read that everyone shares. None where there is none, or none was found a moment ago.
        """

    def known(self, ref: SecretRef) -> Known | None:
        """What is known of a secret without asking the store."""

    def suspect(self, ref: SecretRef, used: SealedSecret) -> None:
        """As `read_other`, for a request that cannot be sent again: nobody waits, and the next read has what is found."""


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


class VersionConflict(StoreError):
    """A version was to be written over another that is the newest no more: nothing was written."""
