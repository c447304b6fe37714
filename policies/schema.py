"""The editor schema (JSON Schema 2020-12), generated from the table of keys that the loader itself uses."""

from __future__ import annotations

from typing import Any

from policies.keys import TABLES


def policy_schema() -> dict[str, Any]:
    """The schema of one policy file."""
    tables = {
        name: {"type": "object", "properties": dict(keys), "additionalProperties": False}
        for name, keys in TABLES.items()
    }
    root = tables.pop("file")
    for name in ("proof", "inject"):
        tables[name]["minProperties"] = 1
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Ostiary policy",
        **root,
        "$defs": tables,
    }
