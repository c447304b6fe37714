"""TLS in front of a server that has none, noting what passes towards it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator


class Front:
    """Listens on a free loopback port and passes what it decrypts on to `port`."""

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self.raw = bytearray()
        self._context, self._target = context, ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            near = self._context.wrap_socket(sock, server_side=True)
            far = socket.create_connection(self._target)
        except OSError:
            sock.close()
            return
        threading.Thread(target=self._pump, args=(far, near, None), daemon=True).start()
        self._pump(near, far, self.raw)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, noted: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if noted is not None:
                    noted += data
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def fronting(context: ssl.SSLContext, port: int) -> Iterator[Front]:
    front = Front(context, port)
    try:
        yield front
    finally:
        front.stop()
