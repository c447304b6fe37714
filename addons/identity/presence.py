"""How many connections each workload holds open: `limits.connections_per_workload`.

A connection counts from the first request on it that proves a workload until it ends.
"""

from __future__ import annotations

from collections import Counter

from addons.exchange import Connection
from addons.refusal import Code, Refusal


class Presence:
    """Counts connections by workload.

    Args:
        most: of one workload; 0 means any number.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def enter(self, connection: Connection, workload: str) -> None:
        """Counts a connection for the workload it has just proven.

        Raises:
            Refusal: `overloaded`; the workload holds as many as it may.
        """
        known = self._held.get(connection.id)
        if not self._most or known == workload:
            return
        if self._counts[workload] >= self._most:
            raise Refusal(
                Code.OVERLOADED,
                f"Workload {workload} holds {self._most} connections, as many as limits.connections_per_workload allows.",
                retry_after_s=1.0,
                close=True,
            )
        if known is not None:
            # A plain http:// connection may prove another workload with its next request.
            self.leave(connection)
        self._held[connection.id] = workload
        self._counts[workload] += 1

    def leave(self, connection: Connection) -> None:
        """The connection has ended."""
        workload = self._held.pop(connection.id, None)
        if workload is None:
            return
        self._counts[workload] -= 1
        if not self._counts[workload]:
            del self._counts[workload]
