"""From a grant to a credential: the only caller of the secret store in the request path.

The steps are types: `seal` wants a `Grant` and gives sealed secrets; `unseal` wants those and the open audit records
that name their very versions, and gives the `Credential`. There is no other way to one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, NoReturn, Protocol, final

from addons.audit import OpenRecord
from addons.egress import Destination, any_public
from addons.refusal import Code, Refusal
from policies.derive import TOKEN_FIELD
from policies.model import CredentialSpec, Route, SecretSpec
from policies.template import FieldRef
from vault.issued import IssuedRef
from vault.leases import LeaseRef
from vault.secret import Secret
from vault.store import (
    SealedSecret,
    SecretDenied,
    SecretMalformed,
    SecretMissing,
    SecretRef,
    SecretSource,
    SecretUnavailable,
    StoreError,
)

LACKING_S: Final = 2.0
"""How long a version that lacks a needed field is believed to be the newest."""


TOKEN: Final = "token"  # noqa: S105 - a name in templates
"""The name under which templates find what `derive:` made; no secret may have it."""

type TokenParts = tuple[SealedSecret, ...]
"""A derived token, closed: one for each secret it was made of, all records of which must be open before it is used. The
first has its values."""


class TokenSource(Protocol):
    """What one credential derives, for the routes of one way to its endpoint (`addons/deriving`)."""

    def now(self, workload: str) -> TokenParts | None:
        """From memory; None where something has to be waited for.

        Raises:
            Refusal: no token can be made now.
        """

    async def read(self, workload: str) -> TokenParts:
        """From memory, or made in a flight that all share.

        Raises:
            Refusal: as above, or `secret_unavailable`, `secret_denied`, `secret_missing`, `secret_malformed`,
                `egress_denied`, `audit_unavailable`.
        """

    async def other(self, workload: str, used: SealedSecret) -> TokenParts | None:
        """Another than the one that an upstream has just rejected; None where there is none.

        Raises:
            Refusal: it could not be made.
        """

    def suspect(self, workload: str, used: SealedSecret) -> None:
        """As `other`, for a request that cannot be sent again: nobody waits."""


class SealedCredential(NamedTuple):
    """Every secret of a grant's credential, read and still closed. `secrets` holds each path once."""

    spec: CredentialSpec
    entries: Mapping[str, SealedSecret]
    secrets: tuple[SealedSecret, ...]
    fields: tuple[tuple[str, str], ...]
    """The fields that are used, by the name of their secret."""
    token: TokenParts = ()
    """Those of `secrets` that a derived token is."""


class Openings(NamedTuple):
    """The durable records of `SealedCredential.secrets`, in the same order."""

    records: tuple[OpenRecord, ...]


