"""The guide for several teams is walked through: its files load together, and its faults are those that are told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ostiary.settings import load_all
from policies import FaultError, run_tests

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "teams.md").read_text()
SETTINGS, BASE, PAY, FAULTS = re.findall(r"^```(?:yaml \w+|text)\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def test_the_guide_for_teams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pay = tmp_path / "teams" / "pay" / "stripe.yaml"
    pay.parent.mkdir(parents=True)
    (tmp_path / "policies").mkdir()
    (tmp_path / "ostiary.yaml").write_text(SETTINGS)
    (tmp_path / "policies" / "base.yaml").write_text(BASE)
    pay.write_text(PAY)
    _, policy = load_all(Path("ostiary.yaml"), {})
    assert run_tests(policy).ok
    pay.write_text(PAY.replace("allow: pay-web", "allow: ads-web").replace("secret/pay/stripe", "secret/ads/stripe"))
    with pytest.raises(FaultError) as error:
        load_all(Path("ostiary.yaml"), {})
    assert "".join(f"{fault}\n" for fault in error.value.faults) == FAULTS
