"""TLS towards token endpoints: the contexts of the fast engine's upstreams, whichever engine serves. A token is asked for over
a connection of its own, so nothing of theirs is shared: no connection, no session.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from addons.client_certificate import ClientCertificate
from addons.deriving.asking import Contexts
from ostiary.engines.fast.tls import UpstreamContexts
from ostiary.engines.mitm.dialling import TlsTerms


def contexts(extra: Path | None) -> Contexts:
    """Contexts with the system's roots and these.

    Args:
        extra: `egress.ca_file` of the settings.
    """
    upstreams = UpstreamContexts(extra)

    def of(ca_file: Path | None, roots: str, certificate: ClientCertificate | None, /) -> ssl.SSLContext:
        shown = "" if certificate is None else certificate.fingerprint
        return upstreams.of(ca_file, TlsTerms(identity=shown, roots=roots), certificate)

    return of
