"""TLS towards callers with a listener's own certificate (`listen: tls`), the same for both engines.

The files are read again at each reload, and whenever they are seen to have changed; connections that are open keep what
they were opened with. What cannot be read or does not fit changes nothing but the log: the last good certificate serves.
A context is replaced with its certificate, and each hour, as those of intercepted hosts are (`engines/fast/tls.py`).

Protocols: HTTP/1.1 on forward listeners. On reverse listeners HTTP/2 too: first where mitmproxy's layers serve the
connection anyway, else second, so that a caller that speaks both is served by the fast lane.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ostiary.certificate import CertificateFault, ListenerCertificate, read_certificate
from ostiary.engines.fast.tls import CONTEXT_LIFE_S, hardened, load_pem
from ostiary.settings.model import TlsSetting
from ostiary.tls_rules import ALPN_HTTP1, ALPN_HTTP2

_log = logging.getLogger("ostiary.tls")

LOOK_S: Final = 10.0
"""How often the files are looked at: a change is in use this long after it was made, without a signal."""

type _Stamp = tuple[tuple[int, int, int], ...] | None


@dataclass(frozen=True, slots=True)
class _Serving:
    """A certificate, and the contexts made of it, by what they offer."""

    certificate: ListenerCertificate
    contexts: dict[tuple[bytes, ...], tuple[float, ssl.SSLContext]] = field(default_factory=dict)


class ListenerTls:
    """Server-side contexts of one listener.

    Args:
        name: of the listener, for messages.
        files: its certificate and key.
        now_s: monotonic seconds.

    Raises:
        CertificateFault: the files cannot serve.
    """

    def __init__(self, name: str, files: TlsSetting, now_s: Callable[[], float]) -> None:
        self.name = name
        self._files = files
        self._now_s = now_s
        self._stamp = self._stamped()
        self._told: tuple[_Stamp, str] | None = None
        try:
            found = _read(files)
        except CertificateFault as fault:
            raise CertificateFault(fault.about, f"listener {name}: {fault.message}", fault.mend) from None
        self._serving = _Serving(found)
        self._tell(found)

    def context(self, protocols: Sequence[bytes]) -> ssl.SSLContext:
        """The context of now.

        Args:
            protocols: what is offered, most wanted first.
        """
        # Another thread may read the files meanwhile: what is made here belongs to the certificate it was made of.
        serving = self._serving
        offered, now_s = tuple(protocols), self._now_s()
        known = serving.contexts.get(offered)
        if known is not None and now_s - known[0] < CONTEXT_LIFE_S:
            return known[1]
        context = hardened(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        load_pem(context, serving.certificate.pem)
        context.set_alpn_protocols([one.decode() for one in offered])
        serving.contexts[offered] = (now_s, context)
        return context

    def read_again(self, *, quietly: bool = False) -> None:
        """Reads the files. Blocks for as long as the disk takes: for a thread. Never raises.

        Args:
            quietly: what is wrong is not told again where it was told of these very files.
        """
        stamp = self._stamped()
        try:
            found = _read(self._files)
        except CertificateFault as fault:
            if not quietly or (stamp, fault.message) != self._told:
                _log.error("listener %s keeps the certificate it has: %s (%s)", self.name, fault.message, fault.mend)
            self._told = stamp, fault.message
            return
        self._stamp = stamp
        if found.pem == self._serving.certificate.pem:
            return
        self._serving = _Serving(found)
        _log.info("listener %s has a new certificate, good until %s", self.name, found.leaf.not_valid_after_utc)
        self._tell(found)

    def changed(self) -> bool:
        """Whether the files are others than those that serve: what failed may have been no fault of theirs, such as
        descriptors that had run out. Blocks, as above.
        """
        return self._stamped() != self._stamp

    def _stamped(self) -> _Stamp:
        try:
            found = [path.stat() for path in (self._files.cert, self._files.key)]
        except OSError:
            return None
        return tuple((one.st_mtime_ns, one.st_ino, one.st_size) for one in found)

    def _tell(self, found: ListenerCertificate) -> None:
        now = dt.datetime.now(dt.UTC)
        if found.expired(now) or found.too_early(now):
            _log.warning(
                "listener %s: its certificate is %s; callers that verify it will not connect",
                self.name,
                "expired" if found.expired(now) else "not valid yet",
            )


def _read(files: TlsSetting) -> ListenerCertificate:
    """Reads the files and has OpenSSL judge them too, so that what it refuses never serves.

    Raises:
        CertificateFault: they cannot serve.
    """
    found = read_certificate(files.cert, files.key)
    try:
        load_pem(hardened(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)), found.pem)
    except ssl.SSLError as error:
        raise CertificateFault(
            "cert",
            f"OpenSSL refuses {files.cert} ({error.reason or 'no reason'})",
            "use an EC key, or RSA of 2048 bits",
        ) from None
    except OSError as error:
        raise CertificateFault("cert", f"{files.cert} cannot be used now: {error.strerror}", "send SIGHUP") from None
    return found


class Certificates:
    """Those of all TLS listeners of a process."""

    def __init__(self, listeners: Sequence[ListenerTls]) -> None:
        self._listeners = tuple(listeners)
        self._looking: asyncio.Task[None] | None = None

    async def read_again(self) -> None:
        """At a reload."""
        for one in self._listeners:
            await asyncio.to_thread(one.read_again)

    def keep_looking(self) -> None:
        """Begins to look for changed files, where there are any."""
        if self._listeners and self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            for one in self._listeners:
                if await asyncio.to_thread(one.changed):
                    await asyncio.to_thread(one.read_again, quietly=True)


def protocols(*, reverse: bool, http2_first: bool) -> tuple[bytes, ...]:
    """What is offered by ALPN.

    Args:
        reverse: whether the listener is one.
        http2_first: whether mitmproxy's layers serve it in any case.
    """
    if not reverse:
        return (ALPN_HTTP1,)
    return (ALPN_HTTP2, ALPN_HTTP1) if http2_first else (ALPN_HTTP1, ALPN_HTTP2)
