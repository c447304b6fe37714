"""Every operation, every role, every order of faults: decided by the head alone."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import pytest

from ostiary.admin.control import Control
from ostiary.admin.judge import Api, Denied, Granted, Head
from ostiary.admin.pages import ANY_HOST, loopback
from ostiary.admin.problems import Kind
from ostiary.admin.table import OPERATIONS, Operation
from ostiary.admin.tokens import COVERS, Tokens
from ostiary.settings.model import ROLES, AdminToken

NO_CONTROL = cast("Control", None)  # a judgement asks nothing of the proxy
TOKENS = Tokens(
    [AdminToken(role, hashlib.sha256(role.encode()).hexdigest(), frozenset({role})) for role in ROLES]
    + [AdminToken("nobody", hashlib.sha256(b"nobody").hexdigest(), frozenset())]
)
ADMIN = Api("admin", OPERATIONS, loopback(("127.0.0.1", 9901)), TOKENS, NO_CONTROL)
BARE = Api("admin", OPERATIONS, loopback(("127.0.0.1", 9901)), Tokens([]), NO_CONTROL)
PROBES = Api("probes", [one for one in OPERATIONS if one.probe], ANY_HOST, None, NO_CONTROL)


def judge(api: Api, method: str, target: str, token: str | None = None, **given: Any) -> Granted | Denied:
    authorization = [f"Bearer {token}"] if token is not None else []
    return api.judge(
        Head(method, target, "127.0.0.1", **{"hosts": ["127.0.0.1:9901"], "authorization": authorization, **given})
    )


def kind(found: Granted | Denied) -> Kind | None:
    return found.problem.kind if isinstance(found, Denied) else None


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_who_may_do_what(operation: Operation) -> None:
    for role in (*ROLES, "nobody"):
        found = judge(ADMIN, operation.method, operation.path, role)
        if operation.role is None or operation.role in COVERS.get(role, ()):
            assert isinstance(found, Granted), (role, found)
            assert found.operation is operation
            assert found.call.by == ("" if operation.role is None else role)
        else:
            assert isinstance(found, Denied)
            assert (found.problem.kind, found.by) == (Kind.ROLE_DENIED, role)
    without = judge(ADMIN, operation.method, operation.path)
    assert kind(without) is (Kind.TOKEN_REQUIRED if operation.role else None)
    wrong = judge(ADMIN, operation.method, operation.path, "wrong")
    assert kind(wrong) is (Kind.TOKEN_INVALID if operation.role else None)
    assert kind(judge(BARE, operation.method, operation.path, "admin")) is (Kind.NO_TOKENS if operation.role else None)
    # The probes listener has the probes and nothing else.
    assert kind(judge(PROBES, operation.method, operation.path, "admin")) is (
        None if operation.probe else Kind.NOT_FOUND
    )


def test_the_three_probes_are_what_needs_no_token() -> None:
    assert {one.path for one in OPERATIONS if one.role is None} == {"/healthz", "/readyz", "/metrics"}
    assert {one.path for one in OPERATIONS if one.probe} == {"/healthz", "/readyz", "/metrics"}
    assert all(one.method == "GET" for one in OPERATIONS if one.role in {None, "viewer"})


def test_without_a_token_nobody_learns_which_paths_there_are() -> None:
    for path in ("/reload", "/nothing", "/routes/", "//routes", "/%72outes", "/Routes"):
        assert kind(judge(ADMIN, "GET", path)) is Kind.TOKEN_REQUIRED
        assert kind(judge(BARE, "GET", path)) is Kind.NO_TOKENS
    assert kind(judge(ADMIN, "GET", "/nothing", "nobody")) is Kind.NOT_FOUND
    for path in ("/routes/", "//routes", "/%72outes", "/Routes", "/routes;x"):
        assert kind(judge(ADMIN, "GET", path, "admin")) is Kind.NOT_FOUND


def test_methods() -> None:
    found = judge(ADMIN, "DELETE", "/reload", "viewer")
    assert isinstance(found, Denied)
    assert (found.problem.kind, found.problem.headers) == (Kind.METHOD_NOT_ALLOWED, (("Allow", "POST"),))
    assert kind(judge(ADMIN, "DELETE", "/reload")) is Kind.TOKEN_REQUIRED
    assert kind(judge(ADMIN, "POST", "/healthz")) is Kind.METHOD_NOT_ALLOWED
    assert kind(judge(ADMIN, "HEAD", "/healthz")) is Kind.METHOD_NOT_ALLOWED
    assert kind(judge(ADMIN, "get", "/healthz")) is Kind.METHOD_NOT_ALLOWED


def test_the_query_changes_nothing() -> None:
    assert isinstance(judge(ADMIN, "GET", "/routes?x=/reload", "viewer"), Granted)
    assert kind(judge(ADMIN, "GET", "/routes?access_token=viewer")) is Kind.TOKEN_REQUIRED


def test_form_then_page_then_token() -> None:
    for target in ("http://127.0.0.1:9901/routes", "*", "", "127.0.0.1:9901"):
        assert kind(judge(ADMIN, "GET", target, "admin")) is Kind.BAD_REQUEST
    for hosts in ([], ["127.0.0.1:9901", "127.0.0.1:9901"]):
        assert kind(judge(ADMIN, "GET", "/routes", "admin", hosts=hosts)) is Kind.BAD_REQUEST
    assert kind(judge(ADMIN, "GET", "/healthz", hosts=[], http_1_0=True)) is Kind.HOST_MISMATCH
    assert kind(judge(PROBES, "GET", "/healthz", hosts=[], http_1_0=True)) is None
    assert kind(judge(PROBES, "GET", "/healthz", hosts=[])) is Kind.BAD_REQUEST
    evil = {"hosts": ["evil.test:9901"]}
    for path in ("/healthz", "/metrics", "/routes", "/nothing"):
        assert kind(judge(ADMIN, "GET", path, "admin", **evil)) is Kind.HOST_MISMATCH
        assert kind(judge(ADMIN, "GET", path, "admin", origins=["http://evil.test"])) is Kind.CROSS_SITE
        assert kind(judge(ADMIN, "GET", path, sites=["same-site"])) is Kind.CROSS_SITE


def test_a_refusal_says_how_to_add_a_token_and_quotes_nothing() -> None:
    for api, token in ((ADMIN, None), (ADMIN, "cnry-typed-wrong"), (BARE, "cnry-typed-wrong")):
        found = judge(api, "GET", "/routes", token)
        assert isinstance(found, Denied)
        assert "ostiary key mint --admin NAME" in found.problem.detail
        assert "cnry" not in repr(found)
    assert "cnry" not in repr(Head("GET", "/", "x", authorization=["Bearer cnry"]))
