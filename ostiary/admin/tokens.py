"""Who calls, and what each role may do. A token is looked for among all hashes in the same time whether it is there or
not; the token itself is kept nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ostiary.settings.model import AdminToken

type Role = Literal["viewer", "operator", "approver", "admin"]

COVERS: Final[Mapping[str, frozenset[str]]] = {
    "viewer": frozenset({"viewer"}),
    "operator": frozenset({"viewer", "operator"}),
    "approver": frozenset({"viewer", "approver"}),
    "admin": frozenset({"viewer", "operator", "approver", "admin"}),
}
"""What holders of a role may do: an operation names one role, and each role covers itself and those listed."""
MAX_TOKEN: Final = 512
"""Characters; `ostiary key mint` makes 47."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody whose token is known."""

    name: str
    roles: frozenset[str]

    def may(self, role: Role) -> bool:
        return any(role in COVERS[own] for own in self.roles)


class Tokens:
    """The tokens of the settings.

    Args:
        tokens: names, hashes and roles.
    """

    def __init__(self, tokens: Sequence[AdminToken]) -> None:
        self._known = tuple((bytes.fromhex(token.sha256), Caller(token.name, token.roles)) for token in tokens)

    def __bool__(self) -> bool:
        return bool(self._known)

    def find(self, token: str) -> Caller | None:
        """The caller with this token."""
        if len(token) > MAX_TOKEN:
            return None
        digest = hashlib.sha256(token.encode()).digest()
        found: Caller | None = None
        for known, caller in self._known:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def bearer(fields: Sequence[str]) -> str | None:
    """The token of the Authorization fields of one request (RFC 6750 section 2.1); None where there is not exactly one of
    that scheme. A token in the query or a body does not count.
    """
    if len(fields) != 1:
        return None
    scheme, _, token = fields[0].partition(" ")
    token = token.strip(" ")
    return token if scheme.lower() == "bearer" and token and token.isascii() else None
