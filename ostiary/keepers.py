"""What those who look after secrets may ask of one proxy process: which versions are in use, and to use the newest now.

Only secrets that routes of the policy in force read can be named; what is told of them is never a value.
"""

from __future__ import annotations

import datetime as dt

from addons.audit import OpenRecord
from addons.credentials import reference_of
from addons.parts import Parts
from ostiary.admin import Refreshed, SecretFailed, SecretStatus, Use
from policies import Policy
from vault.entry import Known
from vault.store import SecretRef, StoreError
from vault.uses import Opening


def refs_of(policy: Policy) -> dict[SecretRef, tuple[str, ...]]:
    """The secrets of a policy, each with the routes that read it."""
    found: dict[SecretRef, list[str]] = {}
    for route, spec in policy.secret_uses():
        names = found.setdefault(reference_of(spec, route), [])
        if route not in names:
            names.append(route)
    return {ref: tuple(names) for ref, names in found.items()}


def statuses(parts: Parts) -> tuple[SecretStatus, ...]:
    """Every secret of the policy in force, by name."""
    now_s = parts.clock.monotonic_s()
    found, source = refs_of(parts.in_force.policy), parts.made or parts.secrets
    return tuple(
        _status(ref, found[ref], source.known(ref), now_s)
        for ref in sorted(found, key=lambda ref: (ref.name, ref.version or 0))
    )


def _status(ref: SecretRef, routes: tuple[str, ...], known: Known | None, now_s: float) -> SecretStatus:
    if known is None:
        return SecretStatus(ref.name, routes, ref.version)
    control = known.control
    return SecretStatus(
        secret=ref.name,
        routes=routes,
        pinned=ref.version,
        version=known.version,
        created_at=known.created_at,
        age_seconds=round(known.age_s, 3) if known.version is not None else None,
        problem=known.problem,
        requests=known.live,
        last_use=_use(known.last, now_s),
        before=known.before,
        before_requests=known.before_live,
        before_last_use=_use(known.before_last, now_s),
        owner=control.owner,
        classification=control.classification,
        expires_at=_instant(control.expires_at_s),
        overlap_until=_instant(control.overlap_until_s),
        pending_version=control.pending_version,
        lease=known.lease,
        lease_seconds=known.lease_s if known.lease_s is None else round(known.lease_s, 3),
    )


def _use(last: Opening | None, now_s: float) -> Use | None:
    if not isinstance(last, OpenRecord):
        return None
    fields = last.fields
    return Use(
        last.request_id or "",
        fields.get("workload", ""),
        fields.get("route", ""),
        round(max(now_s - last.opened_s, 0.0), 3),
    )


def _instant(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat().replace("+00:00", "Z")


async def refresh(parts: Parts, name: str, by: str) -> Refreshed | SecretFailed | None:
    """Reads a secret past the cache.

    Args:
        name: its whole path.
        by: who asks, for the audit.

    Returns:
        What is in use now; None where no route reads it.
    """
    refs = sorted((ref for ref in refs_of(parts.in_force.policy) if ref.name == name), key=lambda ref: ref.version or 0)
    if not refs:
        return None
    shown: Refreshed | None = None
    source = parts.made or parts.secrets
    for ref in refs:
        known = source.known(ref)
        before = None if known is None else known.version
        try:
            found = await source.read(ref, ttl_s=0, max_stale_s=0, bypass=True)
        except StoreError as error:
            parts.audit.note(
                "secret.refreshed", {"secret": name, "outcome": "refused", "reason": error.reason, "by": by}
            )
            return SecretFailed(str(error))
        parts.audit.note("secret.refreshed", {"secret": name, "secret_version": found.version, "by": by})
        # The newest of them is the answer; pinned ones come behind it.
        shown = shown or Refreshed(name, found.version, found.version != before)
    return shown
