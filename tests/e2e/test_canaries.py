"""G29: the scan that ends every process test finds what it looks for, in each place and each form."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from urllib.parse import quote

import pytest

from tests.harness.canaries import canary
from tests.harness.client import REFUSALS
from tests.harness.ostiary_process import Ostiary


@pytest.mark.parametrize("place", ["stdout", "stderr", "audit", "temporary", "core", "admin", "refusal", "environ"])
def test_g29_the_scan_sees_each_place(ostiary: Callable[..., Ostiary], place: str) -> None:
    mark = canary("planted")
    given: dict[str, object] = {}
    if place == "environ":
        given["environ"] = {"LEFT_BEHIND": f"x={mark}"}
    proxy = ostiary(**given)
    assert proxy.leaks() == []
    proxy.canaries.append(mark)
    match place:
        case "stdout":
            proxy.stdout += mark.encode()
        case "stderr":
            proxy.stderr += f"Traceback: {mark}".encode()
        case "audit":
            with (proxy.folder / "audit.jsonl").open("a") as handle:
                handle.write(json.dumps({"event": "planted", "path": f"/v1?key={mark}"}) + "\n")
        case "temporary":
            (proxy.folder / "tmp" / "left").write_text(mark)
        case "core":
            (proxy.folder / "core.1").write_bytes(b"\x00" + mark.encode())
        case "admin":
            proxy.told.append(("/metrics", mark.encode()))
        case "refusal":
            REFUSALS.append(mark.encode())
        case _:
            pass
    found = proxy.leaks()
    proxy.canaries.remove(mark)
    assert len(found) == 1, found


@pytest.mark.parametrize(
    "form",
    [
        lambda mark: mark,
        lambda mark: quote(mark, safe=""),
        lambda mark: mark.encode().hex(),
        lambda mark: base64.b64encode(mark.encode()).decode(),
        lambda mark: base64.b64encode(f"user:{mark}".encode()).decode(),
        lambda mark: base64.urlsafe_b64encode(f"ab{mark}??".encode()).decode(),
    ],
)
def test_g29_the_scan_sees_each_form(ostiary: Callable[..., Ostiary], form: Callable[[str], str]) -> None:
    proxy, mark = ostiary(start=False), canary("form/+")
    (proxy.folder / "left").write_text(form(mark))
    proxy.canaries.append(mark)
    assert proxy.leaks() != []
    proxy.canaries.clear()
