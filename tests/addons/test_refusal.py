"""Refusals: every code has a row, and every answer says the same thing in each place."""

from __future__ import annotations

import json

import pytest

from addons.refusal import TABLE, Code, Refusal, answer


def test_every_code_has_a_row() -> None:
    assert set(TABLE) == set(Code)


@pytest.mark.parametrize("code", list(Code))
def test_an_answer_says_its_code_everywhere(code: Code) -> None:
    reply = answer(Refusal(code, "No."), "0190-id")
    fields = dict(reply.headers)
    assert json.loads(reply.body) == {"error": "No.", "code": code.value, "request_id": "0190-id"}
    assert fields["X-Ostiary-Error"] == code.value
    assert fields["X-Request-Id"] == "0190-id"
    assert fields["Proxy-Status"] == f'ostiary; error={TABLE[code].proxy_error}; details="{code.value}"'
    assert fields["Content-Type"] == "application/json"
    assert int(fields["Content-Length"]) == len(reply.body)
    assert reply.status == TABLE[code].status


def test_proof_refusals_challenge_with_both_schemes() -> None:
    challenges = [
        value
        for name, value in answer(Refusal(Code.PROOF_REQUIRED, "Who?"), "id").headers
        if name == "Proxy-Authenticate"
    ]
    assert [challenge.split()[0] for challenge in challenges] == ["Basic", "Bearer"]


def test_retry_after_is_rounded_up_and_never_zero() -> None:
    for seconds, shown in ((0.1, "1"), (1.2, "2"), (30, "30")):
        assert (
            dict(answer(Refusal(Code.SECRET_UNAVAILABLE, "Later.", retry_after_s=seconds), "id").headers)["Retry-After"]
            == shown
        )
