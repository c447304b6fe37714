"""What the admin API answers when it does not do what was asked: `application/problem+json` (RFC 9457), one table.

`type` is a name, not a link; docs/reference/admin.md tells each and is checked against this table.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

CONTENT_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:ostiary:admin:"


class Kind(enum.Enum):
    """Every problem: its code, its status and its title."""

    BAD_REQUEST = ("bad_request", 400, "The request is malformed")
    TOKEN_REQUIRED = ("token_required", 401, "An admin token is needed")
    TOKEN_INVALID = ("token_invalid", 401, "The admin token is not known")
    NO_TOKENS = ("no_tokens", 403, "This listener has no admin token")
    ROLE_DENIED = ("role_denied", 403, "The token's roles do not allow this")
    CROSS_SITE = ("cross_site", 403, "Web pages may not use this API")
    NOT_FOUND = ("not_found", 404, "There is nothing at this path")
    SECRET_UNKNOWN = ("secret_unknown", 404, "No route reads this secret")
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405, "This path has other methods")
    BODY_TOO_LARGE = ("body_too_large", 413, "The body is too large")
    HOST_MISMATCH = ("host_mismatch", 421, "The Host field names another server")
    POLICY_REJECTED = ("policy_rejected", 422, "The policy has faults")
    INTERNAL = ("internal", 500, "The request failed")
    SECRET_FAILED = ("secret_failed", 502, "The secret store did not give the secret")
    TIMEOUT = ("timeout", 503, "The answer takes too long")

    @property
    def code(self) -> str:
        return self.value[0]

    @property
    def status(self) -> int:
        return self.value[1]

    @property
    def title(self) -> str:
        return self.value[2]


AUDITED: Final = frozenset(
    {Kind.TOKEN_REQUIRED, Kind.TOKEN_INVALID, Kind.NO_TOKENS, Kind.ROLE_DENIED, Kind.CROSS_SITE, Kind.HOST_MISMATCH}
)
"""Those that may be an attack; the others are mistakes."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `detail` says what to do; it never quotes what was sent, for that may be a token."""

    kind: Kind
    detail: str
    headers: tuple[tuple[str, str], ...] = ()
    faults: Sequence[str] | None = None
    """For `policy_rejected`: each `file:line:column: message (how to mend)`."""
    policy: str | None = None
    """For `policy_rejected`: version of the policy that stays in force."""

    def encode(self, request_id: str) -> bytes:
        body: dict[str, Any] = {
            "type": TYPE_PREFIX + self.kind.code,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.faults is not None:
            body["faults"] = list(self.faults)
        if self.policy is not None:
            body["policy"] = self.policy
        return json.dumps(body).encode()
