"""What a granted request asks of any engine: which upstream connections it may share, and how long each step may take."""

from __future__ import annotations

from addons.egress import Destination
from addons.exchange import Exchange, WorkloadIdentity
from addons.parts import Deadlines
from ostiary.engines.mitm.dialling import Bound, PoolKey
from policies import Grant


def bound_of(exchange: Exchange, times: Deadlines) -> Bound:
    """What a new upstream connection for this request is for."""
    destination = exchange.ask(Destination)
    key = PoolKey(
        exchange.ask(WorkloadIdentity).workload,
        destination.authority,
        destination.addresses,
        exchange.ask(Grant).route.ca_file,
        exchange.upgrade,
    )
    return Bound(destination, key, times.connect_s)


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
