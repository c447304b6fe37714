"""TLS records of one connection, read and written without what `ssl.SSLObject` does around each call.

An event loop reads until `ssl` says that it wants more. OpenSSL says so by an error that costs more to build than most
records cost to decrypt; here it is said without asking, where nothing is there to be read: no byte of a record, no
plaintext left over, and not the end of the connection.
"""

from __future__ import annotations

import ssl
from collections.abc import Buffer, Callable
from typing import Any


class Records(ssl.SSLObject):
    """A TLS session over memory buffers, for `ssl.SSLContext.sslobject_class`."""

    _incoming: ssl.MemoryBIO
    _take: Callable[..., Any]
    _left: Callable[[], int]

    @classmethod
    def _create(cls, incoming: ssl.MemoryBIO, *arguments: Any, **options: Any) -> Records:
        made: Records = super()._create(incoming, *arguments, **options)  # type: ignore[misc]  # the constructor that `wrap_bio` calls; typeshed does not know it
        native = made._sslobj  # type: ignore[attr-defined]  # as above
        made._incoming, made._take, made._left = incoming, native.read, native.pending
        made.write = native.write  # type: ignore[method-assign]  # the same, with one call less
        return made

    def read(self, len: int = 1024, buffer: Buffer | None = None) -> Any:  # noqa: A002 - as `ssl` names it
        """Decrypted bytes. Raises ssl.SSLWantReadError: there are none yet."""
        incoming = self._incoming
        if not incoming.pending and not incoming.eof and not self._left():
            raise ssl.SSLWantReadError
        return self._take(len) if buffer is None else self._take(len, buffer)
