"""From proofs to one workload identity.

Any one proof of a workload suffices. A listener that names a workload serves that one alone: what proves another is
refused. Proofs that name two workloads are refused, whichever of them would have had the grant.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from addons.exchange import Connection, ProofKind, WorkloadIdentity
from addons.head import RequestHead
from addons.identity.caller_key import PROXY_FIELD, REVERSE_FIELD, presented_key
from addons.refusal import Code, Refusal
from policies import Policy
from policies.verify import VERIFIED


def prove(
    connection: Connection, policy: Policy, head: RequestHead, *, extra_keys: Mapping[str, str]
) -> WorkloadIdentity:
    """The workload that this connection and head prove.

    Args:
        connection: listener and peer.
        policy: whose workloads and proofs count.
        head: the CONNECT or absolute-form request with its `Proxy-Authorization`, or a reverse listener's with its
            `X-Ostiary-Authorization`.
        extra_keys: keys of this process alone (SHA-256 hex to workload), as `exec` gives its private proxy.

    Raises:
        Refusal: `proof_required` where nothing was presented, `proof_invalid` where it proves nobody or two.
    """
    proven: dict[str, tuple[ProofKind, str | None]] = {}
    field = PROXY_FIELD if connection.listener.reverse is None else REVERSE_FIELD
    sha256 = presented_key(head, field)
    if sha256 is not None:
        workload = extra_keys.get(sha256) or policy.workload_for_key(sha256)
        if workload is None:
            raise Refusal(Code.PROOF_INVALID, "The caller key is not known.")
        proven[workload] = ("key_hash", sha256)
    named = connection.listener.workload
    for workload in _peers(connection, policy, named, proven):
        proven.setdefault(workload, ("peer", None))
    if named is not None and named not in proven and named in policy.provable_by_any:
        proven[named] = ("any", None)
    if not proven and connection.listener.reverse is not None and policy.takes_senders(connection.listener.name):
        # Nobody yet: the route that is chosen will have the signature judged before it does anything else.
        return WorkloadIdentity(VERIFIED, "signature")
    if not proven:
        raise Refusal(Code.PROOF_REQUIRED, f"Say who calls: send {field} with a caller key.")
    if len(proven) > 1:
        raise Refusal(Code.PROOF_INVALID, "The proofs name two workloads.")
    workload, (proof, key) = next(iter(proven.items()))
    if named is not None and workload != named:
        raise Refusal(Code.PROOF_INVALID, "This listener serves another workload.")
    return WorkloadIdentity(workload, proof, key)


def _peers(connection: Connection, policy: Policy, named: str | None, proven: Collection[str]) -> tuple[str, ...]:
    """Workloads that the peer's uid proves. One uid may stand for several; then the listener or a key must say
    which.
    """
    if connection.peer_uid is None:
        return ()
    peers = policy.workloads_for_peer(connection.peer_uid)
    if named is not None:
        return tuple(name for name in peers if name == named)
    return peers if len(peers) == 1 else tuple(name for name in peers if name in proven)


def still_proven(
    identity: WorkloadIdentity, connection: Connection, policy: Policy, *, extra_keys: Mapping[str, str]
) -> bool:
    """Whether the policy of now still accepts the proof that a tunnel was opened with: asked on every inner request."""
    match identity.proof:
        case "key_hash":
            key = identity.key_sha256 or ""
            return (extra_keys.get(key) or policy.workload_for_key(key)) == identity.workload
        case "peer":
            return connection.peer_uid is not None and identity.workload in policy.workloads_for_peer(
                connection.peer_uid
            )
        case "signature":
            return policy.takes_senders(connection.listener.name)
        case "any":
            return connection.listener.workload == identity.workload and identity.workload in policy.provable_by_any
