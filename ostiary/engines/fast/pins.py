"""Pinned keys: looked for while the handshake goes on, before anything of ours that answers the upstream's certificate is
written.

`ssl` has no callback of verification. But what a handshake writes lies in memory until the call that made it returns, and
by then the chain is verified: judged here, a handshake that proves none of the pins ends with our certificate, and the
proof that we have its key, unsent (RFC 8446 section 4.4; RFC 5246 section 7.3). What was sent is a ClientHello.
"""

from __future__ import annotations

import ssl
import sys
from typing import Any, Final, cast

from addons.client_certificate import pinned_der
from ostiary.engines.fast.records import Records

DER: Final = 2
"""`_ssl.ENCODING_DER`."""


class NotPinned(ssl.SSLError):
    """The verified chain has none of the pinned keys."""


class PinningContext(ssl.SSLContext):
    """A context of clients whose handshakes fail unless a certificate of the verified chain has one of these keys. It
    offers no session: a resumed handshake shows no chain.
    """

    pins: frozenset[bytes] = frozenset()
    """SHA-256 of SubjectPublicKeyInfo. None of them: nothing is good."""

    @classmethod
    def of(cls, pins: frozenset[bytes]) -> PinningContext:
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context.pins = pins
        return context


class PinnedRecords(Records):
    """A TLS session whose handshake ends where no pin is proven, for contexts of `PinningContext`."""

    proven = False
    """Whether a pinned key was found."""

    def do_handshake(self) -> None:
        """One step. Raises NotPinned; else as `ssl.SSLObject` does."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._judge(done=False)
            raise
        self._judge(done=True)

    def _judge(self, *, done: bool) -> None:
        if self.proven:
            return
        chain = verified_chain(self)
        if chain:
            self.proven = pinned_der(chain, cast("PinningContext", self.context).pins)
        if not self.proven and (chain or done):
            raise NotPinned("no pinned key")


def verified_chain(session: ssl.SSLObject) -> list[bytes]:
    """The chain that a whole handshake has verified, DER; empty where it has not come to that yet."""
    if sys.version_info >= (3, 13):
        return list(session.get_verified_chain() or ())
    return verified_natively(session)


def verified_natively(session: ssl.SSLObject) -> list[bytes]:
    """The verified chain where Python 3.12 has it; it got a name of its own later. DER."""
    native: Any = session._sslobj  # type: ignore[attr-defined]  # noqa: SLF001 - 3.12 has no public way to it
    return [cert.public_bytes(DER) for cert in native.get_verified_chain() or ()]
