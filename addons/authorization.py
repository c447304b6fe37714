"""Asks the policy and turns its answer into facts: a `Grant`, or a refusal in the words of the wire contract."""

from __future__ import annotations

from addons.exchange import Authority, Exchange, WorkloadIdentity
from addons.refusal import Code, Refusal
from policies import Denial, Grant, Passage, Policy, Question


def admit(policy: Policy, authority: Authority, identity: WorkloadIdentity) -> Passage | None:
    """Whether a tunnel to this authority may be opened at all: some route there must name the workload.

    Returns:
        A passage where no route names the authority and the policy's default lets it by, unopened; else None.

    Asked at CONNECT, so that nothing is dialled, resolved or intercepted for an authority that could only be refused
    later.

    Raises:
        Refusal: `route_denied`.
    """
    if not policy.serves_workload(authority.host, authority.port, identity.workload):
        passage = policy.passage(authority.host, authority.port)
        if passage is not None:
            return passage
        # One answer for "no such route" and "not for you": the caller learns nothing about others' routes.
        raise Refusal(Code.ROUTE_DENIED, f"No route to {authority} for workload {identity.workload}.")
    return None


def question_of(exchange: Exchange) -> Question:
    """What the policy is asked about a request. On a reverse listener no host is asked for: the route says it."""
    workload, head, listener = exchange.ask(WorkloadIdentity).workload, exchange.head, exchange.connection.listener
    if listener.reverse is not None:
        return Question(workload, "", 0, head.method, head.path, listener.name)
    authority = exchange.ask(Authority)
    return Question(workload, authority.host, authority.port, head.method, head.path)


def grant(exchange: Exchange) -> Grant:
    """The grant for this request.

    Raises:
        Refusal: with the policy's own code.
    """
    answer = exchange.policy.decide(question_of(exchange))
    if isinstance(answer, Denial):
        exchange.route, exchange.rule = answer.route, answer.rule
        raise Refusal(Code(answer.code), answer.message)
    exchange.route, exchange.rule = answer.route.name, answer.rule
    return answer