@final
class Credential:
    """Values of one credential, by the references that templates make. Without a repr."""

    __slots__ = ("_fields", "_spec", "_values")

    def __init__(
        self,
        spec: CredentialSpec,
        values: Mapping[str, Mapping[str, Secret]],
        fields: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._spec = spec
        self._values = values
        self._fields = fields

    @property
    def name(self) -> str:
        """As the policy names it."""
        return self._spec.name

    def confidential(self) -> tuple[Secret, ...]:
        """What is used of it and must not be shown: all but the fields of secrets that are `public`."""
        specs, values = self._spec.secrets, self._values
        return tuple([values[name][field] for name, field in self._fields if name == TOKEN or not specs[name].public])

    def value(self, reference: FieldRef) -> Secret:
        """The secret a template refers to.

        Raises:
            Refusal: `secret_missing`.
        """
        name = field_name(self._spec, reference)
        try:
            return self._values[reference.entry][name]
        except KeyError:
            raise Refusal(Code.SECRET_MISSING, f"The secret {reference.entry} has no field {name}.") from None

    def __repr__(self) -> str:
        return "Credential(…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("credentials are not serialised")


def field_name(spec: CredentialSpec, reference: FieldRef) -> str:
    """The field a reference stands for. The loader refuses a bare reference to a secret without a `field`."""
    if reference.entry == TOKEN:
        return reference.field or TOKEN_FIELD
    return reference.field or spec.secrets[reference.entry].field or ""


def reference_of(spec: SecretSpec, holder: str = "") -> SecretRef:
    """The store's name for what a policy names.

    Args:
        spec: of the policy.
        holder: the route for which it is read: what is lent, is lent to each route for itself.
    """
    if spec.is_lent:
        # `kv`: so that nobody asks which KV version the mount has: it has none.
        return LeaseRef(path=spec.path, mount=spec.mount, kv=1, namespace=spec.namespace, holder=holder)
    if (issue := spec.issue) is not None:
        return IssuedRef(
            path=spec.path,
            mount=spec.mount,
            kv=1,  # as above
            namespace=spec.namespace,
            common_name=issue.common_name,
            uri_sans=issue.uri_sans,
            life_s=issue.ttl_s,
        )
    return SecretRef(path=spec.path, mount=spec.mount, version=spec.version, kv=spec.kv, namespace=spec.namespace)


def may_travel(route: Route, destination: Destination) -> bool:
    """Whether this route's credential may go there: over TLS always, in cleartext only where the route says so and no
    address is public.
    """
    return not destination.authority.cleartext or (route.allow_cleartext and not any_public(destination))


@dataclass(frozen=True, slots=True)
class Needs:
    """What a set of injectors needs of one credential: worked out once for a route, read by each of its requests."""

    spec: CredentialSpec
    reads: tuple[tuple[str, SecretRef, float, float, float], ...]
    """For each secret: its name in the credential, the store's name for it, `ttl_s`, `max_stale_s` and `watch_s`."""
    fields: tuple[tuple[str, str], ...]
    """Fields that must be there, by the name of their secret."""
    token: TokenSource | None = None
    """Where it needs what is derived."""

    @classmethod
    def of(
        cls,
        spec: CredentialSpec,
        references: Sequence[FieldRef],
        token: TokenSource | None = None,
        holder: str = "",
    ) -> Needs:
        names = tuple(dict.fromkeys(reference.entry for reference in references if reference.entry != TOKEN))
        return cls(
            spec,
            tuple(
                (name, reference_of(one, holder), one.ttl_s, one.max_stale_s, one.watch_s)
                for name, one in ((name, spec.secrets[name]) for name in names)
            ),
            tuple((reference.entry, field_name(spec, reference)) for reference in references),
            token if any(reference.entry == TOKEN for reference in references) else None,
        )


def seal_now(needs: Needs, source: SecretSource, workload: str = "") -> SealedCredential | None:
    """Every secret of the credential from memory; None where the store, or a token endpoint, has to be asked for one.

    Raises:
        Refusal: `secret_missing`.
    """
    if needs.token is None and len(needs.reads) == 1:
        return _seal_one(needs, source)
    entries: dict[str, SealedSecret] = {}
    read: dict[SecretRef, SealedSecret] = {}
    for name, ref, ttl_s, _, watch_s in needs.reads:
        known = read.get(ref) if read else None
        if known is None:
            known = source.read_now(ref, ttl_s=ttl_s, watch_s=watch_s)
            if known is None:
                return None
            read[ref] = known
        entries[name] = known
    token: TokenParts = ()
    if needs.token is not None:
        found = needs.token.now(workload)
        if found is None:
            return None
        token = found
    try:
        return _complete(needs, entries, read, token)
    except Refusal:
        if _old(read):
            return None
        raise


def _seal_one(needs: Needs, source: SecretSource) -> SealedCredential | None:
    """`seal_now` of the many credentials that are one secret."""
    ((name, ref, ttl_s, _, watch_s),) = needs.reads
    known = source.read_now(ref, ttl_s=ttl_s, watch_s=watch_s)
    if known is None:
        return None
    entries = {name: known}
    try:
        for entry, field in needs.fields:
            entries[entry].require(field)
    except StoreError as error:
        if known.age_s >= LACKING_S:
            return None
        raise refusal_for(error) from None
    return SealedCredential(needs.spec, entries, (known,), needs.fields)


async def seal(needs: Needs, source: SecretSource, workload: str = "") -> SealedCredential:
    """Reads every secret of the credential, each path once, and checks that the needed fields are there.

    Raises:
        Refusal: `secret_unavailable`, `secret_denied`, `secret_missing` or `secret_malformed`.
    """
    entries: dict[str, SealedSecret] = {}
    read: dict[SecretRef, SealedSecret] = {}
    try:
        for name, ref, ttl_s, max_stale_s, watch_s in needs.reads:
            if ref not in read:
                read[ref] = await source.read(ref, ttl_s=ttl_s, max_stale_s=max_stale_s, watch_s=watch_s)
            entries[name] = read[ref]
        token = await needs.token.read(workload) if needs.token is not None else ()
        try:
            return _complete(needs, entries, read, token)
        except Refusal:
            if not _old(read):
                raise
        # A version that lacks a field is remembered as briefly as a secret that is not there, whatever its ttl.
        for name, ref, ttl_s, max_stale_s, _ in needs.reads:
            entries[name] = read[ref] = await source.read(ref, ttl_s=min(ttl_s, LACKING_S), max_stale_s=max_stale_s)
    except StoreError as error:
        raise refusal_for(error) from None
    return _complete(needs, entries, read, token)


def _old(read: Mapping[SecretRef, SealedSecret]) -> bool:
    """Whether the store may have something else by now than a version that lacks a field."""
    return any(secret.age_s >= LACKING_S for secret in read.values())


async def seal_other(
    needs: Needs, rejected: SealedCredential, source: SecretSource, workload: str = ""
) -> SealedCredential | None:
    """The credential in another version than the one that an upstream has just rejected, or with another token; None where
    nothing of it has another.

    Raises:
        StoreError, Refusal: what was found is not usable.
    """
    used = {ref: rejected.entries[name] for name, ref, *_ in needs.reads}
    times = {ref: ttl_s for _, ref, ttl_s, *_ in needs.reads}
    others = await asyncio.gather(*(source.read_other(ref, used[ref], ttl_s=times[ref]) for ref in used))
    found = dict(zip(used, others, strict=True))
    token = await needs.token.other(workload, rejected.entries[TOKEN]) if needs.token is not None else None
    if not any(found.values()) and token is None:
        return None
    return _exchanged(needs, {ref: other or used[ref] for ref, other in found.items()}, token or _again(rejected))


async def seal_before(
    needs: Needs, rejected: SealedCredential, source: SecretSource, now_s: float
) -> SealedCredential | None:
    """The credential in the version before the rejected one, where the owners of a secret say that the upstream accepts
    that one too (`overlap_until`); None where they do not. It is read as every pinned version is, so what was deleted or
    destroyed is not used.

    Args:
        now_s: seconds since the epoch.

    Raises:
        StoreError, Refusal: it cannot be read, or is not usable.
    """
    found: dict[SecretRef, SealedSecret] = {}
    older = False
    for name, ref, ttl_s, max_stale_s, _ in needs.reads:
        used = rejected.entries[name]
        number = used.before(now_s) if ref.version is None else None
        if number is not None:
            older = True
            used = await source.read(replace(ref, version=number), ttl_s=ttl_s, max_stale_s=max_stale_s)
        found[ref] = used
    return _exchanged(needs, found, _again(rejected)) if older else None


def _again(rejected: SealedCredential) -> TokenParts:
    """The same token for another attempt, which has records of its own."""
    return tuple(part.again(part.cache, part.age_s) for part in rejected.token)


def suspect(needs: Needs, rejected: SealedCredential, source: SecretSource, workload: str = "") -> None:
    """Has the store asked behind the back of a request that cannot be sent again.

    Args:
        needs: of all injectors: which of them a body called for is no longer known.
    """
    for name, ref, *_ in needs.reads:
        if (used := rejected.entries.get(name)) is not None:
            source.suspect(ref, used)
    if needs.token is not None and rejected.token:
        needs.token.suspect(workload, rejected.token[0])


def _exchanged(needs: Needs, found: Mapping[SecretRef, SealedSecret], token: TokenParts) -> SealedCredential:
    return _complete(needs, {name: found[ref] for name, ref, *_ in needs.reads}, found, token)


def _complete(
    needs: Needs,
    entries: dict[str, SealedSecret],
    read: Mapping[SecretRef, SealedSecret],
    token: TokenParts,
) -> SealedCredential:
    if token:
        entries[TOKEN] = token[0]
    try:
        for name, field in needs.fields:
            entries[name].require(field)
    except StoreError as error:
        raise refusal_for(error) from None
    secrets = (*read.values(), *token) if token else tuple(read.values())
    return SealedCredential(needs.spec, entries, secrets, needs.fields, token)


def unseal(sealed: SealedCredential, openings: Openings) -> Credential:
    """The values, in exchange for the records."""
    if len(sealed.secrets) == 1 == len(openings.records):
        opened = sealed.secrets[0].unseal(openings.records[0])
        return Credential(sealed.spec, dict.fromkeys(sealed.entries, opened), sealed.fields)
    # By identity: the same path may be read in two pinned versions.
    fields = {
        id(secret): secret.unseal(record) for secret, record in zip(sealed.secrets, openings.records, strict=True)
    }
    values = {name: fields[id(secret)] for name, secret in sealed.entries.items()}
    return Credential(sealed.spec, values, sealed.fields)


def release(sealed: SealedCredential) -> None:
    """The request that used it has ended, or goes on with another."""
    for secret in sealed.secrets:
        secret.release()


def refusal_for(error: StoreError) -> Refusal:
    """What the caller is told when the store says no. The reason stays in the log: it may name what the caller need not
    know.
    """
    match error:
        case SecretUnavailable():
            return Refusal(
                Code.SECRET_UNAVAILABLE,
                "The secret store cannot be reached right now.",
                retry_after_s=error.retry_after_s,
            )
        case SecretDenied():
            return Refusal(Code.SECRET_DENIED, f"The secret store denies Ostiary the secret {error.name}.")
        case SecretMissing():
            return Refusal(Code.SECRET_MISSING, f"The secret {error.name} is not complete: {error.reason}.")
        case SecretMalformed():
            return Refusal(Code.SECRET_MALFORMED, f"The secret {error.name} is not usable.")
        case _:
            return Refusal(Code.INTERNAL, "The secret store failed.")
