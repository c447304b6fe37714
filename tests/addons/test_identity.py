"""Proving who calls."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from addons.exchange import Connection, Listener, WorkloadIdentity
from addons.head import RequestHead
from addons.identity import prove, still_proven
from addons.identity.budget import FailureBudget
from addons.refusal import Code, Refusal
from policies import Policy, load_policy

KEY = "ost_abc"
HASH = hashlib.sha256(KEY.encode()).hexdigest()


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    path = tmp_path / "p.yaml"
    path.write_text(
        f"workloads:\n  keyed: {{proofs: {{key_hash: 'sha256:{HASH}'}}}}\n  open: {{proofs: {{any: true}}}}\n  local: {{proofs: {{peer: {{uid: 5}}}}}}\n"
        "  twin1: {proofs: {peer: {uid: 7}}}\n  twin2: {proofs: [{peer: {uid: 7}}]}\nroutes: {}\n".replace(
            "routes: {}\n", ""
        )
    )
    return load_policy([path])


def head(*values: str) -> RequestHead:
    return RequestHead(
        "CONNECT", b"a:443", tuple((b"Proxy-Authorization", value.encode()) for value in values), http2=False
    )


def at(workload: str | None = None, uid: int | None = None) -> Connection:
    return Connection("c", Listener("l", workload, unix=uid is not None), "s", uid)


def code(connection: Connection, policy: Policy, *values: str) -> Code:
    with pytest.raises(Refusal) as refused:
        prove(connection, policy, head(*values), extra_keys={})
    return refused.value.code


def test_keys(policy: Policy) -> None:
    basic = base64.b64encode(f"x:{KEY}".encode()).decode()
    for value in (f"Bearer {KEY}", f"BASIC {basic}"):
        assert prove(at(), policy, head(value), extra_keys={}) == WorkloadIdentity("keyed", "key_hash", HASH)
    assert code(at(), policy) is Code.PROOF_REQUIRED
    assert code(at(), policy, "Basic " + base64.b64encode(b"user:").decode()) is Code.PROOF_REQUIRED
    for value in ("Bearer nope", "Basic ???", "Basic bm9jb2xvbg==", "Negotiate x", "Bearer " + "x" * 5000):
        assert code(at(), policy, value) is Code.PROOF_INVALID
    assert code(at(), policy, f"Bearer {KEY}", f"Bearer {KEY}") is Code.PROOF_INVALID


def test_extra_keys_of_a_private_proxy(policy: Policy) -> None:
    sha = hashlib.sha256(b"private").hexdigest()
    assert prove(at(), policy, head("Bearer private"), extra_keys={sha: "open"}).workload == "open"
    # Without the key nothing but a listener that names it proves `any`.
    assert code(at(), policy) is Code.PROOF_REQUIRED


def test_listeners_and_peers(policy: Policy) -> None:
    assert prove(at("open"), policy, head(), extra_keys={}) == WorkloadIdentity("open", "any")
    assert code(at("keyed"), policy) is Code.PROOF_REQUIRED
    assert prove(at(uid=5), policy, head(), extra_keys={}) == WorkloadIdentity("local", "peer")
    assert code(at(uid=6), policy) is Code.PROOF_REQUIRED
    assert code(at(uid=7), policy) is Code.PROOF_REQUIRED
    assert prove(at("twin2", 7), policy, head(), extra_keys={}).workload == "twin2"
    assert code(at(uid=5), policy, f"Bearer {KEY}") is Code.PROOF_INVALID
    assert code(at("open"), policy, f"Bearer {KEY}") is Code.PROOF_INVALID


def test_still_proven(policy: Policy, tmp_path: Path) -> None:
    empty = Policy("v", {}, {})
    for identity, connection in (
        (WorkloadIdentity("keyed", "key_hash", HASH), at()),
        (WorkloadIdentity("open", "any"), at("open")),
        (WorkloadIdentity("local", "peer"), at(uid=5)),
    ):
        assert still_proven(identity, connection, policy, extra_keys={})
        assert not still_proven(identity, connection, empty, extra_keys={})


def test_the_failure_budget() -> None:
    class Moves:
        now = 0.0

        def monotonic_s(self) -> float:
            return self.now

        def wall_s(self) -> float:
            return self.now

    clock = Moves()
    budget = FailureBudget(clock, allowed=2, window_s=10, capacity=2)
    assert [budget.spend("a") for _ in range(4)] == [True, True, False, False]
    assert budget.spend("b")
    clock.now = 11
    assert budget.spend("a")
    assert budget.spend("c")
    assert len(budget._failed) == 2
