"""What a granted request asks of any engine: which upstream connections it may share, and how long each step may take."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from addons.client_certificate import Shown
from addons.credentials import Openings
from addons.egress import Destination
from addons.exchange import Exchange, WorkloadIdentity
from addons.head import Fields
from addons.injection import plan_for
from addons.parts import Deadlines
from addons.refusal import Code, Refusal
from addons.trailers import kept_request_trailers
from ostiary.engines.mitm.dialling import Bound, PoolKey, TlsTerms
from policies import Grant
from policies.tls import TlsSpec

MAX_BOUNDS: Final = 4096
REJECTED: Final = int(HTTPStatus.UNAUTHORIZED)


def credential_rejected(exchange: Exchange) -> bool:
    """Whether a 401 is for the `rejected` hook to look at: the credential was ours, and it is the first one."""
    return (
        not exchange.rejected
        and exchange.refused is None
        and not exchange.settled
        and exchange.find(Openings) is not None
    )


ENDLESS_S: Final = 365 * 86_400.0
"""In the place of a deadline that is not set."""
SLACK_S: Final = 30.0
"""By how much a connection's own deadline is longer than those of its requests, which must come first."""


EVERYBODY: Final = ""
"""In the place of the workload where a route lets them share connections. No workload has this name."""


def longest_silence_s(times: Deadlines) -> float:
    """Seconds without any byte after which a connection with such requests is certainly forgotten."""
    if not times.idle_s or not times.first_byte_s:
        return ENDLESS_S
    return max(times.idle_s, times.first_byte_s) + SLACK_S


def bound_of(exchange: Exchange, times: Deadlines) -> Bound:
    """What a new upstream connection for this request is for."""
    destination, route = exchange.ask(Destination), exchange.ask(Grant).route
    shown = None if route.tls is None else exchange.find(Shown)
    shared = route.egress is not None and route.egress.share_connections
    key = PoolKey(
        EVERYBODY if shared else exchange.ask(WorkloadIdentity).workload,
        destination.authority,
        destination.addresses,
        route.ca_file,
        exchange.upgrade,
        route.http2,
        None if route.tls is None else _terms(route.tls, shown),
    )
    return Bound(destination, key, times.connect_s, None if shown is None else shown.certificate)


def _terms(tls: TlsSpec, shown: Shown | None) -> TlsTerms:
    """What TLS is asked for.

    Raises:
        Refusal: `internal`: the route shows a certificate, and no stage has brought one.
    """
    if tls.client_cert is not None and shown is None:
        raise Refusal(Code.INTERNAL, "A connection was asked for without the client certificate that it shows.")
    return TlsTerms("" if shown is None else shown.identity, tls.pins, tls.roots)


class Bounds:
    """What connections are for, remembered for as long as their vetted destination is what it is."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str, str, bool], Bound] = {}

    def of(self, exchange: Exchange, times: Deadlines) -> Bound:
        """As `bound_of`."""
        destination, grant = exchange.ask(Destination), exchange.ask(Grant)
        key = (id(destination), grant.workload, grant.route.name, exchange.upgrade)
        known = self._known.get(key)
        # Identity is asked anew: a reload vets anew, and an id may be used again.
        if known is None or known.destination is not destination:
            if grant.route.tls is not None and grant.route.tls.client_cert is not None:
                return bound_of(exchange, times)  # the certificate is the request's own, not the route's
            if len(self._known) >= MAX_BOUNDS:
                self._known.clear()
            known = self._known[key] = bound_of(exchange, times)
        return known


def times_of(exchange: Exchange, default: Deadlines) -> Deadlines:
    """The route's deadlines over those of the process."""
    route = exchange.ask(Grant).route.timeouts
    if route.connect_s is route.first_byte_s is route.idle_s is route.total_s is None:
        return default
    return Deadlines(
        default.connect_s if route.connect_s is None else route.connect_s,
        default.first_byte_s if route.first_byte_s is None else route.first_byte_s,
        default.idle_s if route.idle_s is None else route.idle_s,
        default.total_s if route.total_s is None else route.total_s,
    )


def request_trailers(exchange: Exchange | None, fields: Fields) -> Fields:
    """The caller's trailers that may travel on this route."""
    if not fields:
        return ()
    grant = None if exchange is None else exchange.find(Grant)
    return kept_request_trailers(fields, frozenset() if grant is None else plan_for(grant.route).strip_headers)
