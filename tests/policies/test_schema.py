"""The editor schema and the loader know the same keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from policies import FaultError, load_policy
from policies.descriptions import DESCRIPTIONS
from policies.keys import LATER, TABLES
from policies.schema import REQUIRED, policy_schema

GOOD = sorted((Path(__file__).parent / "golden" / "good").glob("*.yaml"))
VERIFY: dict[str, tuple[str, dict[str, Any]]] = {
    "verify_hmac": ("hmac", {"keys": "{secret}"}),
    "verify_message": (
        "http_message",
        {"keys": {"k": "{secret}"}, "algorithm": "ed25519", "components": ["@method", "@target-uri"]},
    ),
    "webhook": ("stripe", {"keys": ["{secret}"]}),
    "webhook_untimed": ("github", {"keys": "{secret}"}),
    "twilio": ("twilio", {"keys": "{secret}"}),
    "sns": ("sns", {"topics": "arn:aws:sns:eu-west-1:123456789012:orders"}),
}


def test_every_table_is_in_the_schema() -> None:
    schema = policy_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    tables = {**schema["$defs"], "file": schema}
    for name, keys in TABLES.items():
        assert set(tables[name]["properties"]) == {*keys, *LATER.get(name, {})}
        assert tables[name]["additionalProperties"] is False


def test_every_key_has_a_sentence_for_the_editor() -> None:
    assert {name: set(keys) for name, keys in DESCRIPTIONS.items()} == {
        name: set(keys) for name, keys in TABLES.items()
    }
    for keys in DESCRIPTIONS.values():
        for sentence in keys.values():
            assert 10 <= len(sentence) <= 160


@pytest.mark.parametrize(("table", "key"), [(table, key) for table, keys in REQUIRED.items() for key in keys])
def test_what_the_schema_requires_the_loader_requires(table: str, key: str, tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "workloads": {"w": {"proofs": [{"peer": {"uid": 1}}]}},
        "routes": {
            "r": {
                "match": {"host": "a.test"},
                "allow": "w",
                "secret": {"path": "secret/a", "field": "k"},
                "inject": {"basic": {"username": "{secret.u}", "password": "{secret}"}},
            }
        },
        "presets": {
            "p": {
                "match": {"host": "b.test"},
                "example": {"method": "GET", "url": "https://b.test/", "put": {"path": "/"}},
            }
        },
        "tests": [{"as": "w", "request": "GET https://a.test/", "expect": {"route": "r"}}],
    }
    if table in VERIFY:
        kind, keys = VERIFY[table]
        document["routes"]["v"] = {
            "match": {"host": "v.test"},
            "allow": "w",
            **({} if kind == "sns" else {"secret": {"path": "secret/a", "field": "k"}}),
            "verify": {kind: {**keys}},
        }
    path = tmp_path / "policy.yaml"
    path.write_text(json.dumps(document))
    jsonschema.validate(document, policy_schema())
    load_policy([path])
    route = document["routes"]["r"]
    holder: dict[str, Any] = {
        "workload": document["workloads"]["w"],
        "peer": document["workloads"]["w"]["proofs"][0]["peer"],
        "secret": route["secret"],
        "route": route,
        "match": route["match"],
        "preset": document["presets"]["p"],
        "example": document["presets"]["p"]["example"],
        "basic": route["inject"]["basic"],
        "test": document["tests"][0],
        "expect": document["tests"][0]["expect"],
        **({table: document["routes"]["v"]["verify"][VERIFY[table][0]]} if table in VERIFY else {}),
    }[table]
    del holder[key]
    path.write_text(json.dumps(document))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, policy_schema())
    with pytest.raises(FaultError, match=f"needs '{key}'"):
        load_policy([path])


def test_nothing_is_both_built_and_not() -> None:
    for name, keys in LATER.items():
        assert not set(keys) & set(TABLES[name]), name


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_policies_satisfy_it(path: Path) -> None:
    document: Any = yaml.safe_load(path.read_text())
    document["workloads"]["billing"].setdefault("labels", {})["tier"] = (
        "no"  # YAML 1.1 reads a boolean here, our loader text
    )
    jsonschema.validate(document, policy_schema())


def test_a_key_that_is_not_built_yet_is_marked_in_the_editor() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"routes": {"r": {"match": {"host": "a"}, "allow": "w", "limits": {}}}}, policy_schema())
