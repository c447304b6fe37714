"""Reads `vault:`: addresses and one auth method."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ostiary.settings.keys import KNOWN, LATER
from policies.document import Mapping as MappingNode
from policies.document import Node
from policies.fields import Fields
from policies.load_parts import Context
from vault.hashicorp.config import AppRoleAuth, TokenAuth, TokenFileAuth, VaultAuth, VaultConfig
from vault.secret import Secret

_METHODS_LATER: Final = ("kubernetes", "jwt", "cert", "aws")
_ENVIRONMENT: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def read_vault(node: Node | None, context: Context, environ: Mapping[str, str]) -> VaultConfig | None:
    """The `vault:` block, None where it is absent or has faults."""
    if node is None:
        return None
    faults = context.faults
    keys = Fields(node, faults, "vault", known=KNOWN["vault"])
    if not isinstance(node, MappingNode) or not keys.require("addresses", "auth"):
        return None
    before = len(faults.found)
    addresses: list[str] = []
    for scalar in keys.texts("addresses"):
        split = urlsplit(scalar.text)
        if (
            split.scheme not in {"http", "https"}
            or not split.hostname
            or split.username
            or split.query
            or split.fragment
        ):
            faults.add(scalar.place, f"{scalar.text!r} is no Vault address", "write https://vault.example.com:8200")
        elif split.scheme == "http" and split.hostname not in {"127.0.0.1", "::1", "localhost"}:
            faults.add(
                scalar.place,
                "secrets would cross the network in clear text",
                "write https://, or use a loopback address",
            )
        else:
            addresses.append(scalar.text.rstrip("/"))
    auth = _auth(keys.node("auth"), context, environ)
    files = {key: read_file_path(keys, key, context) for key in ("ca_file", "client_cert", "client_key")}
    if files["client_key"] is not None and files["client_cert"] is None:
        faults.add(keys.place_of("client_key"), "client_key needs a client_cert")
    if auth is None or len(faults.found) > before:
        return None
    return VaultConfig(
        tuple(addresses), auth, keys.text("namespace"), files["ca_file"], files["client_cert"], files["client_key"]
    )


def read_file_path(keys: Fields, key: str, context: Context) -> Path | None:
    """The path of a file that is there."""
    scalar = keys.scalar(key)
    if scalar is None:
        return None
    path = context.folder / scalar.text
    if not path.is_file():
        context.faults.add(
            scalar.place, f"{path} is no file that can be read", "paths are relative to the settings file"
        )
    return path


def _auth(node: Node | None, context: Context, environ: Mapping[str, str]) -> VaultAuth | None:
    if node is None:
        return None
    faults = context.faults
    keys = Fields(node, faults, "auth of vault", known=KNOWN["auth"], later=LATER["auth"])
    if not isinstance(node, MappingNode) or not keys.require("method"):
        return None
    scalar = keys.scalar("method")
    if scalar is not None and scalar.text in _METHODS_LATER:
        faults.add(
            scalar.place, f"auth method {scalar.text} is not built yet", "use token_file (with an Agent) or approle"
        )
        return None
    match keys.choice("method", {"token_file", "token", "approle"}):
        case "token_file":
            if not keys.require("file"):
                return None
            scalar = keys.scalar("file")
            return None if scalar is None else TokenFileAuth(context.folder / scalar.text)
        case "token":
            if not keys.require("env"):
                return None
            name = keys.text("env")
            if name is None:
                return None
            if not environ.get(name):
                faults.add(
                    keys.place_of("env"), f"the variable {name} is not set", "export it, or use token_file or approle"
                )
                return None
            return TokenAuth(Secret(environ[name]))
        case "approle":
            return _approle(keys, context, environ)
        case _:
            return None


def _approle(keys: Fields, context: Context, environ: Mapping[str, str]) -> AppRoleAuth | None:
    if not keys.require("role_id"):
        return None
    role_id = read_reference(keys, "role_id", context, environ)
    scalar = keys.scalar("secret_id_file")
    secret_id_file = context.folder / scalar.text if scalar is not None else None
    if role_id is None:
        return None
    return AppRoleAuth(role_id, secret_id_file, keys.text("mount", "approle") or "approle")


def read_reference(keys: Fields, key: str, context: Context, environ: Mapping[str, str]) -> Secret | None:
    """A secret of the settings themselves: a literal, `${VARIABLE}`, or `file:PATH` (one line end is dropped)."""
    scalar = keys.scalar(key)
    if scalar is None:
        return None
    found = _ENVIRONMENT.fullmatch(scalar.text)
    if found is not None:
        if not environ.get(found[1]):
            context.faults.add(scalar.place, f"the variable {found[1]} is not set", "export it")
            return None
        return Secret(environ[found[1]])
    if scalar.text.startswith("file:"):
        path = context.folder / scalar.text.removeprefix("file:")
        try:
            return Secret(path.read_text("utf-8").removesuffix("\n"))
        except (OSError, UnicodeDecodeError):
            context.faults.add(scalar.place, f"{path} cannot be read", "paths are relative to the settings file")
            return None
    return Secret(scalar.text)
