"""A relay in front of the proxy that counts connections and notes what clients say before TLS begins."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator

_CONNECT = re.compile(rb"CONNECT (\S+) HTTP/1.1\r\n(.*?)\r\n\r\n", re.DOTALL)
AT_ONCE, AFTER_407, ON_THE_NEXT = [[True]], [[False, True]], [[False], [True]]
"""The first connections of a client: whether each CONNECT on one shows the key."""
NOTED = 8192
"""Bytes kept of each connection; longer than any CONNECT with its retry."""


class Relay:
    """Listens on a free loopback port and passes bytes on to `address` (`host:port`)."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.target = (host, int(port))
        self.noted: list[bytearray] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def connects(self) -> list[list[bool]]:
        """For each connection that said CONNECT: whether each CONNECT on it showed a key."""
        found = [
            [b"proxy-authorization:" in match[2].lower() for match in _CONNECT.finditer(bytes(noted))]
            for noted in self.noted
        ]
        return [one for one in found if one]

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self.target)
            except OSError:
                return
            noted = bytearray()
            self.noted.append(noted)
            threading.Thread(target=_pump, args=(near, far, noted), daemon=True).start()
            threading.Thread(target=_pump, args=(far, near, None), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, noted: bytearray | None) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if noted is not None and len(noted) < NOTED:
                noted += data
            sink.sendall(data)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relaying(address: str) -> Iterator[Relay]:
    relay = Relay(address)
    try:
        yield relay
    finally:
        relay.stop()
