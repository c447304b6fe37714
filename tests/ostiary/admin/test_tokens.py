"""Tokens are found by their hash alone, and roles cover what they say."""

from __future__ import annotations

import hashlib

import pytest

from ostiary.admin.tokens import COVERS, MAX_TOKEN, Caller, Tokens, bearer
from ostiary.settings.model import ROLES, AdminToken


def token(name: str, value: str, *roles: str) -> AdminToken:
    return AdminToken(name, hashlib.sha256(value.encode()).hexdigest(), frozenset(roles))


def test_who_calls() -> None:
    tokens = Tokens([token("ci", "ost_one", "operator"), token("eyes", "ost_two", "viewer")])
    found = tokens.find("ost_two")
    assert found is not None
    assert (found.name, found.roles) == ("eyes", frozenset({"viewer"}))
    assert tokens.find("ost_on") is None
    assert tokens.find("") is None
    assert tokens.find("x" * (MAX_TOKEN + 1)) is None
    assert tokens
    assert not Tokens([])


def test_every_hash_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    import hmac

    whole = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        seen.append(one)
        return whole(one, other)

    monkeypatch.setattr("ostiary.admin.tokens.hmac.compare_digest", compare)
    tokens = Tokens([token(str(number), f"ost_{number}", "viewer") for number in range(5)])
    for value in ("ost_0", "ost_4", "ost_none"):
        seen.clear()
        tokens.find(value)
        assert len(seen) == 5


def test_what_each_role_covers() -> None:
    assert set(COVERS) == set(ROLES)
    may = {role: {asked for asked in ROLES if Caller("x", frozenset({role})).may(asked)} for role in ROLES}
    assert may == {
        "viewer": {"viewer"},
        "operator": {"viewer", "operator"},
        "approver": {"viewer", "approver"},
        "admin": set(ROLES),
    }
    assert Caller("x", frozenset({"operator", "approver"})).may("approver")
    assert not Caller("x", frozenset()).may("viewer")


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        (["Bearer ost_x"], "ost_x"),
        (["bearer   ost_x "], "ost_x"),
        (["Bearer"], None),
        (["Bearer "], None),
        (["Basic b3N0X3g="], None),
        (["ost_x"], None),
        (["Bearer ost_x", "Bearer ost_x"], None),
        (["Bearer ost_\u00e9"], None),
        ([], None),
    ],
)
def test_bearer(fields: list[str], found: str | None) -> None:
    assert bearer(fields) == found
