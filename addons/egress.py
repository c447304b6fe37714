"""The egress guard: which addresses may be dialled, and the one place where names become addresses.

Rules:
- A name is resolved once; every address it gave is vetted; exactly a vetted one is dialled. Nothing resolves again
  behind this (G22).
- Addresses inside networks are refused unless `egress.allow` of the process or the route lists them: loopback,
  link-local, metadata, private, shared (CGNAT), and the IPv6 forms that carry such an IPv4 address (mapped, NAT64,
  6to4, Teredo) (G23).
- What Ostiary itself stands on (own listeners, admin, Vault) is refused whatever is listed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from addons.clock import Clock
from addons.exchange import Authority
from addons.refusal import Code, Refusal
from policies.model import EgressSpec

type Address = ipaddress.IPv4Address | ipaddress.IPv6Address
type Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64: Final = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))  # RFC 6052, RFC 8215
_SHARED: Final = ipaddress.IPv4Network("100.64.0.0/10")  # RFC 6598
_IPV4_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")  # RFC 4291 section 2.5.5.1, deprecated
_SITE_LOCAL: Final = ipaddress.IPv6Network("fec0::/10")


def embedded(address: Address) -> Address | None:
    """The IPv4 address that an IPv6 address carries (mapped, NAT64, 6to4, Teredo, compatible), or None."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in _NAT64) or (address in _IPV4_COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def is_public(address: Address) -> bool:
    """Whether the address, and any IPv4 address it carries, is globally reachable unicast."""
    inner = embedded(address)
    if inner is not None:
        # An address that smuggles an inner one is dialled as written, so both must be public.
        return is_public(inner) and not (
            isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None and address.is_private
        )
    if isinstance(address, ipaddress.IPv6Address):
        return address.is_global and not address.is_multicast and address not in _SITE_LOCAL
    return address.is_global and not address.is_multicast and address not in _SHARED and not address.is_reserved


@dataclass(slots=True)
class Forbidden:
    """What may never be dialled: sockets of our own and of the stores. An address of None stands for every local one (a
    wildcard bind). Stores move, so `sockets` is replaced as they do; answers of before count no more.
    """

    sockets: frozenset[tuple[str | None, int]] = frozenset()
    hosts: frozenset[tuple[str, int]] = frozenset()
    """Names, such as Vault's, refused before they are resolved."""
    local: frozenset[str] = frozenset()
    """Addresses of this machine's interfaces."""
    generation: int = 0
    """Counts changes."""

    def renew(self, sockets: frozenset[tuple[str | None, int]]) -> None:
        """Replaces the sockets."""
        if sockets != self.sockets:
            self.sockets = sockets
            self.generation += 1

    def covers(self, address: Address, port: int) -> bool:
        inner = embedded(address) or address
        if (str(inner), port) in self.sockets or (str(address), port) in self.sockets:
            return True
        # To connect to 0.0.0.0 or :: is to connect to this machine: whatever is bound there is reached.
        if inner.is_unspecified and any(port == own for _, own in self.sockets):
            return True
        return (None, port) in self.sockets and (inner.is_loopback or str(inner) in self.local)


@dataclass(frozen=True, slots=True)
class EgressRules:
    """Exceptions and fixed targets of the process (`egress:` in ostiary.yaml)."""

    allow: tuple[Network, ...] = ()
    resolve: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    forbidden: Forbidden = field(default_factory=Forbidden)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a request will be dialled: vetted addresses in order of preference, and the authority whose name TLS must
    prove.
    """

    authority: Authority
    addresses: tuple[tuple[str, int], ...]


def any_public(destination: Destination) -> bool:
    """Whether one of the addresses is on the public network."""
    return any(is_public(ipaddress.ip_address(address)) for address, _ in destination.addresses)


class Resolver(Protocol):
    """Names to addresses. The one implementation that asks the system is `SystemResolver`."""

    def known(self, host: str) -> tuple[str, ...] | None:
        """Addresses of a name that are known already; None where it has to be asked for."""

    async def resolve(self, host: str) -> Sequence[str]:
        """Addresses of a name.

        Raises:
            OSError: the name cannot be resolved.
        """


class SystemResolver:
    """The system's resolver, off the loop, with a short bounded memory.

    Args:
        clock: for the age of answers.
        ttl_s: how long an answer serves; `getaddrinfo` tells no TTL, so it stays short.
        capacity: names remembered.
    """

    def __init__(self, clock: Clock, *, ttl_s: float = 5.0, capacity: int = 1024) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._capacity = capacity
        self._answers: OrderedDict[str, tuple[float, tuple[str, ...]]] = OrderedDict()

    def known(self, host: str) -> tuple[str, ...] | None:
        known = self._answers.get(host)
        if known is not None and self._clock.monotonic_s() - known[0] < self._ttl_s:
            return known[1]
        return None

    async def resolve(self, host: str) -> Sequence[str]:
        known = self.known(host)
        if known is not None:
            return known
        now = self._clock.monotonic_s()
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        addresses = tuple(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
        self._answers[host] = (now, addresses)
        self._answers.move_to_end(host)
        if len(self._answers) > self._capacity:
            self._answers.popitem(last=False)
        return addresses


def networks(blocks: Iterable[str]) -> tuple[Network, ...]:
    """CIDR texts, already judged, as networks."""
    return tuple(ipaddress.ip_network(block) for block in blocks)


def vet(
    addresses: Iterable[str], port: int, *, allow: Collection[Network], forbidden: Forbidden
) -> tuple[tuple[str, int], ...]:
    """The addresses that may be dialled, in order.

    A name that gives one address that may not be dialled is refused whole: a mixed answer is how rebinding looks.

    Raises:
        Refusal: `egress_denied`.
    """
    vetted: list[tuple[str, int]] = []
    for text in addresses:
        address = ipaddress.ip_address(text)
        if forbidden.covers(address, port):
            raise Refusal(Code.EGRESS_DENIED, "The destination is an address of Ostiary or of its stores.")
        inner = embedded(address)
        listed = any(address in network for network in allow if network.version == address.version)
        if (
            not listed
            and isinstance(address, ipaddress.IPv6Address)
            and address.ipv4_mapped is not None
            and inner is not None
        ):
            listed = any(inner in network for network in allow if network.version == 4)
        if not listed and not is_public(address):
            raise Refusal(
                Code.EGRESS_DENIED,
                "The destination resolves to an address inside a network; egress.allow must list it.",
            )
        vetted.append((text, port))
    return tuple(vetted)


MAX_VETTED: Final = 1024
"""Answers remembered for a route."""

type Vetted = dict[tuple[str, int, bool, tuple[str, ...], int], Destination]
"""Destinations by authority, the addresses they were vetted from, and the generation of what is forbidden: the same
question has the same answer for as long as policy, settings and the stores' addresses are what they are."""


