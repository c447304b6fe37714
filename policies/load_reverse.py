"""Reads `listener:` and `upstream:` of a route: by which reverse listeners it is reached, and where they lead.

A caller of a reverse listener names no upstream, so the route must: by `upstream:`, or by the one exact host of its
`match`. Where both stand they must agree, so that a route never sends a credential to a host that its match does not
show. A route whose match names no host is reached by its listeners alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from policies.document import Scalar
from policies.faults import Faults
from policies.fields import Fields
from policies.load_parts import NAME, Context, read_host
from policies.model import HostPattern, UpstreamSpec

_ORIGIN: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[^\]/?#@\s]+\]|[^\[\]/?#@:\s]+)(?::(?P<port>[0-9]{1,5}))?/?"
)


@dataclass(frozen=True, slots=True)
class Reach:
    """By which way a route is reached, and under which host and port."""

    hosts: tuple[HostPattern, ...]
    port: int
    listeners: tuple[str, ...] = ()
    upstream: UpstreamSpec | None = None
    forward: bool = True


def read_reach(name: str, keys: Fields, match: Fields, hosts: tuple[HostPattern, ...], context: Context) -> Reach:
    """The ways to a route.

    Args:
        name: of the route.
        keys: of the route.
        match: its `match`.
        hosts: those of `match`, as far as they could be read.
        context: where faults go.
    """
    faults = context.faults
    port = match.integer("port", 443, low=1, high=65535) or 443
    scalar = keys.scalar("upstream")
    upstream = read_upstream(scalar, faults) if scalar is not None else None
    if "listener" not in keys:
        match.require("host")
        if scalar is not None:
            faults.add(
                keys.place_of("upstream"),
                f"route {name} has an upstream and no listener",
                "add listener: NAME of a listener with mode: reverse; through a forward listener the caller names the host",
            )
        return Reach(hosts, port)
    listeners = _names(keys)
    if "host" not in match:
        if scalar is None:
            faults.add(
                keys.place_of("listener"),
                f"route {name} says neither host nor upstream: nothing says where its listener leads",
                'add upstream: "https://api.example.com" or match: {host: api.example.com}',
            )
        if "port" in match:
            faults.add(match.place_of("port"), "a port without a host means nothing", "write the port in upstream")
        if upstream is None:
            return Reach(hosts, port, listeners)
        return Reach((HostPattern(upstream.host),), upstream.port, listeners, upstream, forward=False)
    if scalar is None:
        return Reach(hosts, port, listeners, _implied(name, keys, hosts, port, faults))
    if upstream is not None and (upstream.port != port or HostPattern(upstream.host) not in hosts):
        faults.add(
            keys.place_of("upstream"),
            f"upstream of route {name} is not among the hosts of its match, with their port",
            "name it there too, or leave host out: then the route is reached by its listener alone",
        )
    return Reach(hosts, port, listeners, upstream)


def _names(keys: Fields) -> tuple[str, ...]:
    found: list[str] = []
    for scalar in keys.texts("listener"):
        if NAME.fullmatch(scalar.text):
            found.append(scalar.text)
        else:
            keys.faults.add(
                scalar.place, f"{scalar.text!r} is no name of a listener", "write the name it has under listen"
            )
    return tuple(dict.fromkeys(found))


def _implied(name: str, keys: Fields, hosts: tuple[HostPattern, ...], port: int, faults: Faults) -> UpstreamSpec | None:
    if len(hosts) == 1 and not hosts[0].wildcard:
        return UpstreamSpec(hosts[0].text, port)
    if hosts:
        faults.add(
            keys.place_of("listener"),
            f"route {name} matches more than one host: its listener leads to which?",
            f'add upstream: "https://{hosts[0].text.removeprefix("*.")}"',
        )
    return None


def read_upstream(scalar: Scalar, faults: Faults) -> UpstreamSpec | None:
    """An origin: `https://host[:port]` or `http://host[:port]`."""
    found = _ORIGIN.fullmatch(scalar.text)
    port = int(found["port"] or (443 if found["scheme"] == "https" else 80)) if found is not None else 0
    if found is None or not 0 < port < 65536:
        faults.add(
            scalar.place,
            f"{scalar.text!r} is no origin",
            "write https://host or http://host:port, without a path: the caller's own path is what leaves",
        )
        return None
    host = read_host(Scalar(found["host"], scalar.place), faults)
    if host is None:
        return None
    if host.wildcard:
        faults.add(scalar.place, f"{scalar.text!r} names no one host", "an upstream is one host, without a wildcard")
        return None
    return UpstreamSpec(host.text, port, cleartext=found["scheme"] == "http")
