"""Checks of the policy: every route can be chosen by somebody, and the examples it carries hold."""

from __future__ import annotations

from collections.abc import Iterator

from ostiary.doctor.finding import Finding, Setup, counted
from policies import Grant, Policy, Question, run_tests
from policies.model import Route
from policies.paths import PathPattern

_ANY = "doctor-0"
"""A segment that only a wildcard matches."""
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")


def _samples(pattern: PathPattern) -> Iterator[str]:
    """Paths under a pattern, of several depths: `**` stands for one, two, three segments and none."""
    for depth in (1, 2, 3, 0):
        parts = pattern.text.removeprefix("/").split("/")
        spelt = [part if part != "**" else "/".join([_ANY] * depth) for part in parts]
        yield "/" + "/".join(part.replace("*", _ANY) for part in spelt if part)


def _questions(route: Route) -> Iterator[Question]:
    of_route = route.methods if route.methods is not None else frozenset(_METHODS)
    for entry in route.allow:
        methods = sorted(of_route & entry.methods if entry.methods is not None else of_route)
        paths = [path for pattern in (*(route.paths or ()), *(entry.paths or ())) for path in _samples(pattern)] or [
            f"/{_ANY}"
        ]
        names = [f"{_ANY}{host.text[1:]}" if host.wildcard else host.text for host in route.hosts if route.forward]
        ways: list[tuple[str, int, str | None]] = [(name, route.port, None) for name in names]
        for host, port, listener in (*ways, *(("", 0, listener) for listener in route.listeners)):
            for workload in sorted(entry.workloads):
                for method in methods:
                    for path in paths:
                        yield Question(workload, host, port, method, path, listener)


def _never(policy: Policy, route: Route) -> str | None:
    """Why no request is ever granted by a route; None where one is."""
    others: set[str] = set()
    denials: set[str] = set()
    for question in _questions(route):
        answer = policy.decide(question)
        if isinstance(answer, Grant) and answer.route is route:
            return None
        if isinstance(answer, Grant):
            others.add(answer.route.name)
        elif answer.route not in {None, route.name}:
            others.add(str(answer.route))
        elif answer.rule is not None and answer.rule.startswith("deny"):
            denials.add(answer.rule)
    if denials:
        return f"its own {', '.join(sorted(denials))} refuses whatever it matches"
    if others:
        return f"{', '.join(sorted(others)[:5])} always comes before it"
    return "nothing that it matches is granted"


async def reachable(setup: Setup) -> list[Finding]:
    """Every route grants some request to somebody who can prove it."""
    _, policy = setup.loaded
    bad: list[Finding] = []
    for route in policy.routes.values():
        why = _never(policy, route)
        if why is not None:
            found = f"route {route.name} ({route.place}) can never grant a request: {why}"
            mend = f"change or remove {route.name} at {route.place}; ostiary explain shows which route a request gets"
            bad.append(Finding("policy.reachable", "fail", found, mend))
    return bad or [
        Finding("policy.reachable", "ok", f"{counted(len(policy.routes), 'route')}, each can grant a request")
    ]


async def examples(setup: Setup) -> list[Finding]:
    """The examples that policies carry come out as they say."""
    _, policy = setup.loaded
    report = run_tests(policy)
    if not report.passed and not report.failures:
        return [Finding("policy.tests", "ok", "the policies carry no examples")]
    return [
        Finding("policy.tests", "fail", str(failure), f"mend the route or the example at {failure.test.place}")
        for failure in report.failures
    ] or [Finding("policy.tests", "ok", f"{counted(report.passed, 'example')} checked, all hold")]
