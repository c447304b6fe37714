"""docs/reference/presets.md is what the tool writes from the presets there are."""

from __future__ import annotations

from tools.presets import TARGET, render


def test_the_page_is_current() -> None:
    assert TARGET.read_text() == render(), "run python -m tools.presets"
