"""JSON Schemas (2020-12, as OpenAPI 3.1 has them) of what the API answers; tests hold the answers of a real process
against them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_TEXT: Final = {"type": "string"}
_TEXTS: Final = {"type": "array", "items": _TEXT}
_COUNT: Final = {"type": "integer", "minimum": 0}
_SECONDS: Final = {"type": "number", "minimum": 0}


def _closed(**properties: Mapping[str, Any]) -> Mapping[str, Any]:
    """An object with just these keys, all of them there."""
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


SCHEMAS: Final[Mapping[str, Mapping[str, Any]]] = {
    "Alive": _closed(status={"const": "alive"}),
    "Readiness": _closed(status={"enum": ["ready", "not ready"]}, problems=_TEXTS, policy=_TEXT),
    "Route": _closed(
        name=_TEXT,
        hosts={"type": "array", "items": _TEXT, "minItems": 1},
        port={"type": "integer", "minimum": 1, "maximum": 65535},
        mode={"enum": ["enforce", "observe"]},
    ),
    "Routes": _closed(version=_TEXT, routes={"type": "array", "items": {"$ref": "#/components/schemas/Route"}}),
    "Reloaded": _closed(version=_TEXT, routes={"type": "integer", "minimum": 0}, changed={"type": "boolean"}),
    "Use": {
        "type": "object",
        "properties": {"request_id": _TEXT, "workload": _TEXT, "route": _TEXT, "seconds_ago": _SECONDS},
        "required": ["seconds_ago"],
        "additionalProperties": False,
    },
    "Secret": {
        "type": "object",
        "properties": {
            "secret": _TEXT,
            "routes": _TEXTS,
            "pinned": _COUNT,
            "version": _TEXT,
            "created_at": _TEXT,
            "age_seconds": _SECONDS,
            "problem": _TEXT,
            "requests": _COUNT,
            "last_use": {"$ref": "#/components/schemas/Use"},
            "before": _TEXT,
            "before_requests": _COUNT,
            "before_last_use": {"$ref": "#/components/schemas/Use"},
            "owner": _TEXT,
            "classification": _TEXT,
            "expires_at": _TEXT,
            "overlap_until": _TEXT,
            "pending_version": _COUNT,
        },
        "required": ["before_requests", "requests", "routes", "secret"],
        "additionalProperties": False,
    },
    "Secrets": _closed(secrets={"type": "array", "items": {"$ref": "#/components/schemas/Secret"}}),
    "Refreshed": _closed(secret=_TEXT, version=_TEXT, changed={"type": "boolean"}),
    "Document": {"type": "object", "required": ["openapi", "info", "paths"]},
    "Metrics": _TEXT,
    "Problem": {
        "type": "object",
        "properties": {
            "type": {"type": "string", "pattern": "^urn:ostiary:admin:[a-z_]+$"},
            "title": _TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": _TEXT,
            "request_id": {"type": "string", "format": "uuid"},
            "faults": {**_TEXTS, "description": "file:line:column: message (how to mend)"},
            "policy": {"type": "string", "description": "Version of the policy that stays in force."},
        },
        "required": ["detail", "request_id", "status", "title", "type"],
        "additionalProperties": False,
    },
}
