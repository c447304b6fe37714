"""What rotations leave behind: audit events, log lines and metrics, from what the cache tells.

`secret.version_changed` says that this process hands out another version from now on; `secret.last_use_of_version`, that
the last request under the version before has ended. Both name the secret, neither its value. A key whose owners say when
it ends is announced ahead, once at each of `AHEAD_S`, with the owner's name.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from typing import Final

from addons.audit import AuditLog, Fields, OpenRecord
from addons.clock import Clock
from addons.telemetry import Metrics
from vault.control import Control
from vault.observer import LoginResult, ReadResult, RejectionResult
from vault.uses import Opening

_log = logging.getLogger("ostiary.rotation")

DAY_S: Final = 86400.0
AHEAD_S: Final = (14 * DAY_S, 7 * DAY_S, 3 * DAY_S, DAY_S, 0.0)
LOOK_S: Final = 600.0
MAX_ANNOUNCED: Final = 10_000
_LAST_KEYS: Final = ("request_id", "workload", "route", "listener", "host")


class Evidence:
    """A `StoreObserver`: tells metrics everything, audit and log what they are for.

    Args:
        audit: takes notes.
        metrics: told everything.
        clock: wall time, for what ends.
    """

    def __init__(self, audit: AuditLog, metrics: Metrics, clock: Clock) -> None:
        self._audit = audit
        self._metrics = metrics
        self._clock = clock
        self._ends: dict[str, tuple[Control, int]] = {}
        # Each request passes here: no call more than there was.
        self.secret_cache = metrics.secret_cache
        self.secret_in_use = metrics.secret_in_use

    def secret_read(self, store: str, result: ReadResult) -> None:
        self._metrics.secret_read(store, result)

    def secret_changed(self, name: str, before: str, version: str) -> None:
        self._metrics.secret_changed(name, before, version)
        self._audit.note(
            "secret.version_changed", {"secret": name, "secret_version": version, "version_before": before}
        )
        _log.info("secret %s: version %s takes the place of version %s", name, version, before)

    def secret_last_used(self, name: str, version: str, last: Opening) -> None:
        fields: Fields = {"secret": name, "secret_version": version}
        if isinstance(last, OpenRecord):
            for key in _LAST_KEYS:
                if key in last.fields:
                    fields[key] = last.fields[key]
        self._audit.note("secret.last_use_of_version", fields)

    def secret_told(self, name: str, control: Control) -> None:
        self._metrics.secret_told(name, control)
        for fault in control.faults:
            _log.warning("secret %s: custom_metadata: %s; it is taken as absent", name, fault)
        self._ends.pop(name, None)
        if control.expires_at_s is not None and not control.renewed and len(self._ends) < MAX_ANNOUNCED:
            self._ends[name] = (control, 0)
            self._announce(name)

    def secret_rejected(self, result: RejectionResult) -> None:
        self._metrics.secret_rejected(result)

    def store_up(self, *, up: bool) -> None:
        self._metrics.store_up(up=up)

    def store_login(self, result: LoginResult) -> None:
        self._metrics.store_login(result)

    def token_ttl(self, ttl_s: float) -> None:
        self._metrics.token_ttl(ttl_s)

    async def keep_looking(self) -> None:
        """Announces in time, for as long as it runs."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look_ahead()

    def look_ahead(self) -> None:
        """Announces what ends soon and has not been announced for this step; called now and then."""
        for name in tuple(self._ends):
            self._announce(name)

    def _announce(self, name: str) -> None:
        control, said = self._ends[name]
        if control.expires_at_s is None:
            return
        left_s = control.expires_at_s - self._clock.wall_s()
        steps = sum(left_s <= ahead_s for ahead_s in AHEAD_S)
        if steps <= said:
            return
        self._ends[name] = (control, steps)
        at = dt.datetime.fromtimestamp(control.expires_at_s, dt.UTC).isoformat().replace("+00:00", "Z")
        owner = f" (owner: {control.owner})" if control.owner else ""
        if left_s <= 0:
            _log.error("secret %s has expired at %s, as its owners say: rotate it%s", name, at, owner)
        else:
            _log.warning("secret %s expires at %s, in %.1f days: rotate it%s", name, at, left_s / DAY_S, owner)
