"""What a policy answers when a request is put to it: a `Grant`, or a `Denial` that says which rule said no.

A `Grant` is permission as a value: whatever reads a secret asks for one by type, and only `Policy.decide` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from policies.model import CredentialSpec, Route

type DefaultAction = Literal["deny", "tunnel", "observe"]
"""What becomes of a CONNECT to an authority that no route names."""
type DenialCode = Literal["route_denied", "method_denied", "path_denied", "access_denied", "bad_request"]
"""The words of the wire contract."""


class Question(NamedTuple):
    """What is asked: one request of one proven workload. `path` is the raw path the caller sent, without its query.

    On a reverse listener, which `listener` names, the caller says no host: the route does.
    """

    workload: str
    host: str
    port: int
    method: str
    path: str
    listener: str | None = None

    @property
    def to(self) -> str:
        """What it is asked for, in the words of an answer."""
        return f"{self.host}:{self.port}" if self.listener is None else f"listener {self.listener}"


@dataclass(frozen=True, slots=True)
class Grant:
    """A yes: the chosen route, the entry of `allow:` that gave it and the credential that goes with it (None: nothing
    is injected).
    """

    workload: str
    route: Route
    rule: str
    credential: CredentialSpec | None


@dataclass(frozen=True, slots=True)
class Passage:
    """A yes to a tunnel that is passed on unopened: no route names its authority, and the policy's default lets it by.
    Nothing in it is read, and no credential can be put.
    """

    action: Literal["tunnel", "observe"]

    @property
    def rule(self) -> str:
        """How records name it."""
        return f"default: {self.action}"


@dataclass(frozen=True, slots=True)
class Denial:
    """A no. `message` is one sentence for the caller; `route` and `rule` are for audit and `explain`, absent where no
    route was chosen.
    """

    code: DenialCode
    message: str
    route: str | None = None
    rule: str | None = None
