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


def test_g29_the_scan_sees_each_place(ostiary: Callable[..., Ostiary]) -> None:
    inherited = canary("planted")
    # From nothing: what is looked for in the environment is that of this very process.
    proxy = ostiary(direct=True, environ={"LEFT_BEHIND": f"x={inherited}"})
    assert proxy.leaks() == []
    proxy.canaries.append(inherited)
    assert len(proxy.leaks()) == 1
    proxy.canaries.remove(inherited)

    def plant(mark: str) -> dict[str, Callable[[], object]]:
        record = json.dumps({"event": "planted", "path": f"/v1?key={mark}"}).encode()
        audit = proxy.folder / "audit.jsonl"
        return {
            "stdout": lambda: proxy.stdout.extend(mark.encode()),
            "stderr": lambda: proxy.stderr.extend(f"Traceback: {mark}".encode()),
            "audit": lambda: audit.write_bytes(audit.read_bytes() + record + b"\n"),
            "temporary": lambda: (proxy.folder / "tmp" / "left").write_text(mark),
            "core": lambda: (proxy.folder / "core.1").write_bytes(b"\x00" + mark.encode()),
            "admin": lambda: proxy.told.append(("/metrics", mark.encode())),
            "refusal": lambda: REFUSALS.append(mark.encode()),
        }

    for place in plant(""):
        mark = canary("planted")
        plant(mark)[place]()
        proxy.canaries.append(mark)
        found = proxy.leaks()
        proxy.canaries.remove(mark)
        assert len(found) == 1, (place, found)


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
