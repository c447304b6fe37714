"""Reads `vault:`: addresses and one auth method."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ostiary.settings.keys import KNOWN
from policies.document import Mapping as MappingNode
from policies.document import Node
from policies.fields import Fields
from policies.load_parts import Context
from vault.hashicorp.aws import AwsKeys, AwsProfile, keys_of
from vault.hashicorp.config import (
    SERVICE_ACCOUNT_TOKEN,
    AppRoleAuth,
    AwsAuth,
    CertAuth,
    JwtAuth,
    KubernetesAuth,
    TokenAuth,
    TokenFileAuth,
    VaultAuth,
    VaultConfig,
)
from vault.secret import Secret
from vault.store import SecretUnavailable

_KEYS_OF: Final[Mapping[str, frozenset[str]]] = {
    "token_file": frozenset({"file"}),
    "token": frozenset({"env"}),
    "approle": frozenset({"role_id", "secret_id_file", "wrapped_file", "mount"}),
    "kubernetes": frozenset({"role", "jwt_file", "mount"}),
    "jwt": frozenset({"role", "jwt_file", "mount"}),
    "cert": frozenset({"role", "mount"}),
    "aws": frozenset({"role", "region", "header_value", "mount"}),
}
_MOUNT: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_ROLE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@ -]{0,255}")
_REGION: Final = re.compile(r"[a-z]{2,4}(-[a-z]{2,16}){1,3}-[0-9]{1,2}")
_VISIBLE: Final = re.compile(r"[!-~]{1,256}")
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
    if isinstance(auth, CertAuth):
        if files["client_cert"] is None:
            faults.add(node.place, "auth method cert needs client_cert and client_key beside addresses")
        if any(address.startswith("http://") for address in addresses):
            faults.add(keys.place_of("addresses"), "auth method cert needs https://: the certificate is shown in TLS")
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
    keys = Fields(node, faults, "auth of vault", known=KNOWN["auth"])
    if not isinstance(node, MappingNode) or not keys.require("method"):
        return None
    method = keys.choice("method", set(_KEYS_OF))
    if method is None:
        return None
    before = len(faults.found)
    for key in KNOWN["auth"]:
        if key != "method" and key not in _KEYS_OF[method] and keys.node(key) is not None:
            faults.add(keys.place_of(key), f"{key!r} is no key of auth method {method}")
    found = _METHODS[method](keys, context, environ)
    return found if len(faults.found) == before else None


def _token_file(keys: Fields, context: Context, environ: Mapping[str, str]) -> VaultAuth | None:  # noqa: ARG001 - one signature
    path = _path(keys, "file", context) if keys.require("file") else None
    return None if path is None else TokenFileAuth(path)


def _token(keys: Fields, context: Context, environ: Mapping[str, str]) -> VaultAuth | None:
    name = keys.text("env") if keys.require("env") else None
    if name is None:
        return None
    if not environ.get(name):
        context.faults.add(
            keys.place_of("env"), f"the variable {name} is not set", "export it, or use token_file or approle"
        )
        return None
    return TokenAuth(Secret(environ[name]))


def _approle(keys: Fields, context: Context, environ: Mapping[str, str]) -> VaultAuth | None:
    if not keys.require("role_id"):
        return None
    scalar = keys.scalar("role_id")
    role_id: Secret | Path | None
    if scalar is not None and scalar.text.startswith("file:"):
        # As the secret id's file: whoever sets Vault up may write it later.
        role_id = context.folder / scalar.text.removeprefix("file:")
    else:
        role_id = read_reference(keys, "role_id", context, environ)
    secret_id_file, wrapped_file = _path(keys, "secret_id_file", context), _path(keys, "wrapped_file", context)
    if secret_id_file is not None and wrapped_file is not None:
        context.faults.add(
            keys.place_of("wrapped_file"), "secret_id_file and wrapped_file exclude each other", "keep one of them"
        )
    mount = _mount(keys, context, "approle")
    return None if role_id is None else AppRoleAuth(role_id, secret_id_file, mount, wrapped_file)


def _kubernetes(keys: Fields, context: Context, environ: Mapping[str, str]) -> VaultAuth | None:  # noqa: ARG001 - one signature
    role = _role(keys, context) if keys.require("role") else None
    jwt_file = _path(keys, "jwt_file", context) or SERVICE_ACCOUNT_TOKEN
    mount = _mount(keys, context, "kubernetes")
    return None if role is None else KubernetesAuth(role, jwt_file, mount)


def _jwt(keys: Fields, context: Context, environ: Mapping[str, str]) -> VaultAuth | None:  # noqa: ARG001 - one signature
    jwt_file = _path(keys, "jwt_file", context) if keys.require("jwt_file") else None
    role, mount = _role(keys, context), _mount(keys, context, "jwt")
    return None if jwt_file is None else JwtAuth(role, jwt_file, mount)


def _cert(keys: Fields, context: Context, environ: Mapping[str, str]) -> VaultAuth | None:  # noqa: ARG001 - one signature
    return CertAuth(_role(keys, context), _mount(keys, context, "cert"))


def _aws(keys: Fields, context: Context, environ: Mapping[str, str]) -> VaultAuth | None:
    role = _role(keys, context) if keys.require("role") else None
    region, server_id = keys.scalar("region"), keys.scalar("header_value")
    if region is not None and not _REGION.fullmatch(region.text):
        context.faults.add(region.place, f"{region.text!r} is no region of AWS", "write one such as eu-west-1")
    if server_id is not None and not _VISIBLE.fullmatch(server_id.text):
        context.faults.add(
            server_id.place,
            "header_value must be visible ASCII without spaces",
            "write what Vault's iam_server_id_header_value says",
        )
    found = _aws_keys(keys, context, environ)
    if role is None or found is None:
        return None
    return AwsAuth(
        role,
        found,
        region.text if region is not None else None,
        server_id.text if server_id is not None else None,
        _mount(keys, context, "aws"),
    )


def _aws_keys(keys: Fields, context: Context, environ: Mapping[str, str]) -> AwsKeys | AwsProfile | None:
    """Where AWS SDKs look first: the environment, then the shared credentials file, which may come later."""
    access, secret = environ.get("AWS_ACCESS_KEY_ID", ""), environ.get("AWS_SECRET_ACCESS_KEY", "")
    if bool(access) != bool(secret):
        name = "AWS_SECRET_ACCESS_KEY" if access else "AWS_ACCESS_KEY_ID"
        context.faults.add(keys.place_of("method"), f"the variable {name} is not set, the other one is", "export both")
        return None
    if access:
        try:
            return keys_of(access, secret, environ.get("AWS_SESSION_TOKEN", ""), "the environment")
        except SecretUnavailable as error:
            context.faults.add(keys.place_of("method"), error.reason, "export the keys as AWS gives them")
            return None
    file = environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    if file.startswith("~/"):
        try:
            path = Path(environ.get("HOME") or Path.home()) / file.removeprefix("~/")
        except RuntimeError:
            context.faults.add(
                keys.place_of("method"),
                "there are no AWS keys: neither in variables nor in a home",
                "set AWS_SHARED_CREDENTIALS_FILE",
            )
            return None
    else:
        path = context.folder / file
    return AwsProfile(path, environ.get("AWS_PROFILE") or "default")


_METHODS: Final[Mapping[str, Callable[[Fields, Context, Mapping[str, str]], VaultAuth | None]]] = {
    "token_file": _token_file,
    "token": _token,
    "approle": _approle,
    "kubernetes": _kubernetes,
    "jwt": _jwt,
    "cert": _cert,
    "aws": _aws,
}


def _path(keys: Fields, key: str, context: Context) -> Path | None:
    """A file that may come later: what writes it (an Agent, an orchestrator) may start after us."""
    scalar = keys.scalar(key)
    return context.folder / scalar.text if scalar is not None else None


def _mount(keys: Fields, context: Context, default: str) -> str:
    scalar = keys.scalar("mount")
    if scalar is None:
        return default
    text = scalar.text.strip("/")
    if not _MOUNT.fullmatch(text) or text.startswith("auth/"):
        context.faults.add(
            scalar.place, f"{scalar.text!r} is no mount of an auth method", f"write it without auth/, such as {default}"
        )
    return text


def _role(keys: Fields, context: Context) -> str | None:
    scalar = keys.scalar("role")
    if scalar is not None and not _ROLE.fullmatch(scalar.text):
        context.faults.add(scalar.place, f"{scalar.text!r} is no name of a role", "write the role's name in Vault")
    return scalar.text if scalar is not None else None


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
