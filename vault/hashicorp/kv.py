"""Reads KV secrets, version 1 and 2: detection of the version, and what an answer must look like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import hvac

from vault.control import read_control
from vault.hashicorp.client import DetectionRefused, VaultAnswer
from vault.secret import Secret
from vault.store import Described, SecretMalformed, SecretMissing, SecretRef, SecretVersion, VersionConflict

_KV_KINDS: Final = frozenset({"kv", "generic"})
_SEGMENT: Final = re.compile(r"[^/\\%?#;\x00-\x20\x7f]+")
_CONFLICT: Final = "check-and-set parameter did not match"
_VAULTS_OWN: Final = frozenset({"auth", "cubbyhole", "identity", "sys"})
"""Mounts of Vault itself. `auth/token/lookup-self`, read as a secret, would be the token that Ostiary logs in with."""


def split(ref: SecretRef) -> tuple[str, str]:
    """Mount and path below it: the first segment is the mount unless one is given.

    Raises:
        SecretMalformed: the name would lead out of its mount, or into Vault's own.
    """
    if ref.mount:
        mount, path = ref.mount.strip("/"), ref.path.strip("/")
    else:
        mount, _, path = ref.path.strip("/").partition("/")
    segments = [*mount.split("/"), *path.split("/")]
    # Clients and servers resolve dot segments: they would make another call of this one.
    if not all(_SEGMENT.fullmatch(segment) and segment not in {".", ".."} for segment in segments):
        raise SecretMalformed(ref.name, "is no secret path")
    if segments[0].casefold() in _VAULTS_OWN:
        raise SecretMalformed(ref.name, f"is below {segments[0]}/, which holds what is Vault's own and no secrets")
    return mount, path


def detect(client: hvac.Client, ref: SecretRef) -> Literal[1, 2]:
    """KV version of a mount, by the one endpoint that every token with a policy on the mount may read.

    Raises:
        DetectionRefused: it may not read that.
        SecretMalformed: the mount is no KV store. Reading one of another kind may make something: a lease, a user.
    """
    mount, _ = split(ref)
    try:
        answer = client.adapter.get(f"/v1/sys/internal/ui/mounts/{mount}")
    except VaultAnswer as refused:
        if refused.status == 403:
            raise DetectionRefused(403, refused.reasons) from None
        raise
    kind = answer["data"].get("type", "kv")
    if kind not in _KV_KINDS:
        raise SecretMalformed(ref.name, f"is in {mount}/, which is no KV store")
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
        return SecretVersion(_read_v1(client, ref, mount, path), "v1")
    found = _read_v2(client, ref, mount, path, ref.version)
    pending = found.control.pending_version
    if ref.version is None and pending is not None and found.version == str(pending):
        # Written ahead of its time. The one before it is the newest that may be used.
        if pending == 1:
            raise SecretMissing(ref.name, "has version 1 alone, which its custom_metadata says is pending")
        found = _read_v2(client, ref, mount, path, pending - 1)
    return found


def _read_v2(client: hvac.Client, ref: SecretRef, mount: str, path: str, wanted: int | None) -> SecretVersion:
    answer = client.secrets.kv.v2.read_secret_version(
        path=path, version=wanted, mount_point=mount, raise_on_deleted_version=True
    )["data"]
    metadata = answer.get("metadata") or {}
    version = metadata.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise SecretMalformed(ref.name, "came without a version")
    if wanted is not None and version != wanted:
        raise SecretMalformed(ref.name, f"came in version {version}; version {wanted} was asked for")
    return SecretVersion(
        _fields(ref, answer.get("data"), client.token),
        str(version),
        metadata.get("created_time"),
        read_control(metadata.get("custom_metadata") or {}),
    )


def write(client: hvac.Client, ref: SecretRef, kv: Literal[1, 2], fields: Mapping[str, Secret], over: str) -> None:
    """Puts fields into a new version by check-and-set; what else the version holds stays, whatever its type.

    Raises:
        SecretMalformed: the mount keeps no versions.
        VersionConflict: `over` is the newest version no more.
    """
    mount, path = split(ref)
    if kv == 1:
        raise SecretMalformed(ref.name, "is in a KV version 1 mount, which takes nothing back by check-and-set")
    answer = client.secrets.kv.v2.read_secret_version(path=path, mount_point=mount, raise_on_deleted_version=True)[
        "data"
    ]
    if str(answer["metadata"]["version"]) != over:
        raise VersionConflict(ref.name, f"has another version than {over} by now")
    whole = {**answer["data"], **{name: value.reveal() for name, value in fields.items()}}
    try:
        client.adapter.post(f"/v1/{mount}/data/{path}", json={"data": whole, "options": {"cas": int(over)}})
    except VaultAnswer as refused:
        if refused.status == 400 and any(_CONFLICT in reason for reason in refused.reasons):
            raise VersionConflict(ref.name, f"has another version than {over} by now") from None
        raise


def describe(client: hvac.Client, ref: SecretRef, kv: Literal[1, 2]) -> Described:
    """A secret without its values: the version that a read would give. KV version 1 has no endpoint for it, so the values
    are read and dropped.
    """
    mount, path = split(ref)
    if kv == 1:
        return Described(frozenset(_read_v1(client, ref, mount, path)), "v1")
    found = _subkeys(client, mount, path, ref.version)
    pending = found.control.pending_version
    if ref.version is None and pending is not None and pending > 1 and found.version == str(pending):
        found = _subkeys(client, mount, path, pending - 1)
    return found


def _subkeys(client: hvac.Client, mount: str, path: str, version: int | None) -> Described:
    suffix = f"?version={version}" if version is not None else ""
    answer = client.adapter.get(f"/v1/{mount}/subkeys/{path}{suffix}")["data"]
    metadata = answer.get("metadata") or {}
    return Described(
        # A name with names below it is a nested value, which a read leaves out too.
        frozenset(name for name, below in (answer.get("subkeys") or {}).items() if below is None),
        str(metadata.get("version", "")),
        read_control(metadata.get("custom_metadata") or {}),
    )


def unchanged(client: hvac.Client, ref: SecretRef, kv: Literal[1, 2], known: SecretVersion) -> bool:
    """Whether a read would still give this version, by `metadata/` alone. What is not plainly so is False."""
    if kv == 1:
        return False
    mount, path = split(ref)
    told = client.adapter.get(f"/v1/{mount}/metadata/{path}")["data"]
    if read_control(told.get("custom_metadata") or {}) != known.control:
        return False
    newest = ref.version if ref.version is not None else told["current_version"]
    numbers = {str(newest), known.version}
    if ref.version is None and known.control.pending_version == newest:
        newest -= 1
    # A pending version that is gone takes the secret away as a read would find it, so it is looked at too.
    shown = told["versions"]
    alive = all(not shown[number]["destroyed"] and not shown[number]["deletion_time"] for number in numbers)
    return alive and known.version == str(newest) and shown[known.version]["created_time"] == known.created_at


def _read_v1(client: hvac.Client, ref: SecretRef, mount: str, path: str) -> Mapping[str, Secret]:
    """KV version 1 is a plain read of a path, so a wrong `kv: 1` could read anything: what is no KV answer is refused."""
    answer = client.secrets.kv.v1.read_secret(path=path, mount_point=mount)
    if answer.get("mount_type", "kv") not in _KV_KINDS or answer.get("lease_id"):
        raise SecretMalformed(ref.name, "was answered by something else than a KV store")
    return _fields(ref, answer["data"], client.token)


def _fields(ref: SecretRef, data: Any, token: str) -> Mapping[str, Secret]:
    if not isinstance(data, dict) or not data:
        raise SecretMissing(ref.name, "has no fields")
    if token and any(isinstance(value, str) and token in value for value in data.values()):
        # However it came here (a namespace in the path leads past the names above): what opens the store never leaves.
        raise SecretMalformed(ref.name, "holds the very token that reads it")
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
