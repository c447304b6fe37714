"""TLS towards token endpoints: the contexts of the fast engine's upstreams, whichever engine serves. A token is asked for over
a connection of its own, so nothing of theirs is shared: no connection, no session.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Final

from addons.client_certificate import ClientCertificate
from addons.deriving.asking import Contexts
from ostiary.engines.contexts import UNUSED_S
from ostiary.engines.fast.tls import UpstreamContexts
from ostiary.engines.mitm.dialling import TlsTerms

SPARE_S: Final = 1.0
"""A timer may be early by its clock's grain."""


def contexts(extra: Path | None) -> Contexts:
    """Contexts with the system's roots and these.

    Args:
        extra: `egress.ca_file` of the settings.
    """
    upstreams = UpstreamContexts(extra)

    def of(ca_file: Path | None, roots: str, certificate: ClientCertificate | None, /) -> ssl.SSLContext:
        if certificate is None:
            return upstreams.of(ca_file, TlsTerms(roots=roots))
        # No engine sweeps these: each use sees to it that the key goes, unless it is used again.
        asyncio.get_running_loop().call_later(UNUSED_S + SPARE_S, upstreams.sweep)
        return upstreams.of(ca_file, TlsTerms(identity=certificate.fingerprint, roots=roots), certificate)

    return of
