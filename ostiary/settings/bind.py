"""Reads addresses to listen on, and file modes of Unix sockets."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from ostiary.settings.model import Bound
from policies.document import Scalar
from policies.fields import Fields
from policies.load_parts import Context

_MODE: Final = re.compile(r"0?[0-7]{3}")


def read_bind(scalar: Scalar, context: Context) -> Bound | None:
    """`host:port`, `[v6]:port` or `unix:/path`."""
    text = scalar.text
    if text.startswith("unix:"):
        name = text.removeprefix("unix:")
        if not name:
            context.faults.add(scalar.place, "unix: needs a path", "write unix:/run/ostiary/proxy.sock")
            return None
        path = context.folder / name
        if len(str(path).encode()) > 107:
            context.faults.add(scalar.place, "the path of the socket is longer than 107 bytes", "use a shorter one")
            return None
        return Bound(path=path)
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        context.faults.add(scalar.place, f"{text!r} is no address to listen on", "write 127.0.0.1:8080 or unix:/path")
        return None
    return Bound(host, int(port))


def read_socket_mode(keys: Fields, among: Collection[int] = ()) -> int:
    """The file mode of a Unix socket, 0600 by default.

    Args:
        keys: of the listener.
        among: the modes that are allowed; empty: all.
    """
    scalar = keys.scalar("socket_mode")
    if scalar is None:
        return 0o600
    if not _MODE.fullmatch(scalar.text) or (among and int(scalar.text, 8) not in among):
        named = [f"{mode:04o}" for mode in sorted(among)] or ["0600", "0660", "0666"]
        mend = f"write {', '.join(named[:-1])} or {named[-1]}"
        what = "is no file mode" if not _MODE.fullmatch(scalar.text) else "would let strangers in"
        keys.faults.add(scalar.place, f"{scalar.text!r} {what}", mend)
        return 0o600
    return int(scalar.text, 8)
