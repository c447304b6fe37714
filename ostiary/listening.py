"""What a process listens on: the sockets of the settings, all of them or none."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

from addons.exchange import Listener
from ostiary.listeners import listener_of
from ostiary.settings.admin import is_loopback
from ostiary.settings.model import AdminSetting, Settings
from ostiary.sockets import BindFailed, address_of, forbidden_of, open_group, open_socket, own_of
from ostiary.store_addresses import Own


@dataclass(slots=True)
class Opened:
    """Sockets, by what they are for."""

    listeners: list[tuple[Listener, list[socket.socket]]] = field(default_factory=list)
    """Each listener with one socket for each worker; those of a Unix socket are one."""
    tls: set[str] = field(default_factory=set)
    """Names of those to which callers speak TLS."""
    admin: socket.socket | None = None
    probes: socket.socket | None = None
    paths: list[Path] = field(default_factory=list)
    """Files of Unix sockets."""

    def all(self) -> list[socket.socket]:
        found = [opened for _, group in self.listeners for opened in dict.fromkeys(group)]
        return found + [opened for opened in (self.admin, self.probes) if opened is not None]

    def own(self) -> frozenset[Own]:
        """The addresses under which the egress guard must refuse these sockets."""
        return frozenset(address for one in self.all() if (address := forbidden_of(one)) is not None)

    def addresses(self) -> dict[str, object]:
        """What the ready line tells of them."""
        told: dict[str, object] = {
            "listeners": [
                {"name": listener.name, "address": address_of(group[0])}
                | ({"mode": "reverse"} if listener.reverse is not None else {})
                | ({"tls": True} if listener.name in self.tls else {})
                for listener, group in self.listeners
            ]
        }
        if self.admin is not None:
            told["admin"] = address_of(self.admin)
        if self.probes is not None:
            told["probes"] = address_of(self.probes)
        return told

    def close_listeners(self) -> None:
        """Closes what callers connect to; the engine may have closed some of it."""
        for _, group in self.listeners:
            for opened in group:
                opened.close()

    def close(self) -> None:
        """Closes what is still open; the engine may have closed some of them, and asyncio may have removed their
        files.
        """
        for opened in self.all():
            opened.close()
        for path in self.paths:
            path.unlink(missing_ok=True)


def written(settings: Settings) -> frozenset[Own]:
    """Addresses that a process of these settings listens on, as far as they say so: what a private proxy of `exec` must
    not dial either, though another process has opened it. Resolves names, and blocks for as long as that takes.
    """
    binds = [listen.bind for listen in settings.listen]
    if settings.admin is not None:
        binds += [bind for bind in (settings.admin.bind, settings.admin.probes) if bind is not None]
    found: set[Own] = set()
    for bind in binds:
        if bind.path is not None or not bind.port:
            continue
        try:
            answer = socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError:
            continue  # nobody can be listening there
        found |= {own_of(str(entry[4][0]), bind.port) for entry in answer}
    return frozenset(found)


def open_sockets(settings: Settings, workers: int = 1) -> Opened:
    """Every socket, or none.

    Raises:
        BindFailed: names the listener.
    """
    opened = Opened()
    try:
        for listen in settings.listen:
            group = open_group(listen.name, listen.bind, listen.socket_mode, workers)
            opened.listeners.append((listener_of(listen, group[0]), group))
            if listen.tls is not None:
                opened.tls.add(listen.name)
            if listen.bind.path is not None:
                opened.paths.append(listen.bind.path)
        if settings.admin is not None:
            _open_admin(settings.admin, opened)
    except BindFailed:
        opened.close()
        raise
    return opened


def _open_admin(admin: AdminSetting, opened: Opened) -> None:
    if admin.bind is not None:
        opened.admin = open_socket("admin", admin.bind, admin.socket_mode)
        opened.paths += [admin.bind.path] if admin.bind.path is not None else []
        # The settings have judged what is written; what `localhost` stands for is the machine's to say.
        if admin.bind.path is None and not is_loopback(opened.admin.getsockname()[0]):
            raise BindFailed(f"listener admin: {admin.bind} is no loopback address here")
    if admin.probes is not None:
        opened.probes = open_socket("probes", admin.probes)
        opened.paths += [admin.probes.path] if admin.probes.path is not None else []
