"""The matcher: the same answers as a naive reading of the rules, at the price of ten routes for ten thousand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Denial, Grant, Policy, Question, load_policy
from policies.faults import Place
from policies.load import _tie
from policies.model import AllowEntry, DenyEntry, HostPattern, Route
from policies.paths import parse_pattern, read_path

METHODS = ("GET", "POST", "TRACE")
PATTERNS = ("/**", "/a", "/a/*", "/a/**", "/a/b", "/*/b", "/a/b*", "/c%2fd")
PATHS = ("/", "/a", "/a/", "/a/b", "/a/bc", "/a/b/c", "/x/b", "/c%2fd", "/a/%62", "/a/../b", "/a//b", "/c")
HOSTS = ("x.test", "*.test", "y.test")

route_strategy = st.builds(
    lambda number, hosts, methods, paths, names, deny: Route(
        name=f"r{number}",
        place=Place("p"),
        hosts=tuple(HostPattern(host) for host in hosts),
        port=443,
        allow=(AllowEntry(frozenset(names), "allow[0]"),),
        deny=tuple(DenyEntry("deny[0]", None, None, (parse_pattern(path),)) for path in deny),
        methods=frozenset(methods) if methods else None,
        paths=tuple(parse_pattern(path) for path in paths) if paths else None,
    ),
    st.integers(0, 10**6),
    st.sets(st.sampled_from(HOSTS), min_size=1, max_size=2),
    st.sets(st.sampled_from(METHODS[:2]), max_size=2),
    st.sets(st.sampled_from(PATTERNS), max_size=3),
    st.sets(st.sampled_from(["v", "w"]), min_size=1, max_size=2),
    st.sets(st.sampled_from(PATTERNS[1:]), max_size=1),
)


def naive(routes: list[Route], question: Question) -> str:
    """The rules as the reference tells them, one route after the other."""
    mine = []
    for route in routes:
        named = any(question.workload in entry.workloads for entry in route.allow)
        for host in route.hosts:
            exact = host.text == question.host
            wild = host.wildcard and question.host.partition(".")[2] == host.text[2:]
            if named and (exact or wild):
                mine.append((exact, route))
    if not mine:
        return "route_denied"
    by_method = [
        (exact, route)
        for exact, route in mine
        if (
            question.method in route.methods
            if route.methods is not None
            else question.method not in {"TRACE", "CONNECT"}
        )
    ]
    if not by_method:
        return "method_denied"
    best: tuple[tuple[bool, tuple[int, ...], bool], Route] | None = None
    for exact, route in by_method:
        every = [*(route.paths or ()), *(path for deny in route.deny for path in deny.paths or ())]
        strict = any(not pattern.everything for pattern in every)
        canonical = read_path(question.path, encoded_slash=any(pattern.encoded_slash for pattern in every))
        for pattern in route.paths or (parse_pattern("/**"),):
            if strict and (canonical is None or not pattern.matches(canonical)):
                continue
            order = (exact, pattern.rank, route.methods is not None)
            if best is None or order > best[0]:
                best = (order, route)
    if best is None:
        return "path_denied"
    route = best[1]
    every = [*(route.paths or ()), *(path for deny in route.deny for path in deny.paths or ())]
    canonical = read_path(question.path, encoded_slash=any(pattern.encoded_slash for pattern in every))
    for deny in route.deny:
        if canonical is None or any(
            pattern.matches(canonical) or pattern.matches(canonical.rstrip("/") or "/") for pattern in deny.paths or ()
        ):
            return "path_denied"
    return route.name


@settings(max_examples=300, deadline=None)
@given(st.lists(route_strategy, max_size=6, unique_by=lambda route: route.name))
def test_against_a_naive_reading(candidates: list[Route]) -> None:
    routes: list[Route] = []
    for candidate in candidates:
        if not any(
            {host.text for host in candidate.hosts} & {host.text for host in other.hosts} and _tie(candidate, other)
            for other in routes
        ):
            routes.append(candidate)
    policy = Policy("v", {}, {route.name: route for route in routes})
    for host in ("x.test", "y.test", "z.test", "other"):
        for method in METHODS:
            for path in PATHS:
                for workload in ("v", "nobody"):
                    question = Question(workload, host, 443, method, path)
                    answer = policy.decide(question)
                    shown = answer.route.name if isinstance(answer, Grant) else answer.code
                    assert shown == naive(routes, question), (question, answer)


def test_ten_thousand_routes_match_in_the_time_of_ten(tmp_path: Path) -> None:
    def policy(count: int) -> Policy:
        path = tmp_path / f"{count}.yaml"
        routes = "".join(
            f'  r{index}: {{match: {{host: api.test, paths: ["/v1/things/{index}/**"]}}, allow: w}}\n'
            for index in range(count)
        )
        path.write_text("workloads: {w: {proofs: {any: true}}}\nroutes:\n" + routes)
        return load_policy([path])

    def cost(of: Policy, count: int) -> float:
        question = Question("w", "api.test", 443, "GET", f"/v1/things/{count - 1}/x")
        assert isinstance(of.decide(question), Grant)
        best = 1e9
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(500):
                of.decide(question)
            best = min(best, time.perf_counter() - began)
        return best

    small, large = policy(10), policy(10_000)
    # A linear matcher would take a thousand times as long; the bound leaves room for a busy machine.
    assert cost(large, 10_000) < 5 * cost(small, 10)


def test_serving_and_proofs(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "workloads:\n  a: {proofs: [{any: true}]}\n  b: {proofs: [{peer: {uid: 5}}, {key_hash: 'sha256:"
        + "1" * 64
        + "'}]}\n"
        "routes:\n  r: {match: {host: ['*.x.test', y.test]}, allow: b}\n"
    )
    policy = load_policy([path])
    assert policy.serves("a.x.test", 443)
    assert not policy.serves("x.test", 443)
    assert not policy.serves("y.test", 444)
    assert policy.serves_workload("y.test", 443, "b")
    assert not policy.serves_workload("y.test", 443, "a")
    assert policy.workload_for_key("1" * 64) == "b"
    assert policy.workload_for_key("2" * 64) is None
    assert policy.workloads_for_peer(5) == ("b",)
    assert policy.workloads_with_any == ("a",)
    assert isinstance(policy.decide(Question("a", "y.test", 443, "GET", "/")), Denial)


def test_what_a_caller_of_an_authority_is_met_with(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "workloads: {a: {proofs: {any: true}}}\n"
        "routes:\n"
        "  one: {match: {host: x.test, paths: /a}, allow: a, http2: never}\n"
        "  two: {match: {host: x.test, paths: /b}, allow: a}\n"
        "  all: {match: {host: y.test, paths: /a}, allow: a, http2: never}\n"
        "  wild: {match: {host: '*.w.test', port: 8443}, allow: a, http2: prefer}\n"
        "  exact: {match: {host: e.w.test, port: 8443, paths: /a}, allow: a, http2: never}\n"
    )
    policy = load_policy([path])
    found = {(host, port): policy.http2(host, port) for host in ("x.test", "y.test", "w.test", "a.w.test", "e.w.test", "a.b.w.test") for port in (443, 8443)}  # fmt: skip
    assert {key: word for key, word in found.items() if word != "auto"} == {
        ("y.test", 443): "never",
        ("a.w.test", 8443): "prefer",
        ("e.w.test", 8443): "prefer",
    }


@pytest.mark.parametrize("order", [0, 1])
def test_several_files_make_one_policy(tmp_path: Path, order: int) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("workloads: {w: {proofs: {any: true}}}\n")
    two.write_text("routes: {r: {match: {host: a.test}, allow: w}}\n")
    policy = load_policy([one, two] if order else [two, one])
    assert policy.serves_workload("a.test", 443, "w")
    from policies import FaultError

    two.write_text("workloads: {w: {proofs: {any: true}}}\n")
    with pytest.raises(FaultError, match="workload 'w' is already defined at"):
        load_policy([one, two])
