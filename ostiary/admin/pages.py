"""Keeps web pages out: a browser sends whatever a page asks it to send to a local port, and only these fields tell.

- Host: with DNS rebinding a page's own name leads to our address. Over TCP the field must name this listener. A Unix
  socket is out of every browser's reach, and clients put anything there.
- Origin: sent with every request of a page to another site, and with each that changes something. Only our own counts.
- Sec-Fetch-Site: what the browser itself says of the page. `same-site` is refused like `cross-site`: a site is blind to
  ports, so a page of any other local server would pass for ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ostiary.admin.problems import Kind, Problem

_OWN_SITES: Final = frozenset({"same-origin", "none"})
_LOCAL: Final = ("127.0.0.1", "[::1]", "localhost")


@dataclass(frozen=True, slots=True)
class Pages:
    """What one listener accepts."""

    hosts: frozenset[str] | None
    """Values of Host, lower case; None: any."""

    def judge(self, hosts: Sequence[str], origins: Sequence[str], sites: Sequence[str]) -> Problem | None:
        """The problem with these fields of a request."""
        if self.hosts is not None and (len(hosts) != 1 or hosts[0].lower() not in self.hosts):
            return Problem(
                Kind.HOST_MISMATCH, "Call the listener by the address that it is bound to, 127.0.0.1 or localhost."
            )
        if any(not self._own(origin) for origin in origins) or any(site.lower() not in _OWN_SITES for site in sites):
            return Problem(Kind.CROSS_SITE, "The request says that a page of another site has sent it.")
        return None

    def _own(self, origin: str) -> bool:
        scheme, _, host = origin.lower().partition("://")
        return self.hosts is not None and scheme == "http" and host in self.hosts


ANY_HOST: Final = Pages(None)
"""For a Unix socket, and for the probes, which are called by whatever name a service has."""


def loopback(address: tuple[str, int]) -> Pages:
    """For a listener on a loopback address."""
    host, port = address
    own = f"[{host}]" if ":" in host else host
    # A client leaves the default port of http out (RFC 9110 section 7.2).
    return Pages(
        frozenset(
            name + suffix for name in (own, *_LOCAL) for suffix in ((f":{port}", "") if port == 80 else (f":{port}",))
        )
    )
