"""Reads KV secrets, version 1 and 2: detection of the version, and what an answer must look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import hvac

from vault.secret import Secret
from vault.store import SecretMalformed, SecretMissing, SecretRef, SecretVersion


def split(ref: SecretRef) -> tuple[str, str]:
    """Mount and path below it: the first segment is the mount unless one is given."""
    if ref.mount:
        return ref.mount.strip("/"), ref.path.strip("/")
    mount, _, path = ref.path.strip("/").partition("/")
    return mount, path


def detect(client: hvac.Client, mount: str) -> Literal[1, 2]:
    """KV version of a mount, by the one endpoint that every token with a policy on the mount may read."""
    answer = client.adapter.get(f"/v1/sys/internal/ui/mounts/{mount}")
    options = answer["data"].get("options") or {}
    return 2 if str(options.get("version")) == "2" else 1


def read(client: hvac.Client, ref: SecretRef, kv: Literal[1, 2]) -> SecretVersion:
    """One version of a secret.

    Raises:
        SecretMissing, SecretMalformed: what Vault answered is not there or no secret.
    """
    mount, path = split(ref)
    if kv == 1:
        if ref.version is not None:
            raise SecretMissing(ref.name, "is in a KV version 1 mount, which keeps no versions to pin")
        data = client.secrets.kv.v1.read_secret(path=path, mount_point=mount)["data"]
        return SecretVersion(_fields(ref, data), "v1")
    answer = client.secrets.kv.v2.read_secret_version(
        path=path, version=ref.version, mount_point=mount, raise_on_deleted_version=True
    )["data"]
    metadata = answer.get("metadata") or {}
    version = metadata.get("version")
    if not isinstance(version, int):
        raise SecretMalformed(ref.name, "came without a version")
    custom = metadata.get("custom_metadata") or {}
    return SecretVersion(
        _fields(ref, answer.get("data")),
        str(version),
        metadata.get("created_time"),
        {str(key): str(value) for key, value in custom.items()},
    )


def field_names(client: hvac.Client, ref: SecretRef, kv: Literal[1, 2]) -> frozenset[str]:
    """Names of a secret's fields. KV version 2 tells them without values; version 1 has no such endpoint, so the values
    are read and dropped.
    """
    mount, path = split(ref)
    if kv == 1:
        return frozenset(_fields(ref, client.secrets.kv.v1.read_secret(path=path, mount_point=mount)["data"]))
    suffix = f"?version={ref.version}" if ref.version is not None else ""
    answer = client.adapter.get(f"/v1/{mount}/subkeys/{path}{suffix}")
    subkeys = answer["data"].get("subkeys")
    return frozenset(subkeys or {})


def _fields(ref: SecretRef, data: Any) -> Mapping[str, Secret]:
    if not isinstance(data, dict) or not data:
        raise SecretMissing(ref.name, "has no fields")
    fields: dict[str, Secret] = {}
    for name, value in data.items():
        match value:
            case str():
                fields[str(name)] = Secret(value)
            case bool():
                fields[str(name)] = Secret("true" if value else "false")
            case int() | float():
                fields[str(name)] = Secret(str(value))
            case _:
                # A nested value is no credential; it is left out, so that asking for it is `missing` and its siblings
                # still serve.
                continue
    if not fields:
        raise SecretMalformed(ref.name, "holds no text")
    return fields
