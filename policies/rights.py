"""What one entry of `policies:` lets its files write: `may`, as values. An entry without `may` has no rights object and
may write everything.

Rules: what is not granted is refused; a pattern never covers more than it spells. Enforcement is `load_rights.py`, the
reading of `may` is `ostiary/settings/rights.py`, the finding of files `sources.py`. docs/reference/policy.md, "Who may
write what", tells the same.

- Hosts: `api.example.com` covers that host on port 443 alone, `api.example.com:8443` that port alone; `*.example.com`
  covers each host one label below it, and the wildcard route of the same text.
- Secrets: segments of mount and path; `*` stands for text inside one segment, `**` for any number of segments. A `**`
  at the end needs at least one: `secret/pay/**` does not cover `secret/pay`. The mount is always spelled. A secret with
  a `namespace` is covered only by a pattern that names that very namespace.
- Workloads: names with `*` for any text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from policies.faults import Place
from policies.model import HostPattern, SecretSpec

KINDS: Final = ("default", "workloads", "groups", "credentials", "routes", "tests", "presets")
"""Top-level keys that `define` may name. `version` is free: it says nothing."""
GUARDED: Final[Mapping[str, str]] = {
    "egress": "a route's egress opens addresses inside the network and fixes where a host is dialled",
    "tls.ca_file": "other roots let another server stand for the upstream",
    "scrub: none": "an answer that is not scrubbed shows its credential to the caller",
    "allow_cleartext": "a credential over plain http can be read on the way",
    "peer": "a claimed uid can be the one by which another workload is known",
}
"""Keys inside workloads, credentials and routes that `define` must name too, each with what it could do."""
SPELLINGS: Final[Mapping[str, str]] = {"scrub_none": "scrub: none", "ca_file": "tls.ca_file"}
"""Other ways to write them."""


@dataclass(frozen=True, slots=True)
class HostRight:
    host: HostPattern
    port: int

    def covers(self, host: HostPattern, port: int) -> bool:
        if port != self.port:
            return False
        if host == self.host:
            return True
        return self.host.wildcard and host.text.partition(".")[2] == self.host.text[2:]


@dataclass(frozen=True, slots=True)
class SecretRight:
    """Segments of mount and path, in one namespace (None: the one of the Vault login)."""

    segments: tuple[str, ...]
    namespace: str | None = None

    def covers(self, path: str, namespace: str | None) -> bool:
        """Whether a whole path, mount first, falls under it."""
        return namespace == self.namespace and _covers(self.segments, tuple(path.split("/")))


def _covers(pattern: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    """Matches segment by segment. `reached` holds the numbers of segments that the pattern so far can stand for, so the
    cost is their product at worst, whatever a pattern says.
    """
    reached = {0}
    for index, part in enumerate(pattern):
        if part == "**":
            last = index == len(pattern) - 1
            reached = set(range(min(reached) + int(last), len(segments) + 1))
        else:
            fits = _glob(part)
            reached = {at + 1 for at in reached if at < len(segments) and fits.fullmatch(segments[at])}
        if not reached:
            return False
    return len(segments) in reached


def _glob(pattern: str) -> re.Pattern[str]:
    """`*` stands for any text, a lone `*` for some: segments and names are never empty, so both are one."""
    return re.compile(".*".join(re.escape(part) for part in re.split(r"\*+", pattern)), re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rights:
    """`may` of one entry; two files have the same rights if they have the same `place`."""

    place: Place
    """Of `may` in the settings."""
    define: frozenset[str] = frozenset()
    hosts: tuple[HostRight, ...] = ()
    secrets: tuple[SecretRight, ...] = ()
    workloads: tuple[str, ...] = ()

    def host(self, host: HostPattern, port: int) -> bool:
        """Whether a route, or what dials a token endpoint, may name this authority."""
        return any(right.covers(host, port) for right in self.hosts)

    def secret(self, spec: SecretSpec) -> bool:
        """Whether this secret may be read, however its mount is spelled."""
        return any(right.covers(whole_path(spec), spec.namespace) for right in self.secrets)

    def workload(self, name: str) -> bool:
        """Whether this workload, or a group of this name, may be named or defined."""
        return any(_glob(pattern).fullmatch(name) for pattern in self.workloads)


def whole_path(spec: SecretSpec) -> str:
    """Mount and path as one, the way `path` alone is read."""
    return f"{spec.mount}/{spec.path}" if spec.mount is not None else spec.path
