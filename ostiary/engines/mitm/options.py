"""The options of mitmproxy that Ostiary forces, and the snapshot its layers read.

mitmproxy copies an option at every read, which is a fifteenth of a request's cost, so layers get a frozen snapshot
instead of the live object. A start with an option that says otherwise is refused: each of these defaults has been a way
around the hooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from mitmproxy.options import Options

FORCED: Final[dict[str, Any]] = {
    "onboarding": False,  # answers for mitm.it inside the proxy
    "rawtcp": False,  # relays anything that is no HTTP
    "http3": False,
    "ssl_insecure": False,
    "validate_inbound_headers": True,
    "ignore_hosts": [],
    "allow_hosts": [],
    "tcp_hosts": [],
    "udp_hosts": [],
    "connection_strategy": "lazy",  # eager dials before any policy
    "upstream_cert": False,  # would dial to copy a certificate
    "scripts": [],
    "store_streamed_bodies": False,
    "stream_large_bodies": None,  # decides by size, after the hooks
    "body_size_limit": None,  # answers for itself, before streaming can be set
    "websocket": False,
    "request_client_cert": False,  # accepts any certificate
    "save_stream_file": None,
    "server": False,  # listeners are ours
}


class ForbiddenOption(ValueError):
    """An option stands against what Ostiary forces."""


def force(options: Options) -> None:
    """Sets every forced option that this build of mitmproxy knows."""
    options.update(**{name: value for name, value in FORCED.items() if name in options})


def check(options: Options) -> None:
    """Refuses a contrary option.

    Raises:
        ForbiddenOption: names the option.
    """
    for name, wanted in FORCED.items():
        if name in options and getattr(options, name) != wanted:
            raise ForbiddenOption(f"mitmproxy option {name} must be {wanted!r}: remove what sets it")
    for name in options.keys():  # noqa: SIM118 - Options is no mapping
        if name.startswith("emudhra") and getattr(options, name):
            raise ForbiddenOption(f"mitmproxy option {name} trusts a compromised authority and must stay off")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What mitmproxy's layers read, as plain attributes."""

    tcp_timeout: int
    validate_inbound_headers: bool = True
    normalize_outbound_headers: bool = True
    websocket: bool = False
    rawtcp: bool = False
    http2: bool = True
    http2_ping_keepalive: int = 58
    connection_strategy: str = "lazy"
    keep_host_header: bool = False
    store_streamed_bodies: bool = False
    stream_large_bodies: str | None = None
    body_size_limit: str | None = None
    proxy_debug: bool = False
    ssl_insecure: bool = False


def snapshot(options: Options, *, idle_s: float) -> EngineOptions:
    """The snapshot for layers.

    Args:
        options: forced and checked.
        idle_s: seconds without any byte after which a connection is closed.
    """
    check(options)
    return EngineOptions(tcp_timeout=max(1, round(idle_s)))
