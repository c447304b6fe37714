"""The examples a policy carries (`tests:`), and running them: `ostiary policy test`.

An example asks the compiled policy, not the network: it names a workload and a request, and what must come of it.
Coverage tells which routes and denies no example reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from policies.document import Mapping as MappingNode
from policies.document import Node, Scalar
from policies.faults import Faults, Place
from policies.fields import Fields
from policies.grant import Denial, Grant, Question
from policies.keys import EXPECT, LATER, TEST
from policies.model import (
    BasicInjector,
    BearerInjector,
    CookieInjector,
    FormInjector,
    HeaderInjector,
    JsonInjector,
    PathInjector,
    QueryInjector,
    SwapInjector,
)
from policies.pointer import pointer_text

if TYPE_CHECKING:
    from policies.matcher import Policy

DENIALS: Final = ("route_denied", "method_denied", "path_denied", "access_denied")


@dataclass(frozen=True, slots=True)
class PolicyTest:
    """One example. Either `expected_code` or `expected_route` is set."""

    place: Place
    workload: str
    method: str
    url: str
    host: str
    port: int
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    listener: str | None = None
    """The reverse listener it is sent to; then host and port say nothing."""
    expected_code: str | None = None
    expected_route: str | None = None
    expected_inject: tuple[str, ...] | None = None
    expected_rule: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """An example that came out otherwise."""

    test: PolicyTest
    came: str

    def __str__(self) -> str:
        wanted = self.test.expected_code or f"route {self.test.expected_route}"
        return f"{self.test.place}: {self.test.workload} {self.test.method} {self.test.url}: expected {wanted}, came {self.came}"


@dataclass(frozen=True, slots=True)
class TestReport:
    """What came of all examples."""

    __test__ = False  # not a test class, whatever its name

    passed: int
    failures: tuple[Failure, ...]
    uncovered_routes: tuple[str, ...]
    uncovered_denies: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.failures


def read_test(node: Node, faults: Faults) -> PolicyTest | None:
    """One item of `tests:`."""
    keys = Fields(node, faults, "a test", known=TEST, later=LATER["test"])
    if not isinstance(node, MappingNode) or not keys.require("as", "request", "expect"):
        return None
    workload, request = keys.text("as"), keys.text("request")
    if workload is None or request is None:
        return None
    method, _, url = request.partition(" ")
    split = urlsplit(url)
    try:
        port = split.port or 443
    except ValueError:
        port = 0
    if not method.isupper() or split.scheme != "https" or not split.hostname or not port:
        faults.add(keys.place_of("request"), f"{request!r} is not of the form METHOD https://host/path")
        return None
    # The path as written: urlsplit keeps it raw, and an empty one is sent as /.
    code, route, inject, rule = _expect(keys)
    if code is None and route is None:
        return None
    return PolicyTest(
        node.place,
        workload,
        method,
        url,
        split.hostname,
        port,
        split.path or "/",
        _headers(keys),
        keys.text("listener"),
        code,
        route,
        inject,
        rule,
    )


def _expect(keys: Fields) -> tuple[str | None, str | None, tuple[str, ...] | None, str | None]:
    node = keys.node("expect")
    if isinstance(node, Scalar):
        return keys.choice("expect", DENIALS), None, None, None
    if node is None:
        return None, None, None, None
    inner = Fields(node, keys.faults, "expect", known=EXPECT)
    inner.require("route")
    inject = tuple(scalar.text for scalar in inner.texts("inject")) if "inject" in inner else None
    return None, inner.text("route"), inject, inner.text("rule")


def _headers(keys: Fields) -> Mapping[str, str]:
    node = keys.node("headers")
    if not isinstance(node, MappingNode):
        return {}
    return {entry.key.lower(): entry.value.text for entry in node if isinstance(entry.value, Scalar)}


def _puts(grant: Grant, headers: Mapping[str, str], parameters: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Names of what would be put: headers as injected, and `query:NAME`, `path`, `cookie:NAME`, `json:POINTER`,
    `form:NAME`. An example has no body, so a placeholder in one is never there.
    """
    names: list[str] = []
    for injector in grant.route.inject:
        match injector:
            case HeaderInjector(name=name):
                names.append(name)
            case BearerInjector() | BasicInjector():
                names.append("Authorization")
            case QueryInjector(name=name):
                names.append(f"query:{name}")
            case PathInjector():
                names.append("path")
            case CookieInjector(name=name):
                names.append(f"cookie:{name}")
            case JsonInjector(pointer=pointer):
                names.append(f"json:{pointer_text(pointer)}")
            case FormInjector(name=name):
                names.append(f"form:{name}")
            case SwapInjector():
                whole = {injector.placeholder, f"Bearer {injector.placeholder}"}
                names += [name for name in injector.headers if headers.get(name.lower(), "") in whole]
                names += [
                    f"query:{name}" for name, value in parameters if name in injector.parameters and value in whole
                ]
    return tuple(names)


def run_tests(policy: Policy) -> TestReport:
    """Runs every example of a policy."""
    failures: list[Failure] = []
    routes, denies = set[str](), set[str]()
    for test in policy.tests:
        answer = policy.decide(
            Question(test.workload, test.host, test.port, test.method, test.path, listener=test.listener)
        )
        if isinstance(answer, Denial):
            if answer.route and answer.rule and answer.rule.startswith("deny"):
                denies.add(f"{answer.route} {answer.rule}")
            if answer.code != test.expected_code:
                failures.append(Failure(test, answer.code))
            continue
        routes.add(answer.route.name)
        puts = _puts(answer, test.headers, parse_qsl(urlsplit(test.url).query, keep_blank_values=True))
        came = f"route {answer.route.name}"
        if answer.route.name != test.expected_route:
            failures.append(Failure(test, came))
        elif test.expected_rule is not None and answer.rule != test.expected_rule:
            failures.append(Failure(test, f"{came} by {answer.rule}"))
        elif test.expected_inject is not None and sorted(map(str.lower, puts)) != sorted(
            map(str.lower, test.expected_inject)
        ):
            failures.append(Failure(test, f"{came} putting {', '.join(puts) or 'nothing'}"))
    all_denies = [f"{route.name} {deny.rule}" for route in policy.routes.values() for deny in route.deny]
    return TestReport(
        len(policy.tests) - len(failures),
        tuple(failures),
        tuple(name for name in policy.routes if name not in routes),
        tuple(name for name in all_denies if name not in denies),
    )
