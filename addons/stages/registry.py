"""Finds the exchange of a flow and the facts of a connection.

Exchanges live exactly as long as their flow, connections until the engine says they are gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from weakref import ref

from mitmproxy.connection import Client
from mitmproxy.flow import Flow

from addons.exchange import Connection, Exchange


class Registry:
    """What the engine and the stages know in common about flows and connections."""

    def __init__(self) -> None:
        self._exchanges: dict[int, tuple[Exchange, ref[Flow]]] = {}
        """By the identity of the flow, which is looked up several times a request: what a weak dictionary does, without its
        calls. An entry goes before its number can be another flow's."""
        self._connections: dict[str, Connection] = {}

    def connected(self, client: Client, connection: Connection) -> None:
        self._connections[client.id] = connection

    def disconnected(self, client: Client) -> Connection | None:
        return self._connections.pop(client.id, None)

    def connection(self, client: Client) -> Connection:
        """Facts of a live connection; KeyError once it is gone, which refuses whatever asked."""
        return self._connections[client.id]

    def find_connection(self, client: Client) -> Connection | None:
        return self._connections.get(client.id)

    def begin(self, flow: Flow, exchange: Exchange) -> None:
        number, exchanges = id(flow), self._exchanges

        def ended(_: ref[Flow]) -> None:
            exchanges.pop(number, None)

        exchanges[number] = (exchange, ref(flow, ended))

    def exchange(self, flow: Flow) -> Exchange:
        """The exchange of a flow; KeyError for a flow that no stage has begun."""
        return self._exchanges[id(flow)][0]

    def find(self, flow: Flow) -> Exchange | None:
        known = self._exchanges.get(id(flow))
        return None if known is None else known[0]

    def live(self) -> int:
        """Connections now open."""
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._connections.values()))
