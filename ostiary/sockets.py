"""Opens the sockets that a process listens on, before anything else is built: their real ports are among the addresses
that may never be dialled.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from pathlib import Path

from ostiary.settings.model import Bound


class BindFailed(Exception):
    """A listener cannot be opened; the message names it and the reason. The process exits with 71."""


def open_socket(name: str, bound: Bound, mode: int = 0o600, *, shared: bool = False) -> socket.socket:
    """A bound socket that listens; nobody accepts yet.

    Args:
        name: of the listener, for messages.
        bound: where.
        mode: of a Unix socket's file.
        shared: whether more sockets of this user may be bound to the port later. Not to begin with: a port on which
            anybody listens already is refused either way.

    Raises:
        BindFailed: it cannot be bound.
    """
    try:
        if bound.path is not None:
            return _open_unix(bound.path, mode)
        family, kind, protocol, _, address = socket.getaddrinfo(
            bound.host, bound.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio sets TCP_NODELAY only on sockets that say they are TCP; without it each answer of two writes waits 40
        # ms for an acknowledgement.
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind(address)
            if shared:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Two processes may bind the same port until one listens: do it now, so that the second fails here.
            opened.listen(1024)
        except OSError:
            opened.close()
            raise
    except OSError as error:
        raise BindFailed(
            f"listener {name} cannot bind {bound}: {os.strerror(error.errno) if error.errno and error.errno > 0 else error}"
        ) from None
    return opened


def open_group(name: str, bound: Bound, mode: int, count: int) -> list[socket.socket]:
    """As `open_socket`, `count` sockets for as many processes. Those of a port share it (SO_REUSEPORT, socket(7)): the
    kernel gives each connection to one of them. A Unix socket cannot be bound twice, so all processes have the same one.

    Raises:
        BindFailed: it cannot be bound.
    """
    first = open_socket(name, bound, mode, shared=count > 1)
    if count == 1 or first.family == socket.AF_UNIX:
        return [first] * count
    group = [first]
    try:
        for _ in range(1, count):
            group.append(_join(first))  # noqa: PERF401 - closed below where the next one fails
    except OSError as error:
        for opened in group:
            opened.close()
        raise BindFailed(f"listener {name} cannot bind {bound} once more: {error.strerror}") from None
    return group


def _join(first: socket.socket) -> socket.socket:
    opened = socket.socket(first.family, first.type, first.proto)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind(first.getsockname())
        opened.listen(1024)
    except OSError:
        opened.close()
        raise
    return opened


def _open_unix(path: Path, mode: int) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "exists and is no socket")
        # Left behind by a process that was killed, or in use: only a connection can tell.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(str(path)) == 0:
                raise OSError(errno.EADDRINUSE, "in use")
        path.unlink()
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        opened.bind(str(path))
        opened.listen(1024)
    except OSError:
        opened.close()
        raise
    finally:
        os.umask(before)
    return opened


def address_of(opened: socket.socket) -> str:
    """`host:port` with the real port, or `unix:/path`."""
    if opened.family == socket.AF_UNIX:
        return f"unix:{opened.getsockname()}"
    host, port = opened.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def forbidden_of(opened: socket.socket) -> tuple[str | None, int] | None:
    """The address under which the egress guard must refuse this socket; None for a Unix socket, which cannot be
    dialled.
    """
    if opened.family == socket.AF_UNIX:
        return None
    return own_of(*opened.getsockname()[:2])


def own_of(host: str, port: int) -> tuple[str | None, int]:
    """The same for an address; None stands for every one of this machine."""
    return (None if host in {"0.0.0.0", "::"} else host, port)  # noqa: S104 - compared, not bound


def local_addresses() -> frozenset[str]:
    """Addresses of this machine's interfaces, as far as Linux tells them without privileges."""
    found: set[str] = set()
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                # SIOCGIFADDR, netdevice(7).
                answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))
                found.add(socket.inet_ntoa(answer[20:24]))
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text("ascii").splitlines():
            found.add(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0])))
    return frozenset(found)
