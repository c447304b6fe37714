"""Reads `admin:`: where the admin API and the probes listen, and who may call the API.

The API can change what the proxy does and speaks plain HTTP, so it listens on loopback or a Unix socket alone. The probes
may listen anywhere.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from ostiary.settings.bind import read_bind, read_socket_mode
from ostiary.settings.keys import KNOWN
from ostiary.settings.model import ROLES, SIGNAL, AdminSetting, AdminToken, Bound
from policies.document import Mapping as MappingNode
from policies.document import Node
from policies.faults import Place, nearest
from policies.fields import Fields
from policies.load_parts import NAME, Context

_HASH: Final = re.compile(r"sha256:([0-9a-f]{64})")
SOCKET_MODES: Final = frozenset({0o600, 0o660})


def is_loopback(host: str) -> bool:
    """Whether a host to listen on is this machine alone. Of names only `localhost` is (RFC 6761 section 6.3)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_admin(node: Node | None, context: Context) -> AdminSetting | None:
    """The `admin:` block, None where it is absent."""
    if node is None:
        return None
    keys = Fields(node, context.faults, "admin", known=KNOWN["admin"])
    bind, probes = keys.scalar("bind"), keys.scalar("probes")
    if bind is None and probes is None:
        context.faults.add(node.place, "admin needs bind or probes", "write bind: 127.0.0.1:9901")
    bound = read_bind(bind, context) if bind else None
    if bind is not None and bound is not None and bound.path is None and not is_loopback(bound.host):
        context.faults.add(
            bind.place,
            "the admin API listens on loopback or a Unix socket alone",
            f"write bind: 127.0.0.1:{bound.port}, and probes: {bound} for /healthz, /readyz and /metrics",
        )
    if "socket_mode" in keys and (bound is None or bound.path is None):
        context.faults.add(keys.place_of("socket_mode"), "socket_mode is for a Unix socket", "write bind: unix:/path")
    tokens = _tokens(keys, context)
    if tokens and bind is None:
        context.faults.add(keys.place_of("tokens"), "tokens are for the admin API, which bind opens", "add bind: …")
    return AdminSetting(bound, _probes(keys, context), tokens, read_socket_mode(keys, SOCKET_MODES))


def _probes(keys: Fields, context: Context) -> Bound | None:
    scalar = keys.scalar("probes")
    return read_bind(scalar, context) if scalar is not None else None


def _tokens(keys: Fields, context: Context) -> tuple[AdminToken, ...]:
    found: list[AdminToken] = []
    names: dict[str, Place] = {}
    hashes: dict[str, Place] = {}
    for node in keys.nodes("tokens"):
        token = _token(node, context, names, hashes)
        if token is not None:
            found.append(token)
    return tuple(found)


def _token(node: Node, context: Context, names: dict[str, Place], hashes: dict[str, Place]) -> AdminToken | None:
    keys = Fields(node, context.faults, "an admin token", known=KNOWN["token"])
    if not isinstance(node, MappingNode) or not keys.require("name", "hash", "roles"):
        return None
    faults = context.faults
    name, digest = keys.text("name"), keys.text("hash")
    if name is not None and (not NAME.fullmatch(name) or name == SIGNAL):
        faults.add(
            keys.place_of("name"),
            f"{name!r} is no name for a token",
            f"use letters, digits, dots, dashes and underscores, and not {SIGNAL}",
        )
    if name is not None and name in names:
        faults.add(keys.place_of("name"), f"token {name!r} is already defined at {names[name]}", "rename one of them")
    matched = _HASH.fullmatch(digest) if digest is not None else None
    if digest is not None and matched is None:
        # What stands there may be the token itself: it is not repeated.
        faults.add(
            keys.place_of("hash"),
            "hash is not of the form sha256:<64 lower-case hex digits>",
            "ostiary key mint --admin NAME prints the token and its hash",
        )
    if matched is not None and matched[1] in hashes:
        faults.add(
            keys.place_of("hash"),
            f"this hash already stands at {hashes[matched[1]]}",
            "mint a token for each: ostiary key mint --admin NAME",
        )
    roles = _roles(keys, context)
    if name is None or matched is None:
        return None
    names[name], hashes[matched[1]] = keys.place_of("name"), keys.place_of("hash")
    return AdminToken(name, matched[1], roles)


def _roles(keys: Fields, context: Context) -> frozenset[str]:
    scalars = keys.texts("roles")
    for scalar in scalars:
        if scalar.text not in ROLES:
            near = nearest(scalar.text, ROLES)
            mend = f"did you mean {near!r}?" if near else f"one of {', '.join(ROLES)}"
            context.faults.add(scalar.place, f"{scalar.text!r} is no role", mend)
    return frozenset(scalar.text for scalar in scalars) & frozenset(ROLES)
