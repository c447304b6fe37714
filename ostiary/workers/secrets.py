"""What is known of secrets in all workers as one answer, and whether all of them have read one anew.

Each worker reads secrets for itself, so for a moment after a rotation some use the new version and some the one before.
The answer tells of the newest, and counts who uses the one before wherever that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from ostiary.admin import Refreshed, SecretFailed, SecretStatus, Use
from ostiary.workers.channel import Body

type Found = Refreshed | SecretFailed | None


def statuses_body(statuses: Iterable[SecretStatus]) -> Body:
    """As JSON has them."""
    return {"secrets": [asdict(status) for status in statuses]}


def statuses_of(body: Body) -> tuple[SecretStatus, ...]:
    return tuple(_status(found) for found in body["secrets"])


def _status(found: dict[str, Any]) -> SecretStatus:
    uses = {key: None if found[key] is None else Use(**found[key]) for key in ("last_use", "before_last_use")}
    return SecretStatus(**{**found, **uses, "routes": tuple(found["routes"])})


def found_body(found: Found) -> Body:
    """What came of a refresh, as JSON has it."""
    match found:
        case None:
            return {}
        case Refreshed():
            return {"refreshed": asdict(found)}
        case SecretFailed():
            return {"reason": found.reason}


def found_of(body: Body) -> Found:
    if "refreshed" in body:
        return Refreshed(**body["refreshed"])
    return SecretFailed(body["reason"]) if "reason" in body else None


def all_refreshed(found: Sequence[Found]) -> Found:
    """One answer: a failure of any is one of all; where a reload came in between, who still reads the secret counts."""
    for one in found:
        if isinstance(one, SecretFailed):
            return one
    refreshed = [one for one in found if isinstance(one, Refreshed)]
    if not refreshed:
        return None
    newest = max(refreshed, key=lambda one: _order(one.version))
    return replace(newest, changed=any(one.changed for one in refreshed))


def of_all(told: Iterable[Sequence[SecretStatus]]) -> tuple[SecretStatus, ...]:
    """The secrets of all workers by name, each once."""
    groups: dict[tuple[str, int], list[SecretStatus]] = {}
    for statuses in told:
        for status in statuses:
            groups.setdefault((status.secret, status.pinned or 0), []).append(status)
    return tuple(_joined(groups[key]) for key in sorted(groups))


def _joined(statuses: list[SecretStatus]) -> SecretStatus:
    newest = max(statuses, key=lambda status: _order(status.version))
    older = {version for one in statuses for version in (one.version, one.before)} - {newest.version, None}
    before = newest.before or max(older, key=_order, default=None)
    requests, last_use = _uses(statuses, newest.version)
    before_requests, before_last_use = _uses(statuses, before) if before is not None else (0, None)
    ages = [one.age_seconds for one in statuses if one.version == newest.version and one.age_seconds is not None]
    return replace(
        newest,
        age_seconds=max(ages, default=None),
        problem=next((one.problem for one in statuses if one.problem is not None), None),
        requests=requests,
        last_use=last_use,
        before=before,
        before_requests=before_requests,
        before_last_use=before_last_use,
    )


def _uses(statuses: list[SecretStatus], version: str | None) -> tuple[int, Use | None]:
    """How many requests are under way with a version, and the last use of it."""
    requests = 0
    uses: list[Use] = []
    for one in statuses:
        if one.version == version:
            requests += one.requests
            uses += [one.last_use] if one.last_use is not None else []
        if one.before == version and version is not None:
            requests += one.before_requests
            uses += [one.before_last_use] if one.before_last_use is not None else []
    return requests, min(uses, key=lambda use: use.seconds_ago, default=None)


def _order(version: str | None) -> tuple[int, str]:
    """Later versions come later; one that is no number comes before all that are, and none before that."""
    if version is None:
        return -2, ""
    return (int(version), "") if version.isascii() and version.isdigit() else (-1, version)
