"""Refusals: the typed no that ends a request, and the one table that maps it to an HTTP answer.

Owns the codes of the wire contract (docs/reference/errors.md), their statuses, their RFC 9209 error types and the shape
of the answer body. Every stage raises `Refusal`; nothing else in the project builds an error answer. (`Answered` is an answer of
a user's addon: it has no code.) Adding a code
means adding a row to `TABLE` and to the reference.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class Code(enum.StrEnum):
    """Machine-readable reason of a refusal; the same word on the wire, in audit records and in metrics."""

    PROOF_REQUIRED = "proof_required"
    PROOF_INVALID = "proof_invalid"
    PROOF_EXPIRED = "proof_expired"
    SIGNATURE_INVALID = "signature_invalid"
    REPLAYED = "replayed"
    ACCESS_DENIED = "access_denied"
    ROUTE_DENIED = "route_denied"
    METHOD_DENIED = "method_denied"
    PATH_DENIED = "path_denied"
    EGRESS_DENIED = "egress_denied"
    AUTHORITY_MISMATCH = "authority_mismatch"
    BAD_REQUEST = "bad_request"
    CALLER_CREDENTIALS = "caller_credentials"
    REQUEST_TIMEOUT = "request_timeout"
    BODY_TOO_LARGE = "body_too_large"
    HEADERS_TOO_LARGE = "headers_too_large"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    SECRET_DENIED = "secret_denied"  # noqa: S105 - a code, no password
    SECRET_MISSING = "secret_missing"  # noqa: S105 - a code, no password
    SECRET_MALFORMED = "secret_malformed"  # noqa: S105 - a code, no password
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_TLS = "upstream_tls"
    UPSTREAM_PROTOCOL = "upstream_protocol"
    REPLY_BLOCKED = "reply_blocked"
    SECRET_UNAVAILABLE = "secret_unavailable"  # noqa: S105 - a code, no password
    AUDIT_UNAVAILABLE = "audit_unavailable"
    STATE_UNAVAILABLE = "state_unavailable"
    OVERLOADED = "overloaded"
    DRAINING = "draining"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Row:
    """How one code is told over HTTP: status and RFC 9209 section 2.3 error type."""

    status: int
    proxy_error: str


TABLE: Final[Mapping[Code, Row]] = {
    Code.PROOF_REQUIRED: Row(407, "http_request_denied"),
    Code.PROOF_INVALID: Row(407, "http_request_denied"),
    Code.PROOF_EXPIRED: Row(403, "http_request_denied"),
    Code.SIGNATURE_INVALID: Row(401, "http_request_denied"),
    Code.REPLAYED: Row(401, "http_request_denied"),
    Code.ACCESS_DENIED: Row(403, "http_request_denied"),
    Code.ROUTE_DENIED: Row(403, "http_request_denied"),
    Code.METHOD_DENIED: Row(403, "http_request_denied"),
    Code.PATH_DENIED: Row(403, "http_request_denied"),
    Code.EGRESS_DENIED: Row(403, "destination_ip_prohibited"),
    Code.AUTHORITY_MISMATCH: Row(421, "http_request_error"),
    Code.BAD_REQUEST: Row(400, "http_request_error"),
    Code.CALLER_CREDENTIALS: Row(400, "http_request_denied"),
    Code.REQUEST_TIMEOUT: Row(408, "http_request_error"),
    Code.BODY_TOO_LARGE: Row(413, "http_request_error"),
    Code.HEADERS_TOO_LARGE: Row(431, "http_request_error"),
    Code.RATE_LIMIT_EXCEEDED: Row(429, "http_request_denied"),
    Code.SECRET_DENIED: Row(502, "proxy_configuration_error"),
    Code.SECRET_MISSING: Row(502, "proxy_configuration_error"),
    Code.SECRET_MALFORMED: Row(502, "proxy_configuration_error"),
    Code.UPSTREAM_UNREACHABLE: Row(502, "destination_unavailable"),
    Code.UPSTREAM_TLS: Row(502, "tls_certificate_error"),
    Code.UPSTREAM_PROTOCOL: Row(502, "http_protocol_error"),
    Code.REPLY_BLOCKED: Row(502, "http_protocol_error"),
    Code.SECRET_UNAVAILABLE: Row(503, "proxy_internal_error"),
    Code.AUDIT_UNAVAILABLE: Row(503, "proxy_internal_error"),
    Code.STATE_UNAVAILABLE: Row(503, "proxy_internal_error"),
    Code.OVERLOADED: Row(503, "connection_limit_reached"),
    Code.DRAINING: Row(503, "proxy_internal_response"),
    Code.UPSTREAM_TIMEOUT: Row(504, "http_response_timeout"),
    Code.INTERNAL: Row(500, "proxy_internal_error"),
}

REALM: Final = "ostiary"
_CHALLENGES: Final = (f'Basic realm="{REALM}", charset="UTF-8"', f'Bearer realm="{REALM}"')
_CHALLENGED: Final = frozenset({Code.PROOF_REQUIRED, Code.PROOF_INVALID})
_UNPROVEN_IN_REVERSE: Final = 401
"""In the place of 407: to its caller a reverse listener is the server, no proxy (RFC 9110 section 15.5.2)."""


class Refusal(Exception):
    """Ends the request with a typed answer; the upstream sees nothing more of it.

    Args:
        code: the reason, a row of `TABLE`.
        message: one sentence for the caller. It may name hosts, routes and secret references; never a value, a header
            value or a query string.
        retry_after_s: seconds after which a retry may succeed; rounded up into `Retry-After`.
        close: whether the caller's connection must not be reused.
    """

    def __init__(self, code: Code, message: str, *, retry_after_s: float | None = None, close: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.close = close

    @property
    def status(self) -> int:
        return TABLE[self.code].status


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer of our own, ready for any engine."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Answered(Exception):
    """Ends the request with the answer of a user's addon; the upstream sees nothing of it."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("answered by an addon")
        self.answer = answer


def answer(refusal: Refusal, request_id: str, *, reverse: bool = False) -> Answer:
    """Renders a refusal: JSON body, code header and `Proxy-Status` (RFC 9209).

    Args:
        refusal: what is told.
        request_id: of the request.
        reverse: whether it came in on a reverse listener.
    """
    code = refusal.code
    row = TABLE[code]
    challenged = code in _CHALLENGED
    body = json.dumps({"error": refusal.message, "code": code.value, "request_id": request_id}).encode() + b"\n"
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("X-Ostiary-Error", code.value),
        ("X-Request-Id", request_id),
        ("Proxy-Status", f'ostiary; error={row.proxy_error}; details="{code.value}"'),
    ]
    if challenged:
        field = "WWW-Authenticate" if reverse else "Proxy-Authenticate"
        headers += [(field, challenge) for challenge in _CHALLENGES]
    if refusal.retry_after_s is not None:
        headers.append(("Retry-After", str(max(1, math.ceil(refusal.retry_after_s)))))
    if refusal.close:
        headers.append(("Connection", "close"))
    return Answer(_UNPROVEN_IN_REVERSE if challenged and reverse else row.status, tuple(headers), body)
