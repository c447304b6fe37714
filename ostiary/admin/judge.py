"""What becomes of a request, decided by its head alone: the operation it asks for, or the problem with it.

In this order: its form, the fields that keep web pages out, the token, the path, the method, the role. Who has no token
learns nothing of which paths there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ostiary.admin.control import Control
from ostiary.admin.pages import Pages
from ostiary.admin.problems import Kind, Problem
from ostiary.admin.table import Call, Operation
from ostiary.admin.tokens import Caller, Tokens, bearer

HOW_TO_ADD: Final = "Make a token with `ostiary key mint --admin NAME` and put its name, hash and roles under admin.tokens of the settings."
_CHALLENGE: Final = (("WWW-Authenticate", 'Bearer realm="ostiary"'),)
_CHALLENGE_INVALID: Final = (("WWW-Authenticate", 'Bearer realm="ostiary", error="invalid_token"'),)


@dataclass(frozen=True, slots=True)
class Head:
    """What is judged. Fields are lists, for a request may have any number of each."""

    method: str
    target: str
    source: str
    http_1_0: bool = False
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    sites: Sequence[str] = ()
    authorization: Sequence[str] = field(default=(), repr=False)
    accept: str = ""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Granted:
    """The request may have what it asks for."""

    operation: Operation
    call: Call


@dataclass(frozen=True, slots=True)
class Denied:
    """It may not. `by`: the token, where one was proven."""

    problem: Problem
    by: str = ""


class Api:
    """What one listener serves.

    Args:
        listener: `admin` or `probes`.
        operations: those that are there.
        pages: which Host and Origin count.
        tokens: who may call; None: nobody is asked, and what asks for a token is not there.
        control: what operations work on.
    """

    def __init__(
        self, listener: str, operations: Sequence[Operation], pages: Pages, tokens: Tokens | None, control: Control
    ) -> None:
        self.listener = listener
        self.control = control
        self._pages = pages
        self._tokens = tokens
        self._paths: dict[str, dict[str, Operation]] = {}
        for operation in operations:
            if tokens is not None or operation.role is None:
                self._paths.setdefault(operation.path, {})[operation.method] = operation

    def judge(self, head: Head) -> Granted | Denied:
        if not head.target.startswith("/"):
            return Denied(Problem(Kind.BAD_REQUEST, "The target of a request here is a path, not a URL."))
        if len(head.hosts) > 1 or (not head.hosts and not head.http_1_0):
            return Denied(Problem(Kind.BAD_REQUEST, "A request has exactly one Host field."))
        problem = self._pages.judge(head.hosts, head.origins, head.sites)
        if problem is not None:
            return Denied(problem)
        methods = self._paths.get(head.path, {})
        caller: Caller | None = None
        if self._tokens is not None and (not methods or any(one.role is not None for one in methods.values())):
            found = _caller(self._tokens, head)
            if isinstance(found, Problem):
                return Denied(found)
            caller = found
        by = caller.name if caller is not None else ""
        if not methods:
            return Denied(Problem(Kind.NOT_FOUND, f"This listener serves {', '.join(sorted(self._paths))}."), by)
        operation = methods.get(head.method)
        if operation is None:
            return Denied(_other_method(methods), by)
        if operation.role is not None and (caller is None or not caller.may(operation.role)):
            detail = f"{operation.method} {operation.path} asks for the role {operation.role}."
            return Denied(Problem(Kind.ROLE_DENIED, detail), by)
        return Granted(operation, Call(by, head.accept))


def _caller(tokens: Tokens, head: Head) -> Caller | Problem:
    if not tokens:
        return Problem(Kind.NO_TOKENS, f"Only /healthz, /readyz and /metrics answer without tokens. {HOW_TO_ADD}")
    if not head.authorization:
        return Problem(Kind.TOKEN_REQUIRED, f"Send Authorization: Bearer TOKEN. {HOW_TO_ADD}", _CHALLENGE)
    token = bearer(head.authorization)
    caller = tokens.find(token) if token is not None else None
    if caller is None:
        return Problem(Kind.TOKEN_INVALID, f"The settings do not have its hash. {HOW_TO_ADD}", _CHALLENGE_INVALID)
    return caller


def _other_method(methods: Mapping[str, Operation]) -> Problem:
    allowed = ", ".join(sorted(methods))
    return Problem(Kind.METHOD_NOT_ALLOWED, f"Allowed here: {allowed}.", (("Allow", allowed),))
