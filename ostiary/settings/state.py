"""Reads `state:`: where the facts live that must survive or be shared.

A URL is never repeated in a fault: whoever writes a password into it shall not find it in a log.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from addons.state import StateConfig
from addons.state.guarded import DEADLINE_S
from addons.state.open import DEFAULT_PREFIX
from ostiary.settings.keys import KNOWN
from ostiary.settings.vault import read_file_path, read_reference
from policies.document import Mapping as MappingNode
from policies.document import Node, Scalar
from policies.fields import Fields
from policies.load_parts import Context

DEFAULT_PORT: Final = 6379
MIN_DEADLINE_S: Final = 0.01
MAX_DEADLINE_S: Final = 5.0
_SERVERS: Final = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_OF_A_SERVER: Final = ("username", "password", "ca_file", "prefix", "allow_cleartext")
_PREFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_WRITE: Final = "write sqlite:////var/lib/ostiary/state.db, rediss://host:6379/0 or memory:"


def read_state(node: Node | None, context: Context, environ: Mapping[str, str]) -> StateConfig | None:
    """The `state:` block, None where it is absent or has faults."""
    if node is None:
        return None
    faults = context.faults
    keys = Fields(node, faults, "state", known=KNOWN["state"])
    if not isinstance(node, MappingNode) or not keys.require("url"):
        return None
    before = len(faults.found)
    deadline_s = _deadline(keys)
    scalar = keys.scalar("url")
    if scalar is None:
        return None
    try:
        split = urlsplit(scalar.text)
        port = split.port
    except ValueError:
        faults.add(scalar.place, "the URL of the state cannot be read", _WRITE)
        return None
    if split.scheme in _SERVERS:
        found = _server(keys, scalar, split, port, context, environ, deadline_s)
    else:
        for key in _OF_A_SERVER:
            if key in keys:
                faults.add(keys.place_of(key), f"{key!r} belongs to a server, and this state has none", "remove it")
        found = _local(scalar, split, context, deadline_s)
    return found if len(faults.found) == before else None


def _deadline(keys: Fields) -> float:
    found = keys.duration("deadline", DEADLINE_S)
    if found is None or not MIN_DEADLINE_S <= found <= MAX_DEADLINE_S:
        keys.faults.add(
            keys.place_of("deadline"), "a deadline of the state lies between 10ms and 5s", "leave it out for 250ms"
        )
        return DEADLINE_S
    return found


def _local(scalar: Scalar, split: SplitResult, context: Context, deadline_s: float) -> StateConfig | None:
    if scalar.text == "memory:":
        return StateConfig("memory", deadline_s=deadline_s)
    if split.scheme != "sqlite":
        context.faults.add(scalar.place, "the URL of the state has no scheme that is known", _WRITE)
        return None
    # Three slashes and a relative path, or four and an absolute one, as elsewhere.
    name = scalar.text.removeprefix("sqlite:///")
    if name == scalar.text or not name or "?" in name or "#" in name:
        context.faults.add(
            scalar.place, "the URL names no file", "write sqlite:////absolute/state.db or sqlite:///relative.db"
        )
        return None
    return StateConfig("sqlite", path=context.folder / name, deadline_s=deadline_s)


def _server(
    keys: Fields,
    scalar: Scalar,
    split: SplitResult,
    port: int | None,
    context: Context,
    environ: Mapping[str, str],
    deadline_s: float,
) -> StateConfig | None:
    faults, tls = context.faults, _SERVERS[split.scheme]
    if "@" in split.netloc:
        faults.add(
            scalar.place,
            "the URL of the state carries a login",
            "take it out; write username: and password: ${NAME} or file:PATH",
        )
        return None
    database = split.path.strip("/")
    if not split.hostname or split.query or split.fragment or (database and not re.fullmatch(r"[0-9]{1,4}", database)):
        faults.add(scalar.place, "the URL names no server", "write rediss://host:6379/0")
        return None
    if not tls and split.hostname not in _LOOPBACK and not keys.boolean("allow_cleartext"):
        faults.add(
            scalar.place,
            "kills and counters would cross the network in clear text",
            "write rediss://, use a loopback address, or say allow_cleartext: true",
        )
    if importlib.util.find_spec("redis") is None:
        faults.add(scalar.place, "the redis package is not installed", "install ostiary[redis]")
    prefix = keys.text("prefix", DEFAULT_PREFIX) or DEFAULT_PREFIX
    if not _PREFIX.fullmatch(prefix):
        faults.add(keys.place_of("prefix"), "a prefix has letters, digits, dots, dashes and underscores")
    ca_file: Path | None = None
    if "ca_file" in keys:
        if not tls:
            faults.add(keys.place_of("ca_file"), "ca_file needs TLS", "write rediss://")
        ca_file = read_file_path(keys, "ca_file", context)
    given = keys.scalar("password")
    if given is not None and not given.text.startswith(("${", "file:")):
        faults.add(given.place, "a password does not stand in the settings", "write ${NAME} or file:PATH")
        return None
    password = read_reference(keys, "password", context, environ)
    username = keys.text("username")
    if username is not None and given is None:
        faults.add(keys.place_of("username"), "username needs a password", "add password: ${NAME} or file:PATH")
    return StateConfig(
        "valkey",
        host=split.hostname,
        port=port or DEFAULT_PORT,
        database=int(database or 0),
        tls=tls,
        ca_file=ca_file,
        username=username,
        password=password,
        prefix=prefix,
        deadline_s=deadline_s,
    )
