"""The OpenAPI 3.1 document, made from the table of operations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from ostiary import __version__
from ostiary.admin.problems import CONTENT_TYPE, Kind
from ostiary.admin.schemas import SCHEMAS
from ostiary.admin.table import Operation

ALWAYS: Final = (
    Kind.BAD_REQUEST,
    Kind.CROSS_SITE,
    Kind.BODY_TOO_LARGE,
    Kind.HOST_MISMATCH,
    Kind.INTERNAL,
    Kind.TIMEOUT,
)
"""What every operation may answer."""
WITH_TOKEN: Final = (Kind.TOKEN_REQUIRED, Kind.TOKEN_INVALID, Kind.NO_TOKENS, Kind.ROLE_DENIED)
"""What one may answer that asks for a token."""
_PROBLEM: Final = {"schema": {"$ref": "#/components/schemas/Problem"}}


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Ostiary admin API",
            "version": __version__,
            "description": "On a Unix socket or a loopback address. Errors are application/problem+json (RFC 9457).",
        },
        "paths": paths,
        "components": {
            "schemas": dict(SCHEMAS),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An admin token, made by `ostiary key mint --admin NAME`.",
                }
            },
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    responses: dict[str, dict[str, Any]] = {}
    for shown in operation.answers:
        schema = {"schema": {"$ref": f"#/components/schemas/{shown.schema}"}}
        responses[str(shown.status)] = {
            "description": shown.description,
            "content": dict.fromkeys(shown.content_types, schema),
        }
    kinds = (*ALWAYS, *(WITH_TOKEN if operation.role is not None else ()), *operation.problems)
    for kind in sorted(kinds, key=lambda kind: kind.status):
        response = responses.setdefault(str(kind.status), {"description": "", "content": {}})
        response["description"] = " ".join(filter(None, (response["description"], f"{kind.title}.")))
        response["content"][CONTENT_TYPE] = _PROBLEM
    found: dict[str, Any] = {
        "operationId": re.sub(r"\W", "_", f"{operation.method.lower()}{operation.path}"),
        "summary": operation.summary,
        "security": [{"token": []}] if operation.role is not None else [],
        "responses": responses,
    }
    if "{ref}" in operation.path:
        found["parameters"] = [
            {
                "name": "ref",
                "in": "path",
                "required": True,
                "description": "The secret's whole path, mount first, percent-encoded as one segment.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 1024},
            }
        ]
    if operation.role is not None:
        found["x-ostiary-role"] = operation.role
    return found
