"""What one file would take from another, which only the loaded whole shows: requests, proofs, and whatever the walk of
the files did not see.

Two files have other rights if they belong to different entries of `policies:`. A file that may write everything is
never at fault; of two limited ones the later is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from policies.faults import Faults, Place
from policies.load_rights import Limits, Owned, shown_secret, spec_of_key
from policies.model import CredentialSpec, HostPattern, PeerProof, Route, Workload
from policies.paths import may_overlap, parse_pattern
from policies.rights import Rights
from policies.sign import transit_use
from policies.verify import verifying_use

_EVERYTHING: Final = (parse_pattern("/**"),)


@dataclass(frozen=True, slots=True)
class Boundaries:
    """The loaded policy seen by who wrote what. `workloads` and `routes` tell where each name was defined."""

    limits: Limits
    workloads: Mapping[str, Owned]
    routes: Mapping[str, Owned]

    def judge(self, workloads: Mapping[str, Workload], routes: Mapping[str, Route]) -> None:
        """Adds a fault for everything that crosses."""
        if not self.limits.any:
            return
        faults = self.limits.context.faults
        for name, route in routes.items():
            rights = self._rights(self.routes[name])
            if rights is not None and (what := _beyond(route, rights)) is not None:
                faults.add(route.place, f"route {name} {what}", _mend("keep it to what is granted", rights))
        self._proofs(workloads, faults)
        self._requests(routes, faults)

    def _rights(self, owned: Owned) -> Rights | None:
        return self.limits.of(owned[1])

    def _proofs(self, workloads: Mapping[str, Workload], faults: Faults) -> None:
        """Where two workloads have one uid, the uid proves neither unless a listener or a key tells them apart."""
        owners: dict[int, str] = {}
        for name, workload in workloads.items():
            for uid in (proof.uid for proof in workload.proofs if isinstance(proof, PeerProof)):
                other = owners.setdefault(uid, name)
                mine, theirs = self._rights(self.workloads[name]), self._rights(self.workloads[other])
                if mine is theirs:
                    continue
                limited, first, rights = (name, other, mine) if mine is not None else (other, name, theirs)
                faults.add(
                    self.workloads[limited][0].key_place,
                    f"workload {limited!r} has the uid of workload {first!r} at {self.workloads[first][0].key_place}, of a file with other rights",
                    _mend("use key_hash", rights),
                )

    def _requests(self, routes: Mapping[str, Route], faults: Faults) -> None:
        """No route may be chosen, for any request, where one of a file with other rights could be."""
        served: dict[tuple[str, int, str], dict[Place | None, list[Route]]] = {}
        for route in routes.values():
            rights = self._rights(self.routes[route.name])
            owner = rights.place if rights is not None else None
            asked = [(host.text, route.port) for host in route.hosts if route.forward]
            # A reverse listener serves whatever hosts its routes lead to. No host is written so, and no port is 0.
            asked += [(f"listener/{name}", 0) for name in route.listeners]
            for name, port in asked:
                for workload in frozenset[str]().union(*(entry.workloads for entry in route.allow)):
                    served.setdefault((name, port, workload), {}).setdefault(owner, []).append(route)
        told: set[frozenset[str]] = set()
        for (name, port, workload), owners in served.items():
            for left, right in combinations(owners, 2):
                self._meet(owners[left], owners[right], workload, told, faults)
            wider = served.get((f"*.{name.partition('.')[2]}", port, workload), {}) if port and name[:2] != "*." else {}
            for left, right in ((left, right) for left in owners for right in wider if left != right):
                self._meet(owners[left], wider[right], workload, told, faults)

    def _meet(
        self, some: list[Route], others: list[Route], workload: str, told: set[frozenset[str]], faults: Faults
    ) -> None:
        for one, other in ((one, other) for one in some for other in others):
            pair = frozenset({one.name, other.name})
            if pair in told or not _same_request(one, other):
                continue
            told.add(pair)
            mine, theirs = self._rights(self.routes[one.name]), self._rights(self.routes[other.name])
            if theirs is None or (mine is not None and one.place > other.place):
                limited, first, rights = one, other, mine
            else:
                limited, first, rights = other, one, theirs
            faults.add(
                limited.place,
                f"route {limited.name!r} could take requests of workload {workload!r} from route {first.name!r} at {first.place}, of a file with other rights",
                _mend("let paths, methods or workloads of the two differ", rights),
            )


def _mend(how: str, rights: Rights | None) -> str:
    return how if rights is None else f"{how}; this file is limited by may at {rights.place}"


def _same_request(one: Route, other: Route) -> bool:
    if one.methods is not None and other.methods is not None and not one.methods & other.methods:
        return False
    return any(may_overlap(left, right) for left in one.paths or _EVERYTHING for right in other.paths or _EVERYTHING)


def _beyond(route: Route, rights: Rights) -> str | None:
    """What of a loaded route its file's rights do not cover; None: nothing. The walk has told it already, at its place,
    unless it came by a way that the walk does not know.
    """
    for host in route.hosts:
        if not rights.host(host, route.port):
            return f"names {host.text}:{route.port}, which its file may not"
    for names in (*(entry.workloads for entry in route.allow), *(entry.workloads for entry in route.deny)):
        for name in sorted(names or ()):
            if not rights.workload(name):
                return f"names workload {name!r}, which its file may not"
    for credential in (route.credential, *(entry.credential for entry in route.allow)):
        endpoint = credential.derive.endpoint if credential is not None and credential.derive is not None else None
        if endpoint is not None and not rights.host(HostPattern(endpoint.host), endpoint.port):
            return f"asks {endpoint.host}:{endpoint.port} for its token, which its file may not"
        for spec in credential.secrets.values() if isinstance(credential, CredentialSpec) else ():
            if not rights.secret(spec):
                return f"reads secret {shown_secret(spec)}, which its file may not"
    for use in (*map(transit_use, route.sign), verifying_use(route.verify)):
        if use is not None and not rights.secret(spec_of_key(use.key)):
            return f"uses key {shown_secret(spec_of_key(use.key))}, which its file may not"
    guarded = {"egress": route.egress, "tls.ca_file": route.ca_file, "allow_cleartext": route.allow_cleartext or None}
    for word, found in guarded.items():
        if found is not None and word not in rights.define:
            return f"has {word}, which its file may not write"
    return None
