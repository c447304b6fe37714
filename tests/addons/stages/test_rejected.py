"""A 401 to a request that is not sent again: its secrets are looked at all the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from addons.credentials import Openings, SealedCredential
from addons.exchange import Connection, Exchange, Listener
from addons.head import RequestHead
from addons.injection import plan_for
from addons.stages.plans import RoutePlan
from addons.stages.rejected import RejectedStage
from policies import Grant, Place
from policies.model import CredentialSpec, HostPattern, Route, SecretSpec, SwapInjector
from policies.pointer import Pointer
from policies.template import FieldRef, Template
from vault.store import SecretRef

SECRETS = {name: SecretSpec(path=f"secret/egress/{name}", field="key") for name in ("head", "body")}


def swap(name: str, *, header: str = "", pointer: Pointer = ()) -> SwapInjector:
    return SwapInjector(
        placeholder=f"placeholder-{name}",
        value=Template((FieldRef(name),)),
        headers=(header,) if header else (),
        pointers=(pointer,) if pointer else (),
    )


@pytest.mark.parametrize("used", [("body",), ("head",), ("head", "body")])
def test_a_placeholder_in_the_body_is_no_reason_not_to_look(used: tuple[str, ...]) -> None:
    spec = CredentialSpec("c", SECRETS)
    injectors = (swap("head", header="X-Key"), swap("body", pointer=("key",)))
    route = Route("r", Place("p.yaml", 1, 1), (HostPattern("a.test"),), 443, (), inject=injectors)
    plan = plan_for(route)
    fields = ((b"X-Key", b"placeholder-head"),) if "head" in used else ()
    exchange = Exchange(
        "id",
        Connection("c", Listener("l", None), "192.0.2.1"),
        cast("Any", None),
        RequestHead("POST", b"/", fields, http2=False),
        0.0,
    )
    exchange._facts[Grant] = SimpleNamespace(route=route, credential=spec, workload="billing")
    exchange.put(SealedCredential(spec, {name: cast("Any", name) for name in used}, (), ()))
    exchange.put(Openings(()))
    looked: list[tuple[str, str]] = []
    told: list[str] = []

    def suspect(ref: SecretRef, sealed: Any) -> None:
        looked.append((ref.name, sealed))

    source = cast("Any", SimpleNamespace(suspect=suspect))
    parts = SimpleNamespace(store_observer=SimpleNamespace(secret_rejected=told.append))
    stage = RejectedStage(
        cast("Any", parts),
        cast("Any", SimpleNamespace(exchange=lambda _: exchange)),
        cast("Any", SimpleNamespace(of=lambda *_: RoutePlan(plan, (), source))),
    )
    assert stage.rejected(cast("Any", None)) is None
    assert sorted(looked) == sorted((f"secret/egress/{name}", name) for name in used)
    assert told == ["not_replayable"]
