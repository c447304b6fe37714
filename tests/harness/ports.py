"""Ports that a test must know before anything listens on them.

The kernel gives ports of one range to whoever binds port 0, our own listeners among them: a port that was free a
moment ago may be somebody's by the time a test needs it. These come from below that range, each at most once a run of
a process, so that nobody gets one by chance.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_FIRST = 10_000
_BELOW = 32_768
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def _candidates() -> Iterator[int]:
    below = min(int(_RANGE.read_text().split()[0]), _BELOW) if _RANGE.exists() else _BELOW
    # Each process begins elsewhere: two workers of one run, or two runs beside each other, do not meet.
    # Every second one: an OpenBao takes the port behind its own as well.
    ports = range(_FIRST, max(below, _FIRST + 1_000), 2)
    begin = os.getpid() * 487 % len(ports)
    return itertools.cycle((*ports[begin:], *ports[:begin]))


_ports = _candidates()


def free_port() -> int:
    """A port on 127.0.0.1 where nothing listens, and that is given to nobody who binds port 0."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port that refuses connections for as long as the block lasts: bound, and listening to nobody."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
