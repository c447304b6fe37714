"""Starts the listeners of a process: the API on the one, the probes alone on the other."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from addons.clock import Clock
from addons.identity.budget import FailureBudget
from ostiary.admin.control import Control
from ostiary.admin.judge import Api
from ostiary.admin.pages import ANY_HOST, loopback
from ostiary.admin.server import AdminServer
from ostiary.admin.table import OPERATIONS
from ostiary.admin.tokens import Tokens
from ostiary.settings.model import AdminToken


@dataclass(frozen=True, slots=True)
class Listeners:
    """What was started."""

    servers: tuple[AdminServer, ...]

    async def end(self) -> None:
        for server in self.servers:
            await server.end()


def start_listeners(
    admin: socket.socket | None,
    probes: socket.socket | None,
    tokens: Sequence[AdminToken],
    control: Control,
    clock: Clock,
) -> Listeners:
    """Serves on bound sockets.

    Args:
        admin: for the API, on loopback or a Unix socket.
        probes: for the probes alone.
        tokens: who may call the API.
        control: what it works on.
        clock: for the budget of failed tokens.
    """
    servers: list[AdminServer] = []
    if admin is not None:
        pages = ANY_HOST if admin.family == socket.AF_UNIX else loopback(admin.getsockname()[:2])
        api = Api("admin", OPERATIONS, pages, Tokens(tokens), control)
        servers.append(_serve(api, admin, clock))
    if probes is not None:
        api = Api("probes", tuple(one for one in OPERATIONS if one.probe), ANY_HOST, None, control)
        servers.append(_serve(api, probes, clock))
    return Listeners(tuple(servers))


def _serve(api: Api, bound: socket.socket, clock: Clock) -> AdminServer:
    server = AdminServer(api, FailureBudget(clock))
    server.serve(bound)
    return server
