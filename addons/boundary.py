"""The one boundary: whatever goes wrong while a request is handled becomes a refusal, a record and an answer here.

Rules:
- Any exception, cancellation or deadline that leaves a stage ends the request. What is no `Refusal` is mapped by
  `refusal_for`; what is unknown is `internal`.
- An exchange is settled once. If a credential was opened for it, its records are closed; if none was, the refusal
  itself is recorded.
- An unexpected exception is logged by type and place only: its text and its locals may hold what must not be printed.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import Final

from addons.audit import AuditLog, AuditUnavailable, Fields
from addons.clock import Clock
from addons.credentials import Openings, SealedCredential, release
from addons.exchange import Authority, Connection, Exchange, Outcome, WorkloadIdentity
from addons.head import Fields as HeadFields
from addons.names import ByName
from addons.once import Once
from addons.refusal import Answer, Answered, Code, Refusal, answer
from addons.telemetry import Metrics
from addons.uuid7 import uuid7
from addons.verifying.received import Verified
from policies import Passage

_log = logging.getLogger("ostiary.boundary")

_traces: Final = ByName(lambda name: name.lower() == b"traceparent")
_UPSTREAM_CODES: Final = frozenset(
    {Code.UPSTREAM_UNREACHABLE, Code.UPSTREAM_TLS, Code.UPSTREAM_PROTOCOL, Code.UPSTREAM_TIMEOUT}
)


def place_of(error: BaseException) -> str:
    """Where an exception was raised, without its text: `module:line in function`, innermost last."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return " < ".join(
        f"{frame.filename.rpartition('/')[2]}:{frame.lineno} in {frame.name}" for frame in reversed(frames)
    )


def refusal_for(error: BaseException) -> Refusal:
    """Maps any exception to a refusal."""
    match error:
        case Refusal():
            return error
        case AuditUnavailable():
            return Refusal(
                Code.AUDIT_UNAVAILABLE, "No audit record can be written, so no credential is used.", retry_after_s=1.0
            )
        case asyncio.CancelledError() | TimeoutError():
            return Refusal(Code.INTERNAL, "The request took too long inside the proxy.", close=True)
        case _:
            return Refusal(Code.INTERNAL, "The proxy failed; nothing was sent upstream.", close=True)


class Boundary:
    """Turns failures and ends into answers and records. One for each process."""

    def __init__(self, audit: AuditLog, metrics: Metrics, clock: Clock) -> None:
        self._audit = audit
        self._metrics = metrics
        self._clock = clock
        self._told = Once(_log)

    def refuse(self, exchange: Exchange, error: BaseException) -> Answer:
        """Ends an exchange with a refusal.

        Returns:
            The answer for the caller; it is also kept as `exchange.refused`, which the engine must give instead of
            anything else.
        """
        if isinstance(error, Answered):
            exchange.refused = error.answer
            self.settle(exchange, "refused", status=error.answer.status)
            return error.answer
        refusal = refusal_for(error)
        if not isinstance(error, Refusal | AuditUnavailable):
            _log.error("request %s failed: %s at %s", exchange.request_id, type(error).__name__, place_of(error))
        reply = answer(refusal, exchange.request_id, reverse=exchange.connection.listener.reverse is not None)
        exchange.refused = reply
        blamed = refusal.code in _UPSTREAM_CODES
        if exchange.streaming:
            # The caller has the upstream's head; this answer it will never see, only that the body is cut.
            self.settle(exchange, "truncated" if blamed else "refused", code=refusal.code)
        else:
            self.settle(exchange, "upstream_error" if blamed else "refused", status=reply.status, code=refusal.code)
        return reply

    def refuse_unparsed(self, connection: Connection, refusal: Refusal) -> Answer:
        """Answers bytes that never became a request: recorded per source, with nothing of what was sent."""
        request_id = uuid7()
        self._metrics.refused(refusal.code)
        self._audit.refused(
            {
                "request_id": request_id,
                "source": connection.source,
                "listener": connection.listener.name,
                "status": refusal.status,
                "code": refusal.code,
                "outcome": "refused",
                **_proven(connection),
            }
        )
        return answer(refusal, request_id)

    def tunnel_opened(self, exchange: Exchange) -> None:
        """Records a tunnel that is passed on unopened, once its upstream is reached. `settle` records its end."""
        exchange.status = 200
        self._audit.note("tunnel.opened", facts_of(exchange))

    def settle(
        self, exchange: Exchange, outcome: Outcome, *, status: int | None = None, code: Code | None = None
    ) -> None:
        """Records how an exchange ended; later calls for the same one do nothing."""
        if exchange.settled:
            return
        exchange.settled = True
        exchange.connection.exchanges.discard(exchange)
        elapsed_s = self._clock.monotonic_s() - exchange.started_s
        openings = exchange.find(Openings)
        if exchange.redactions or exchange.caller_credential is not None:
            self._tell(exchange)
        ended = self._ended(exchange, outcome, status, code, elapsed_s)
        if openings is not None:
            for record in openings.records:
                self._audit.close(record, ended)
            if (sealed := exchange.find(SealedCredential)) is not None:
                release(sealed)
        elif exchange.find(Passage) is not None and exchange.dialled_s is not None:
            self._audit.note("tunnel.closed", {**facts_of(exchange), **ended})
        elif (
            outcome == "refused"
            or code is not None
            or (outcome == "client_gone" and exchange.dialled_s is None and not exchange.connect)
        ):
            # Refused, answered by an addon, or given up by the caller before anything was sent.
            self._audit.refused({**facts_of(exchange), **ended})
        elif not exchange.connect:
            self._audit.note("request.forwarded", {**facts_of(exchange), **ended})
        if code is not None:
            self._metrics.refused(code)
        if not exchange.connect:
            identity = proven(exchange)
            self._metrics.request_ended(exchange.route or "", identity.workload if identity else "", outcome, elapsed_s)

    def attempt_ended(self, exchange: Exchange, openings: Openings, status: int) -> None:
        """Closes the records of an attempt whose answer is not passed on: the exchange goes on with others."""
        elapsed_s = self._clock.monotonic_s() - exchange.started_s
        ended = self._ended(exchange, "upstream_error", status, None, elapsed_s)
        for record in openings.records:
            self._audit.close(record, ended)

    def _tell(self, exchange: Exchange) -> None:
        """What an operator should know of, said once: it happens again with every request."""
        identity, route = proven(exchange), exchange.route or ""
        workload = identity.workload if identity else ""
        if exchange.redactions:
            self._metrics.redacted(route, exchange.redactions)
            self._told.warn(("shown", route), "an upstream showed its credential in an answer; route %s", route)
        if exchange.caller_credential is not None:
            place = exchange.caller_credential
            self._told.warn(
                ("brought", workload, route, place),
                "workload %s still holds a key: it sends one in %s; route %s",
                workload,
                place,
                route,
            )

    def _ended(
        self, exchange: Exchange, outcome: Outcome, status: int | None, code: Code | None, elapsed_s: float
    ) -> Fields:
        ended: Fields = {"outcome": outcome, "ms": elapsed_s * 1000}
        if code is not None:
            ended["code"] = code.value
        if exchange.addon is not None:
            ended["addon"] = exchange.addon
        final_status = status if status is not None else exchange.status
        if final_status is not None:
            ended["status"] = final_status
        if exchange.dialled_s is not None or exchange.find(Openings) is not None:
            ended["bytes_in"] = exchange.bytes_in
            ended["bytes_out"] = exchange.bytes_out
        if exchange.retries:
            ended["retries"] = exchange.retries
        if exchange.payload is not None:
            ended["payload_sha256"] = exchange.payload.hexdigest()
        if exchange.redactions:
            ended["redactions"] = exchange.redactions
        if exchange.caller_credential is not None:
            ended["caller_credential"] = exchange.caller_credential
        if exchange.secret_ms is not None:
            ended["ms_secret"] = exchange.secret_ms
        if exchange.dialled_s is not None and exchange.first_byte_s is not None:
            ended["ms_upstream"] = (exchange.first_byte_s - exchange.dialled_s) * 1000
        return ended


