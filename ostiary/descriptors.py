"""The descriptors of the process: how many connections they carry, and that enough stay for the audit.

A process that accepts until it has no descriptor left can neither dial nor open a file: it fails in the middle of what
it has begun. So the soft limit is raised to the hard one, a reserve is kept, and
what callers and upstreams may take together is bounded by the rest.
"""

from __future__ import annotations

import logging
import resource
from typing import Final

_log = logging.getLogger("ostiary.serve")

RESERVE: Final = 64
"""For listeners, audit and log files, the secret store's connections, the resolver's sockets."""
_PER_CALLER: Final = 2
"""A caller's connection and the one to its upstream."""


def raise_limit(held: int = 0) -> int:
    """Raises the soft limit to the hard one; returns what it is now, less what is held already: -1 for no limit.

    Args:
        held: descriptors that are neither free nor of the reserve.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = hard
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            found = soft
    return found if found < 0 else max(found - held, 0)


def carried(wanted: int, limit: int, *, asked: bool = True) -> int:
    """How many callers' connections are accepted.

    Args:
        wanted: `limits.connections`.
        limit: descriptors of the process; -1 means no limit.
        asked: whether the settings say it: a default that does not fit is no fault of anybody's, and no warning.
    """
    if limit < 0:
        return wanted
    most = max((limit - RESERVE) // _PER_CALLER, 1)
    if most < wanted:
        _log.log(
            logging.WARNING if asked else logging.INFO,
            "limits.connections is %d, but %d descriptors carry only %d: raise the limit (LimitNOFILE=, ulimit -n) or write less",
            wanted,
            limit,
            most,
        )
    return min(wanted, most)


def sockets(limit: int) -> int:
    """How many connections of callers and upstreams together may be open; 0 means any number."""
    return max(limit - RESERVE, 2) if limit >= 0 else 0
