"""The least Vault policy that the loaded routes need: as rules, in Vault's language, and held against what a token may.

Everything here is `read` of named paths, `update` where a key of Transit or a role of PKI signs or a refresh token is
written back or a lease is renewed and revoked, and what a login needs for its own token. Paths are written out, never as
patterns: a route that is added needs a policy that is looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from policies.model import SecretSpec
from policies.sign import TransitUse

_PLAIN: Final = re.compile(r"[A-Za-z0-9._@:=,~/-]+")
"""Paths that mean themselves in a policy: no pattern, no template, no quote."""
OWN: Final[Mapping[str, str]] = {
    "auth/token/lookup-self": "read",
    "auth/token/renew-self": "update",
    "auth/token/revoke-self": "update",
    "sys/capabilities-self": "update",
}
"""What a login needs for its own token; the last one is for `ostiary check --live`."""


OF_LEASES: Final = ("sys/leases/renew", "sys/leases/revoke")
"""What is lent is kept alive and given back there, by the identifier of its lease."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One path of Vault's API and the capability that is needed on it."""

    path: str
    capability: str
    unless: str | None = None
    """Where the KV version is not written, either this path or that one is needed: which, Vault knows."""


@dataclass(frozen=True, slots=True)
class LeastPolicy:
    """The rules, in order, and what cannot be said by rules."""

    rules: tuple[Rule, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"# {note}" for note in self.notes]
        for path in dict.fromkeys(rule.path for rule in self.rules):
            shown = ", ".join(f'"{rule.capability}"' for rule in self.rules if rule.path == path)
            lines.append(f'path "{path}" {{ capabilities = [{shown}] }}')
        return "".join(f"{line}\n" for line in lines)


def least_policy(secrets: Sequence[SecretSpec], namespace: str | None, keys: Sequence[TransitUse] = ()) -> LeastPolicy:
    """The least policy for these secrets and keys.

    Args:
        secrets: what routes read.
        keys: what signs for them inside Vault.
        namespace: of the login. A secret of a namespace below it is named from there; one of another needs a policy of
            its own, and a note says so.
    """
    rules: dict[str, Rule] = {}
    updates: dict[str, Rule] = {}
    notes: list[str] = []
    for secret in secrets:
        mount, path = _split(secret)
        prefix = _below(secret.namespace, namespace)
        shown = "".join(char for char in f"{mount}/{path}" if char.isprintable())
        if prefix is None:
            notes.append(f"{shown} is in namespace {secret.namespace}, which this policy cannot reach.")
            continue
        if not _PLAIN.fullmatch(f"{prefix}{mount}/{path}"):
            notes.append(f"{shown} is not granted here: a policy would read some of its characters as a pattern.")
            continue
        if secret.issue is not None:
            rules[f"{prefix}{mount}/{path}"] = Rule(f"{prefix}{mount}/{path}", "update")
            continue
        if secret.is_lent:
            rules[f"{prefix}{mount}/{path}"] = Rule(f"{prefix}{mount}/{path}", "read")
            updates |= {f"{prefix}{one}": Rule(f"{prefix}{one}", "update") for one in OF_LEASES}
            continue
        plain, data = f"{prefix}{mount}/{path}", f"{prefix}{mount}/data/{path}"
        if secret.kv != 1:
            rules[data] = Rule(data, "read", None if secret.kv == 2 else plain)
            if secret.rotates:
                updates[data] = Rule(data, "update")
            subkeys = f"{prefix}{mount}/subkeys/{path}"
            rules[subkeys] = Rule(subkeys, "read", None if secret.kv == 2 else plain)
            if secret.watch_s:
                metadata = f"{prefix}{mount}/metadata/{path}"
                rules[metadata] = Rule(metadata, "read", None if secret.kv == 2 else plain)
        if secret.kv != 2:
            # Which of the two the mount is, is asked of Vault when it is read; on the other kind this grants nothing.
            rules[plain] = Rule(plain, "read", None if secret.kv == 1 else data)
    for use in keys:
        prefix = _below(use.key.namespace, namespace)
        if prefix is None:
            notes.append(f"{use.path} is in namespace {use.key.namespace}, which this policy cannot reach.")
            continue
        rules[prefix + use.path] = Rule(prefix + use.path, "update")
    return LeastPolicy(
        (*rules.values(), *updates.values(), *(Rule(path, what) for path, what in OWN.items())),
        tuple(dict.fromkeys(notes)),
    )


def missing(policy: LeastPolicy, capabilities: Mapping[str, Sequence[str]]) -> list[str]:
    """What a token may not do of what the policy lets, in words.

    Args:
        policy: the least one.
        capabilities: by path, as `sys/capabilities-self` tells them.
    """

    def may(path: str, what: str) -> bool:
        return bool({what, "root"} & set(capabilities.get(path, ())))

    found = []
    for rule in policy.rules:
        if rule.path in OWN or may(rule.path, rule.capability):
            continue
        if rule.unless is not None and may(rule.unless, rule.capability):
            continue
        either = f" (or on {rule.unless}, if that is the mount's KV version)" if rule.unless is not None else ""
        found.append(f"the Vault token may not {rule.capability} {rule.path}{either}")
    return found


def beyond(policy: LeastPolicy, capabilities: Mapping[str, Sequence[str]]) -> list[str]:
    """What a token may do at these paths beyond what is needed."""
    if any("root" in told for told in capabilities.values()):
        return ["the Vault token is a root token: one with the least policy is enough"]
    found = []
    for path in dict.fromkeys(rule.path for rule in policy.rules):
        enough = [rule.capability for rule in policy.rules if rule.path == path]
        more = sorted(set(capabilities.get(path, ())) - {*enough, "deny", "list"})
        if more:
            found.append(f"the Vault token may also {', '.join(more)} {path}: {' and '.join(enough)} is enough")
    return found


def _split(secret: SecretSpec) -> tuple[str, str]:
    if secret.mount:
        return secret.mount.strip("/"), secret.path.strip("/")
    mount, _, path = secret.path.strip("/").partition("/")
    return mount, path


def _below(of_secret: str | None, of_login: str | None) -> str | None:
    """How a namespace is named from the login's: empty for the same one, None where it is not below."""
    there, here = (of_secret or of_login or "").strip("/"), (of_login or "").strip("/")
    if there == here:
        return ""
    if not here or there.startswith(f"{here}/"):
        return there.removeprefix(f"{here}/" if here else "") + "/"
    return None
