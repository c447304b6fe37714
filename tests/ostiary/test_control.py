"""What the admin API is given of a proxy: no path, no grant, no secret, and no thread too many."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

from addons.parts import Parts, PolicyInForce
from ostiary.admin import AdminRefusal, Health, RouteSummary
from ostiary.control import control_of
from ostiary.reload import Reloader
from policies import load_policy

POLICY = """
workloads: {w: {proofs: {any: true}}}
routes:
  r: {match: {host: [a.test, b.test], port: 8443, paths: /cnry-path}, allow: w, secret: {path: secret/cnry-secret, field: cnry-field}, inject: {bearer: "{secret}"}}
  o: {match: {host: "*.c.test"}, allow: w, mode: observe}
"""


class Told:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.running = self.most = 0
        self.lock = threading.Lock()

    def refused(self, fields: dict[str, Any]) -> None:
        self.records.append(fields)

    def render(self, accept: str) -> tuple[bytes, str]:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        threading.Event().wait(0.01)
        with self.lock:
            self.running -= 1
        return accept.encode(), "text/plain"


def control_and(told: Told, folder: Path) -> Any:
    file = folder / "policy.yaml"
    file.write_text(POLICY)
    parts = cast(
        "Parts",
        type("P", (), {"in_force": PolicyInForce(load_policy([file])), "audit": told, "metrics": told})(),
    )
    health = cast("Health", type("H", (), {"readiness": None})())
    return control_of(parts, cast("Reloader", type("R", (), {"reload": None})()), health)


async def test_what_is_told_of_a_route(tmp_path: Path) -> None:
    found = await control_and(Told(), tmp_path).routes()
    assert set(found.routes) == {
        RouteSummary("r", ("a.test", "b.test"), 8443, "enforce"),
        RouteSummary("o", ("*.c.test",), 443, "observe"),
    }
    assert "cnry" not in repr(found)


async def test_many_scrapes_take_one_thread(tmp_path: Path) -> None:
    told = Told()
    control = control_and(told, tmp_path)
    found = await asyncio.gather(*(control.metrics(str(number)) for number in range(10)))
    assert [body for body, _ in found] == [str(number).encode() for number in range(10)]
    assert told.most == 1


async def test_a_refusal_as_the_audit_has_it(tmp_path: Path) -> None:
    told = Told()
    control = control_and(told, tmp_path)
    control.refused(AdminRefusal("admin", "127.0.0.1", "GET", "/routes", "token_invalid", 401))
    control.refused(AdminRefusal("admin", "unix:uid=7", "POST", "/reload", "role_denied", 403, "eyes"))
    assert told.records == [
        {
            "source": "127.0.0.1",
            "listener": "admin",
            "method": "GET",
            "path": "/routes",
            "status": 401,
            "outcome": "refused",
            "code": "token_invalid",
        },
        {
            "source": "unix:uid=7",
            "listener": "admin",
            "method": "POST",
            "path": "/reload",
            "status": 403,
            "outcome": "refused",
            "code": "role_denied",
            "by": "eyes",
        },
    ]
