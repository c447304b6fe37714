"""From the settings of a listener and its bound socket to what the stages know of it."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

from addons.authority import read_host
from addons.exchange import Listener, Reverse
from addons.refusal import Refusal
from ostiary.settings.model import ListenSetting
from ostiary.sockets import local_addresses

_LOCAL: Final = ("127.0.0.1", "::1", "localhost")


def listener_of(setting: ListenSetting, bound: socket.socket) -> Listener:
    """What the stages know of a listener.

    Args:
        setting: of the listener.
        bound: its socket: it knows the real port.
    """
    unix = setting.bind.path is not None
    return Listener(
        setting.name,
        setting.workload,
        unix=unix,
        reverse=_reverse(setting, bound) if setting.mode == "reverse" else None,
    )


def _reverse(setting: ListenSetting, bound: socket.socket) -> Reverse:
    """A reverse listener's own hosts: the address it is bound to, every local spelling of a loopback one, all of the
    machine's for a wildcard, and what `hosts:` adds.
    """
    if setting.bind.path is not None:
        return Reverse(None)
    return reverse_of(setting, *bound.getsockname()[:2])


def reverse_of(setting: ListenSetting, host: str, port: int) -> Reverse:
    """As above, for a listener that is bound to this address."""
    address = ipaddress.ip_address(host)
    own = {str(address)}
    if address.is_unspecified:
        own |= {*_LOCAL, *local_addresses()}
    elif address.is_loopback:
        own |= set(_LOCAL)
    own |= _named(setting.bind.host)
    addresses = {(name, port) for name in own} | {(name, at) for name, at in setting.hosts if at is not None}
    return Reverse(
        frozenset(addresses),
        frozenset(name for name, at in setting.hosts if at is None),
        tls=setting.tls is not None,
    )


def _named(host: str) -> set[str]:
    """A bind that is a name may be called by it."""
    try:
        return {read_host(host)}
    except Refusal:
        return set()
