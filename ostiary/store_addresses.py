"""What may never be dialled for a caller: our own sockets, and Vault and the state store, by name and by address.

Names move. The addresses of the stores are looked up again every few seconds, and those that Vault's connections really
lead to are added; an address that is no longer told stays refused for an hour, for whoever held it may still serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections.abc import Callable, Collection
from typing import Final
from urllib.parse import urlsplit

from addons.egress import Forbidden
from ostiary.settings.model import Settings
from ostiary.sockets import forbidden_of, local_addresses

LOOKUP_S: Final = 5.0
KEPT_S: Final = 3600.0
MOST: Final = 1024
"""Addresses of stores remembered; the one that was told longest ago goes first."""
FIRST_DEADLINE_S: Final = 2.0

type Own = tuple[str | None, int]
"""An address that we listen on: host (None: every one of this machine) and port."""
type Sockets = Collection[tuple[str, int]]


class OwnListener(Exception):
    """A store's address is one of our own listeners: the process would ask itself."""


class StoreAddresses:
    """Keeps a `Forbidden` in step with where the stores are.

    Args:
        settings: name the stores.
        opened: our own sockets.
        peers: addresses that connections to the store lead to.
        clock: monotonic seconds.
        own: addresses of sockets that another process has opened for us.
    """

    def __init__(
        self,
        settings: Settings,
        opened: Collection[socket.socket] = (),
        peers: Callable[[], Sockets] = tuple,
        clock: Callable[[], float] = time.monotonic,
        *,
        own: Collection[Own] = (),
    ) -> None:
        self._stores = stores_of(settings)
        self._peers = peers
        self._clock = clock
        self._own = frozenset(own).union(address for one in opened if (address := forbidden_of(one)) is not None)
        self._told: dict[tuple[str, int], float] = {}
        self._keeper: asyncio.Task[None] | None = None
        hosts = frozenset((host, port) for _, host, port in self._stores)
        self.forbidden = Forbidden(self._own, hosts, local_addresses())

    async def refuse_own(self) -> None:
        """To be asked before anything is sent to a store: a login must not come in where callers do.

        Raises:
            OwnListener: a store's address is a listener of ours, or a name of one.
        """
        ours = Forbidden(self._own, local=self.forbidden.local)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_DEADLINE_S):
                for what, host, port in self._stores:
                    if any(ours.covers(ipaddress.ip_address(text), port) for text in await _addresses(host, port)):
                        raise OwnListener(f"the {what} address {host}:{port} is one of our own listeners")

    async def start(self) -> None:
        """Looks the names up, and goes on doing so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_DEADLINE_S):
                await self.look_up()
        if self._stores:
            self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOKUP_S)
            # One at a time, however slow the resolver: it must not fill the threads that others resolve in.
            await self.look_up()

    async def look_up(self) -> None:
        """Asks for every store's addresses now. What cannot be resolved keeps what was known of it."""
        for address in self._peers():
            self._tell(address)
        for _, host, port in self._stores:
            for text in await _addresses(host, port):
                self._tell((text, port))
        self._apply()

    def _tell(self, address: tuple[str, int]) -> None:
        self._told.pop(address, None)
        self._told[address] = self._clock()

    def _apply(self) -> None:
        now_s = self._clock()
        for address in [known for known, told_s in self._told.items() if now_s - told_s > KEPT_S]:
            del self._told[address]
        while len(self._told) > MOST:
            del self._told[next(iter(self._told))]
        sockets: set[tuple[str | None, int]] = set(self._own)
        for text, port in self._told:
            there = ipaddress.ip_address(text)
            sockets.add((text, port))
            if there.is_loopback or there.is_unspecified or text in self.forbidden.local:
                # A store on this machine may listen on every local address.
                sockets.add((None, port))
        self.forbidden.renew(frozenset(sockets))


async def _addresses(host: str, port: int) -> set[str]:
    try:
        return {str(ipaddress.ip_address(host))}
    except ValueError:
        pass
    try:
        answer = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {str(entry[4][0]).partition("%")[0] for entry in answer}


def stores_of(settings: Settings) -> list[tuple[str, str, int]]:
    """What the stores are, and where: host and port."""
    found: list[tuple[str, str, int]] = []
    for url in settings.vault.addresses if settings.vault is not None else ():
        split = urlsplit(url)
        found.append(("Vault", split.hostname or "", split.port or (443 if split.scheme == "https" else 80)))
    if settings.state is not None and settings.state.host:
        found.append(("state", settings.state.host, settings.state.port))
    return found
