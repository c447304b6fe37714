"""Documents are tested: examples load, tables agree with the code, links lead somewhere."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from addons.audit import AuditConfig
from addons.evidence import AHEAD_S, DAY_S
from addons.refusal import TABLE, Code
from ostiary.ca import MAX_LEAVES
from ostiary.cli import parser
from ostiary.engines.held import MAX_BODY_BYTES
from ostiary.engines.held import MAX_BYTES as MAX_HELD_BYTES
from ostiary.engines.mitm.answered import LINGER_S, MAX_DISCARDED_BYTES
from ostiary.environment import ADDING, REPLACING
from ostiary.settings import load_settings
from ostiary.settings.keys import KNOWN
from ostiary.settings.model import Limits
from policies import load_policy, run_tests
from policies.document import MAX_FILE_BYTES
from policies.keys import TABLES
from tests.harness.pki import Pki
from vault.cache import FRUITLESS_S, SecretCache
from vault.hashicorp.config import VaultConfig
from vault.sealed import READ_DEADLINE_S

ROOT = Path(__file__).parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "bench" / "RESULTS.md"])
FENCE = re.compile(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str, str]]:
    found = []
    for path in DOCS:
        for number, match in enumerate(FENCE.finditer(path.read_text())):
            if match[1] == language:
                found.append((f"{path.relative_to(ROOT)}#{number}", match[2] or "", match[3]))
    return found


@pytest.mark.parametrize(
    ("where", "kind", "text"),
    blocks("yaml"),
    ids=lambda value: value if isinstance(value, str) and "#" in value and "\n" not in value else "",
)
def test_yaml_examples_load(where: str, kind: str, text: str, tmp_path: Path, pki: Pki) -> None:
    """Blocks are marked `policy`, `settings`, `manifest` of another program, or `fragment` for what is none of them."""
    assert kind in {"policy", "settings", "fragment", "manifest"}, f"{where} says not what it is"
    path = tmp_path / "example.yaml"
    path.write_text(text)
    for name in ("corp-roots.pem", "corp-ca.pem", "role-id"):
        (tmp_path / name).write_text("x")
    if "tls.crt" in text:
        made = pki.certificate("localhost")
        for name in ("tls.crt", "tls.key"):
            (tmp_path / name).write_bytes(made.read_bytes())
    if kind == "policy":
        policy = load_policy([path], variables={"env": "prod"})
        assert policy.routes or policy.default == "observe"  # a migration begins without one
        assert run_tests(policy).ok
    elif kind == "settings":
        (tmp_path / "policies").mkdir()
        (tmp_path / "policies" / "a.yaml").write_text("workloads: {w: {proofs: {any: true}}}\n")
        (tmp_path / "policy.yaml").write_text("workloads: {w: {proofs: {any: true}}}\n")
        # A policy at a path of the reader's machine is one here.
        path.write_text(text.replace("/etc/ostiary/policy.yaml", "policy.yaml").replace("/etc/ostiary-tls/", ""))
        load_settings(path, {"VAULT_TOKEN": "x"})


def test_every_guide_is_in_the_index_and_run_by_a_test() -> None:
    index = (ROOT / "docs/guides/README.md").read_text()
    tests = "".join(path.read_text() for room in ("guides", "clients") for path in (ROOT / "tests" / room).glob("*.py"))
    for path in (ROOT / "docs/guides").glob("*.md"):
        if path.name != "README.md":
            assert f"]({path.name})" in index, path.name
            runs = "```sh\n" in path.read_text()
            assert not runs or f'"{path.stem}"' in tests, f"no test follows {path.name}"


def test_every_link_leads_somewhere() -> None:
    for path in DOCS:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"


def test_error_codes() -> None:
    rows = re.findall(
        r"^\| `([a-z_]+)` \| ([0-9]{3}) \| `([a-z_]+)` \|",
        (ROOT / "docs/reference/errors.md").read_text(),
        re.MULTILINE,
    )
    assert {name: (int(status), kind) for name, status, kind in rows} == {
        code.value: (TABLE[code].status, TABLE[code].proxy_error) for code in Code
    }


def test_settings_keys() -> None:
    text = (ROOT / "docs/reference/settings.md").read_text()
    for section, keys in KNOWN.items():
        for key in keys:
            assert f"`{key}`" in text, f"{section}.{key}"


def test_policy_keys() -> None:
    text = (ROOT / "docs/reference/policy.md").read_text()
    for name, keys in TABLES.items():
        for key in keys:
            assert f"`{key}`" in text or f"{key}:" in text, f"{name}.{key}"


def test_limits() -> None:
    text = (ROOT / "docs/reference/limits.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| (\w+) \| ", text, re.MULTILINE))
    units = {"MiB": 1048576.0, "KiB": 1024.0, "s": 1.0, "": 1.0}
    values: dict[str, float] = {}
    for key, value in told.items():
        number, unit = re.fullmatch(r"(\d*)(\D*)", value.replace("none", "0")).groups()  # type: ignore[union-attr]  # None fails the test too
        values[key] = float(number) * units[unit]
    assert values == dataclasses.asdict(Limits())


def default_of(kind: type, name: str) -> float:
    found: Any = next(one.default for one in dataclasses.fields(kind) if one.name == name)
    return float(found)


def test_fixed_limits() -> None:
    text = " ".join((ROOT / "docs/reference/limits.md").read_text().partition("Fixed:")[2].split())
    for said, value, unit in (
        ("{} KiB and", MAX_DISCARDED_BYTES, 1024),
        ("and {} s of a refused body", LINGER_S, 1),
        ("a secret takes {} s", default_of(VaultConfig, "deadline_s"), 1),
        ("a secret takes {} s", READ_DEADLINE_S, 1),
        ("`audit.wait` ({} s)", AuditConfig(()).wait_s, 1),
        ("a policy file has {} MiB", MAX_FILE_BYTES, 1 << 20),
        ("{} leaves", MAX_LEAVES, 1),
        ("answer {} MiB", default_of(VaultConfig, "max_answer_bytes"), 1 << 20),
        ("{} secrets are kept", inspect.signature(SecretCache).parameters["capacity"].default, 1),
    ):
        assert said.format(f"{value / unit:,.0f}") in text, said


def test_numbers_of_rotation() -> None:
    page = (ROOT / "docs/rotation.md").read_text()
    assert (MAX_BODY_BYTES, MAX_HELD_BYTES, FRUITLESS_S) == (64 << 10, 16 << 20, 5.0)
    assert [days_s / DAY_S for days_s in AHEAD_S] == [14, 7, 3, 1, 0]
    for said in ("up to 64 KiB", "16 MiB in all", "the last for 5 s", "14, 7, 3 and 1 days"):
        assert said in page
    # Every test that it calls as a witness is there.
    named = set(re.findall(r"`(tests/[a-z0-9_/]+\.py)`", page))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_commands() -> None:
    text = (ROOT / "docs/reference/cli.md").read_text()
    actions = next(
        action
        for action in parser()._actions
        if action.dest == "command" or (hasattr(action, "choices") and action.choices)
    )
    assert actions.choices
    for name in actions.choices:
        assert f"`ostiary {name}" in text, name


def test_client_variables() -> None:
    text = (ROOT / "docs/guides/clients.md").read_text()
    for name in (*REPLACING, *ADDING):
        assert f"`{name}`" in text, name


def test_the_readme_names_the_two_commands_of_ci() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make run" in readme
    assert "make test" in readme
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "make check" in (ROOT / ".ci/run").read_text()


def test_attacks_and_faults_are_in_the_threat_model() -> None:
    text = (ROOT / "docs/threat-model.md").read_text()
    tests = "".join(
        path.read_text()
        for folder in ("attacks", "e2e", "faults", "addons", "ostiary")
        for path in (ROOT / "tests" / folder).rglob("test_*.py")
    )
    for row in re.findall(r"^\| (G\d\d) \|", text, re.MULTILINE):
        assert row.lower() in tests.lower(), row
