"""What an editor makes of the schema: yaml-language-server, which VS Code, Neovim, Helix, Emacs and others drive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from policies import policy_schema
from tests.harness.installed import node_with
from tests.harness.language_server import LanguageServer
from tests.harness.two_ways import NODE, PROGRAMS, ROOT

EDITOR = PROGRAMS / "editor"
BROKEN = (
    """# yaml-language-server: $schema=policy.schema.json
workloads:
  billing: {proofs: [{any: true}]}
routes:
  api:
    mach: {host: a.test}
    allow: billing
    mode: enforced
    limits: [{requests: 1, per: 1s}]
    inject: {heder: X-Key, value: "{secret}"}
    secret: {field: key}
"""
    "    \n"
)


@pytest.fixture(scope="module")
def server() -> list[str]:
    """The command of the locked server, installed once."""
    folder = node_with("npm", EDITOR / "package-lock.json", [EDITOR / "package.json", EDITOR / ".npmrc"])
    return [NODE, str(folder / "node_modules" / "yaml-language-server" / "bin" / "yaml-language-server"), "--stdio"]


def document(folder: Path, text: str) -> Path:
    (folder / "policy.schema.json").write_text(json.dumps(policy_schema()))
    path = folder / "policy.yaml"
    path.write_text(text)
    return path


def test_what_is_wrong_is_marked(server: list[str], tmp_path: Path) -> None:
    with LanguageServer(server, document(tmp_path, BROKEN)) as editor:
        found = {(one["range"]["start"]["line"] + 1, one["message"]) for one in editor.open()}
    assert found == {
        (5, 'Missing property "match".'),
        (6, "Property mach is not allowed."),
        (8, 'Value is not accepted. Valid values: "enforce", "observe".'),
        (9, "'limits' is not built yet: limits come later"),
        (10, "Property heder is not allowed."),
        (11, 'Missing property "path".'),
    }


def test_keys_and_values_are_offered_and_told(server: list[str], tmp_path: Path) -> None:
    with LanguageServer(server, document(tmp_path, BROKEN)) as editor:
        editor.open()
        offered = {one["label"]: one.get("documentation") for one in editor.at("completion", "    \n", 4)["items"]}
        assert offered["match"] == "Which requests the route is for."
        assert {"match", "deny", "credential", "timeouts", "egress"} <= set(offered)
        assert "limits" not in offered, "what is not built yet is not offered"
        assert "allow" not in offered, "what is there already is not offered"
        values = {one["label"] for one in editor.at("completion", "enforced")["items"]}
        assert values == {"enforce", "observe"}
        for key, told in (
            ("allow:", "Workloads, groups or grants; the first that holds counts."),
            ("any:", "Whoever reaches a listener that names this workload."),
            ("value:", "A template: literal text with"),
            ("limits:", "is not built yet"),
        ):
            assert told in editor.at("hover", key, 1)["contents"]["value"], key


@pytest.mark.parametrize("name", ["everything", "default_and_cleartext"])
def test_a_good_policy_has_no_mark(server: list[str], name: str, tmp_path: Path) -> None:
    good = (ROOT / "tests" / "policies" / "golden" / "good" / f"{name}.yaml").read_text()
    with LanguageServer(
        server, document(tmp_path, f"# yaml-language-server: $schema=policy.schema.json\n{good}")
    ) as editor:
        assert editor.open() == []
