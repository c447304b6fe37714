"""The document is valid, closed, and says of each operation what the table says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from ostiary.admin.openapi import ALWAYS, WITH_TOKEN, document
from ostiary.admin.problems import Kind
from ostiary.admin.schemas import SCHEMAS
from ostiary.admin.table import OPERATIONS, Operation


@pytest.fixture(scope="module")
def shown() -> Any:
    return json.loads(json.dumps(document(OPERATIONS)))


def test_every_operation_once(shown: Any) -> None:
    assert len({(one.method, one.path) for one in OPERATIONS}) == len(OPERATIONS)
    listed = {(method.upper(), path) for path, methods in shown["paths"].items() for method in methods}
    assert listed == {(one.method, one.path) for one in OPERATIONS}
    ids = [one["operationId"] for methods in shown["paths"].values() for one in methods.values()]
    assert len(set(ids)) == len(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_an_operation(operation: Operation, shown: Any) -> None:
    said = shown["paths"][operation.path][operation.method.lower()]
    assert said["security"] == ([{"token": []}] if operation.role else [])
    assert said.get("x-ostiary-role") == operation.role
    kinds = {*ALWAYS, *operation.problems, *(WITH_TOKEN if operation.role else ())}
    statuses = {str(kind.status) for kind in kinds} | {str(answer.status) for answer in operation.answers}
    assert set(said["responses"]) == statuses
    for response in said["responses"].values():
        assert response["description"]


def test_every_problem_can_be_met_and_every_schema_is_used(shown: Any) -> None:
    met = {*ALWAYS, *WITH_TOKEN, *(kind for one in OPERATIONS for kind in one.problems)}
    # What is said of a path or a method that is not in the document stands in docs/reference/admin.md.
    assert set(Kind) - met == {Kind.NOT_FOUND, Kind.METHOD_NOT_ALLOWED}
    text = json.dumps(shown)
    for name, schema in SCHEMAS.items():
        Draft202012Validator.check_schema(schema)
        assert f'"#/components/schemas/{name}"' in text
