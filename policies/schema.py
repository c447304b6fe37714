"""The editor schema (JSON Schema 2020-12), generated from the table of keys that the loader itself uses, with a sentence
for each key (`descriptions.py`).

A key that is not built yet is in it, so that an editor says so instead of calling it unknown.
`errorMessage` and `doNotSuggest` are of yaml-language-server; other validators pass over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from policies.descriptions import DESCRIPTIONS
from policies.keys import LATER, TABLES

REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "workload": ("proofs",),
    "peer": ("uid",),
    "secret": ("path",),
    "route": ("allow",),
    "preset": ("match",),
    "example": ("method", "url", "put"),
    "basic": ("username", "password"),
    "verify_message": ("keys", "algorithm", "components"),
    "webhook": ("keys",),
    "webhook_untimed": ("keys",),
    "twilio": ("keys",),
    "sns": ("topics",),
    "test": ("as", "request", "expect"),
    "expect": ("route",),
}


def policy_schema() -> dict[str, Any]:
    """The schema of one policy file."""
    tables = {name: _table(name) for name in TABLES}
    root = tables.pop("file")
    tables["proof"] |= {"minProperties": 1, "maxProperties": 1}
    tables["inject"] |= {"minProperties": 1}
    tables["verify"] |= {"minProperties": 1, "maxProperties": 1}
    tables["route"] |= {
        # A reverse listener's caller names no host, so neither need the route; a preset brings its own.
        "if": {"anyOf": [{"required": ["listener"]}, {"required": ["use"]}]},
        "else": {"required": ["match"], "properties": {"match": {"required": ["host"]}}},
    }
    # Beside a preset, a secret may be a part of one: the preset has the rest.
    tables["part_of_secret"] = {key: value for key, value in tables["secret"].items() if key != "required"}
    for name in ("route", "preset"):
        tables[name]["properties"]["secret"]["$ref"] = "#/$defs/part_of_secret"
    tables["route"]["allOf"] = [
        {"if": {"not": {"required": ["use"]}}, "then": {"properties": {"secret": {"$ref": "#/$defs/secret"}}}}
    ]
    tables["use"] = {
        "type": "object",
        "properties": {"preset": {"type": "string", "minLength": 1}},
        "additionalProperties": {"type": "string"},
        "required": ["preset"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Ostiary policy",
        **root,
        "$defs": tables,
    }


def _table(name: str) -> dict[str, Any]:
    properties: dict[str, Any] = {
        key: {**schema, "description": DESCRIPTIONS[name][key]} for key, schema in TABLES[name].items()
    }
    for key, sentence in LATER.get(name, {}).items():
        told = f"{key!r} is not built yet: {sentence}"
        properties[key] = {"enum": ["not built yet"], "description": told, "errorMessage": told, "doNotSuggest": True}
    table: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if name in REQUIRED:
        table["required"] = list(REQUIRED[name])
    return table