def _proven(connection: Connection) -> Fields:
    """Whose tunnel it was, where one is open: a proven caller's refusals are not coalesced."""
    return {"workload": connection.tunnel.identity.workload} if connection.tunnel is not None else {}


def proven(exchange: Exchange) -> WorkloadIdentity | None:
    """Who it was: proven for this request, or at least by the tunnel it came through."""
    tunnel = exchange.connection.tunnel
    found = exchange.find(WorkloadIdentity) or (tunnel.identity if tunnel is not None else None)
    if found is not None and found.proof == "signature" and exchange.find(Verified) is None:
        return None  # whoever it is has not been told from a stranger
    return found


def facts_of(exchange: Exchange) -> Fields:
    """What every record of this exchange says: who, from where, to what. The path goes without its query (G30)."""
    connection, head = exchange.connection, exchange.head
    identity, authority = proven(exchange), exchange.find(Authority)
    route, rule = exchange.route, exchange.rule
    fields: Fields
    if identity is None or authority is None or route is None or rule is None or exchange.connect:
        fields = _facts_so_far(exchange, identity, authority)
    else:
        # Every granted request: all at once, since a dictionary that grows costs twice as much.
        fields = {
            "request_id": exchange.request_id,
            "source": connection.source,
            "listener": connection.listener.name,
            "workload": identity.workload,
            "proof": identity.proof,
            "route": route,
            "rule": rule,
            "host": authority.host,
            "port": authority.port,
            "method": head.method,
            "path": head.path,
        }
    if True in [_traces[name] for name, _ in head.fields]:
        trace = trace_id(head.fields)
        if trace is not None:
            fields["trace_id"] = trace
    return fields


def _facts_so_far(exchange: Exchange, identity: WorkloadIdentity | None, authority: Authority | None) -> Fields:
    """The same of an exchange that ended early, or is a CONNECT."""
    fields: Fields = {
        "request_id": exchange.request_id,
        "source": exchange.connection.source,
        "listener": exchange.connection.listener.name,
    }
    if identity is not None:
        fields["workload"] = identity.workload
        fields["proof"] = identity.proof
    if exchange.route is not None:
        fields["route"] = exchange.route
    if exchange.rule is not None:
        fields["rule"] = exchange.rule
    if authority is not None:
        fields["host"] = authority.host
        fields["port"] = authority.port
    fields["method"] = exchange.head.method
    if not exchange.connect:
        fields["path"] = exchange.head.path
    return fields


def trace_id(fields: HeadFields) -> str | None:
    """The trace id of a well-formed `traceparent` (W3C Trace Context section 3.2.2), or None."""
    for name, value in fields:
        if _traces[name]:
            parts = value.split(b"-")
            if len(parts) >= 4 and len(parts[1]) == 32 and parts[1].isalnum() and parts[1] != b"0" * 32:
                return parts[1].decode("ascii", "replace").lower()
            return None
    return None
