"""Reads `workloads:` and `groups:`: who calls, and how it is proven."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from policies.document import Mapping as MappingNode
from policies.document import Node, Scalar, Sequence, kind_of
from policies.faults import nearest
from policies.fields import Fields
from policies.keys import LATER, PEER, PROOF, WORKLOAD
from policies.load_parts import Context
from policies.model import AnyProof, KeyHashProof, PeerProof, Proof, Workload

_KEY_HASH: Final = re.compile(r"sha256:([0-9a-f]{64})")


def read_workload(name: str, node: Node, context: Context) -> Workload:
    """One workload. Faults leave it with the proofs that could be read, so that names that refer to it still
    resolve.
    """
    faults = context.faults
    keys = Fields(node, faults, f"workload {name}", known=WORKLOAD)
    proofs: list[Proof] = []
    if keys.require("proofs"):
        for item in keys.nodes("proofs"):
            proof = _read_proof(name, item, context)
            if proof is not None:
                proofs.append(proof)
    return Workload(name, tuple(proofs), _labels(keys))


def _read_proof(name: str, node: Node, context: Context) -> Proof | None:
    faults = context.faults
    keys = Fields(node, faults, f"a proof of workload {name}", known=PROOF, later=LATER["proof"])
    if not isinstance(node, MappingNode):
        return None
    given = [key for key in PROOF if key in keys]
    if len(given) != 1:
        if len(given) > 1 or not any(entry.key in LATER["proof"] for entry in node):
            faults.add(node.place, f"a proof of workload {name} has one kind", f"one of {', '.join(PROOF)}")
        return None
    match given[0]:
        case "key_hash":
            scalar = keys.scalar("key_hash")
            if scalar is None:
                return None
            found = _KEY_HASH.fullmatch(scalar.text)
            if found is None:
                faults.add(
                    scalar.place,
                    "key_hash is not of the form sha256:<64 lower-case hex digits>",
                    "ostiary key mint prints the key and its hash",
                )
                return None
            return KeyHashProof(found[1])
        case "peer":
            peer = keys.node("peer")
            if peer is None:
                return None
            inner = Fields(peer, faults, f"peer of workload {name}", known=PEER)
            inner.require("uid")
            uid = inner.integer("uid", low=0, high=2**32 - 2)
            return None if uid is None else PeerProof(uid)
        case _:
            if not keys.boolean("any"):
                faults.add(keys.place_of("any"), "any must be true", "remove the proof if it should not hold")
                return None
            return AnyProof()


def _labels(keys: Fields) -> Mapping[str, str]:
    node = keys.node("labels")
    if node is None:
        return {}
    if not isinstance(node, MappingNode):
        keys.faults.add(node.place, f"labels must be a mapping, not {kind_of(node)}")
        return {}
    labels: dict[str, str] = {}
    for entry in node:
        if isinstance(entry.value, Scalar):
            labels[entry.key] = entry.value.text
        else:
            keys.faults.add(entry.value.place, f"label {entry.key!r} must be a scalar, not {kind_of(entry.value)}")
    return labels


def read_group(name: str, node: Node, workloads: Mapping[str, Workload], context: Context) -> frozenset[str]:
    """The members of one group."""
    items = node.items if isinstance(node, Sequence) else (node,)
    members: set[str] = set()
    for item in items:
        if not isinstance(item, Scalar):
            context.faults.add(item.place, f"group {name} holds names of workloads, not {kind_of(item)}")
        elif item.text not in workloads:
            near = nearest(item.text, workloads)
            context.faults.add(
                item.place,
                f"workload {item.text!r} is not defined",
                f"did you mean {near!r}?" if near else "define it under workloads:",
            )
        else:
            members.add(item.text)
    return frozenset(members)