async def destination(
    authority: Authority,
    rules: EgressRules,
    route: EgressSpec | None,
    allow: Collection[Network],
    resolver: Resolver,
    vetted: Vetted,
    *,
    deadline_s: float,
) -> Destination:
    """Resolves once and vets.

    Args:
        authority: what the caller asked for.
        rules: of the process.
        route: of the route; its fixed targets win.
        allow: exceptions of process and route together.
        resolver: asked only where no fixed target and no literal address says it.
        vetted: what this route's questions were answered before; added to.
        deadline_s: for the resolver, seconds; 0 means none.

    Raises:
        Refusal: `egress_denied`, `upstream_unreachable` or `upstream_timeout`.
    """
    known = destination_now(authority, rules, route, allow, resolver, vetted)
    if known is not None:
        return known
    found = await _resolved(authority, resolver, deadline_s)
    return _vetted(authority, found, authority.port, rules, allow, vetted)


def destination_now(
    authority: Authority,
    rules: EgressRules,
    route: EgressSpec | None,
    allow: Collection[Network],
    resolver: Resolver,
    vetted: Vetted,
) -> Destination | None:
    """As `destination`, where the name need not be asked for; None where it has to be.

    Raises:
        Refusal: `egress_denied`.
    """
    if rules.resolve or (route is not None and route.resolve):
        key = f"{authority.host}:{authority.port}"
        fixed = (route.resolve.get(key) if route is not None else None) or rules.resolve.get(key)
        if fixed is not None:
            return _vetted(authority, (fixed[0],), fixed[1], rules, allow, vetted)
    if (authority.host, authority.port) in rules.forbidden.hosts:
        raise Refusal(Code.EGRESS_DENIED, "The destination is an address of Ostiary or of its stores.")
    literal = _literal(authority.host)
    found = (literal,) if literal is not None else resolver.known(authority.host)
    return None if found is None else _vetted(authority, found, authority.port, rules, allow, vetted)


def _vetted(
    authority: Authority,
    found: tuple[str, ...],
    port: int,
    rules: EgressRules,
    allow: Collection[Network],
    vetted: Vetted,
) -> Destination:
    # Taken apart: texts are compared without a call.
    key = (authority.host, authority.port, authority.cleartext, found, rules.forbidden.generation)
    known = vetted.get(key)
    if known is None:
        known = Destination(authority, vet(found, port, allow=allow, forbidden=rules.forbidden))
        if len(vetted) >= MAX_VETTED:
            vetted.clear()
        vetted[key] = known
    return known


def _literal(host: str) -> str | None:
    """The host as an address, if it is one: every address ends in a digit or holds a colon."""
    if ":" not in host and not host[-1].isdigit():
        return None
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


async def _resolved(authority: Authority, resolver: Resolver, deadline_s: float) -> tuple[str, ...]:
    """The addresses of a name."""
    try:
        async with asyncio.timeout(deadline_s or None):
            found = await resolver.resolve(authority.host)
    except TimeoutError:
        raise Refusal(Code.UPSTREAM_TIMEOUT, f"The name {authority.host} was not resolved in time.") from None
    except (OSError, UnicodeError):
        raise Refusal(Code.UPSTREAM_UNREACHABLE, f"The name {authority.host} cannot be resolved.") from None
    if not found:
        raise Refusal(Code.UPSTREAM_UNREACHABLE, f"The name {authority.host} has no address.")
    return tuple(found)
