"""TLS sessions with upstreams, kept so that the next connection of the same kind shakes hands at less cost (RFC 8446
section 2.2).

Rules:
- A session is used by what may share a connection, and by nothing else: the same `PoolKey`, which names workload,
  authority, addresses and roots. A resumed handshake shows no certificate: what was proven in the first one is all that
  is proven, and it was proven for this key.
- For the same reason a session ages from the handshake that proved the certificate, through however many resumptions:
  a certificate that has been withdrawn or has run out serves no longer than `LIFE_S` past that.
- A session is used once (RFC 8446 appendix C.4). One whose handshake fails takes the others of its key with it, so that
  the next handshake is a whole one.
- Bounded in number, by key and in all.
"""

from __future__ import annotations

import ssl
import sys
from collections import OrderedDict, deque
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, final

from ostiary.engines.mitm.dialling import PoolKey

LIFE_S: Final = 600.0
MAX_OF_KEY: Final = 8
MAX_KEYS: Final = 512
LEAKS: Final = sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1)
"""Whether this Python loses some six kilobytes each time a session is read (github.com/python/cpython/issues/116810): then
none is, and each connection to an upstream begins with a whole handshake."""


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Resumable:
    """A session that may be offered once. It holds keys: nothing prints it."""

    session: ssl.SSLSession
    proven_s: float
    """When the whole handshake was that it goes back to, monotonic."""


class Sessions:
    """The sessions of one process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[PoolKey, deque[Resumable]] = OrderedDict()

    def take(self, key: PoolKey, now_s: float) -> Resumable | None:
        """The newest session of this kind, if there is one; it is not kept any longer."""
        kept = self._kept.get(key)
        while kept:
            found = kept.pop()
            if not kept:
                del self._kept[key]
            if now_s - found.proven_s < LIFE_S:
                return found
        return None

    def keep(self, key: PoolKey, one: Resumable) -> None:
        """Keeps a session of a connection that was proven."""
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = deque(maxlen=MAX_OF_KEY)
            if len(self._kept) > MAX_KEYS:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        kept.append(one)

    def forget(self, key: PoolKey) -> None:
        """None of this kind is offered again."""
        self._kept.pop(key, None)

    def sweep(self, now_s: float) -> None:
        """Drops what has aged, where it was kept longest ago."""
        while self._kept:
            key, kept = next(iter(self._kept.items()))
            if now_s - kept[-1].proven_s < LIFE_S:
                return
            del self._kept[key]

    def close(self) -> None:
        self._kept.clear()

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())


class Offer:
    """What one dial offers. It is emptied by the handshake: the context of a connection lives as long as that."""

    __slots__ = ("_session",)

    def __init__(self, one: Resumable | None) -> None:
        self._session = one.session if one is not None else None

    def take(self) -> ssl.SSLSession | None:
        session, self._session = self._session, None
        return session

    def __repr__(self) -> str:
        return "Offer()"


_offered: ContextVar[Offer | None] = ContextVar("offered", default=None)
"""Of the connection that is dialled in this context. Event loops begin TLS of a connection in the context that it was
made in, and have no parameter for a session."""


def offer(one: Resumable | None) -> None:
    """The next connection that is dialled in this context offers this session, or none."""
    _offered.set(Offer(one))


class ResumingContext(ssl.SSLContext):
    """A context of clients whose handshakes offer what `offer` was given."""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        offered = _offered.get()
        if session is None and offered is not None:
            session = offered.take()
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def session_of(connection: object, proven_s: float) -> Resumable | None:
    """The session that a connection's upstream has given, if it may be resumed.

    Args:
        connection: the transport's `ssl_object`; None where there is no TLS.
        proven_s: when its certificate was proven.
    """
    session = None if LEAKS else getattr(connection, "session", None)
    if session is None or not (session.has_ticket or session.id):
        return None
    return Resumable(session, proven_s)
