"""Whether what is open may stay open: asked each second about answers that stream, WebSockets and unopened tunnels.

A request keeps the policy it began with; a stream that goes on for hours must not. So what has begun to reach its caller
is asked the same question again, of the policy that is in force now.
"""

from __future__ import annotations

from collections.abc import Mapping

from addons.authorization import question_of
from addons.exchange import Authority, Exchange, WorkloadIdentity
from addons.identity import still_proven
from addons.refusal import Code, Refusal
from addons.reverse import authority_of
from policies import Denial, Grant, Passage, Policy


def withdrawn(exchange: Exchange, policy: Policy, *, extra_keys: Mapping[str, str]) -> Refusal | None:
    """Why this exchange may not go on, or None.

    Args:
        exchange: begun, not settled.
        policy: in force now.
        extra_keys: keys of this process alone.
    """
    if exchange.policy is policy or exchange.settled:
        return None
    identity = exchange.find(WorkloadIdentity)
    authority = exchange.find(Authority)
    if identity is None or authority is None:
        return None  # not granted yet: its stages will say
    passage = exchange.find(Passage)
    if passage is None and not (exchange.streaming and exchange.find(Grant) is not None):
        return None
    if not still_proven(identity, exchange.connection, policy, extra_keys=extra_keys):
        return Refusal(Code.PROOF_EXPIRED, "The proof of this caller is no longer accepted.", close=True)
    if passage is not None:
        if policy.passage(authority.host, authority.port) is None:
            return Refusal(Code.ROUTE_DENIED, f"A tunnel to {authority} is no longer passed on.", close=True)
        return None
    answer = policy.decide(question_of(exchange))
    if isinstance(answer, Denial):
        return Refusal(Code(answer.code), answer.message, close=True)
    if exchange.connection.listener.reverse is not None and authority_of(answer.route) != authority:
        return Refusal(Code.ROUTE_DENIED, "The listener leads to another upstream now.", close=True)
    return None
