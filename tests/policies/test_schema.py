"""The editor schema and the loader know the same keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from policies.keys import LATER, TABLES
from policies.schema import policy_schema

GOOD = sorted((Path(__file__).parent / "golden" / "good").glob("*.yaml"))


def test_every_table_is_in_the_schema() -> None:
    schema = policy_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    tables = {**schema["$defs"], "file": schema}
    for name, keys in TABLES.items():
        assert set(tables[name]["properties"]) == set(keys)
        assert tables[name]["additionalProperties"] is False


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
        jsonschema.validate({"routes": {"r": {"match": {"host": "a"}, "allow": "w", "reply": {}}}}, policy_schema())
