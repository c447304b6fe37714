"""What becomes of a request, decided by its head alone: the operation it asks for, or the problem with it.

In this order: its form, the fields that keep web pages out, the token, the path, the method, the role. Who has no token
learns nothing of which paths there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

from ostiary.admin.control import Control
from ostiary.admin.pages import Pages
from ostiary.admin.problems import Kind, Problem
from ostiary.admin.table import Call, Operation
from ostiary.admin.tokens import Caller, Tokens, bearer

HOW_TO_ADD: Final = "Make a token with `ostiary key mint --admin NAME` and put its name, hash and roles under admin.tokens of the settings."
MAX_REF: Final = 3072
_BROKEN: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
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
        self._with_ref = tuple(path.split("{ref}") for path in self._paths if "{ref}" in path)

    def judge(self, head: Head) -> Granted | Denied:
        if not head.target.startswith("/"):
            return Denied(Problem(Kind.BAD_REQUEST, "The target of a request here is a path, not a URL."))
        if len(head.hosts) > 1 or (not head.hosts and not head.http_1_0):
            return Denied(Problem(Kind.BAD_REQUEST, "A request has exactly one Host field."))
        problem = self._pages.judge(head.hosts, head.origins, head.sites)
        if problem is not None:
            return Denied(problem)
        path, ref = self._found(head.path)
        methods = self._paths.get(path, {})
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
        return Granted(operation, Call(by, head.accept, ref))

    def _found(self, path: str) -> tuple[str, str]:
        """The path as the table has it, and what stands for its `{ref}`."""
        for before, after in self._with_ref:
            raw = path.removeprefix(before).removesuffix(after)
            if len(raw) == len(path) - len(before) - len(after) and path == before + raw + after:
                ref = _decoded(raw)
                if ref is not None:
                    return f"{before}{{ref}}{after}", ref
        return path, ""


def _decoded(raw: str) -> str | None:
    """One percent-encoded segment as text (RFC 3986 section 2.1); None where it is not one."""
    if not raw or "/" in raw or len(raw) > MAX_REF or _BROKEN.search(raw):
        return None
    try:
        return unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        return None


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
