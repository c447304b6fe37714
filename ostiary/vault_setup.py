"""What a Vault must be told so that the loaded routes can be served: the least policy, an auth method, a role. As commands
of Vault's own tool, for people to read and run; Ostiary never changes a Vault's configuration.

What only the reader knows (the cluster's address, an issuer) is a shell variable that must be set.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ostiary.vault_policy import least_policy
from policies.model import SecretSpec
from policies.sign import TransitUse
from vault.hashicorp.config import AppRoleAuth, JwtAuth, KubernetesAuth, VaultConfig

type MethodName = Literal["approle", "kubernetes", "jwt"]
METHODS: Final[tuple[MethodName, ...]] = ("approle", "kubernetes", "jwt")
PERIOD: Final = "1h"

_CONFIG: Final[dict[MethodName, str]] = {
    "approle": "",
    "kubernetes": (
        "# Vault asks this cluster about each token; with a Vault inside the cluster leave the last line out.\n"
        "{tool} write auth/{mount}/config \\\n"
        '  kubernetes_host="${{KUBERNETES_HOST:?set it to the URL of the API server, as Vault reaches it}}" \\\n'
        '  kubernetes_ca_cert=@"${{KUBERNETES_CA:?set it to a file with the CA of the API server}}" \\\n'
        '  token_reviewer_jwt=@"${{REVIEWER_JWT:?set it to a file with a token that may create TokenReviews}}"\n'
    ),
    "jwt": (
        "# ISSUER_KEY names a file with the public key of the issuer; without it, ISSUER_URL is asked for its keys.\n"
        'if [ -n "${{ISSUER_KEY:-}}" ]\n'
        'then {tool} write auth/{mount}/config jwt_validation_pubkeys=@"$ISSUER_KEY"\n'
        "else {tool} write auth/{mount}/config \\\n"
        '  oidc_discovery_url="${{ISSUER_URL:?set it to the URL of the issuer, or ISSUER_KEY to a file with its public key}}"\n'
        "fi\n"
    ),
}
_ROLE: Final[dict[MethodName, str]] = {
    "approle": "{tool} write auth/{mount}/role/{role} {token}\n",
    "kubernetes": (
        "{tool} write auth/{mount}/role/{role} {token} \\\n"
        '  bound_service_account_names="${{SERVICE_ACCOUNT:?set it to the service account of the pod}}" \\\n'
        '  bound_service_account_namespaces="${{SERVICE_NAMESPACE:?set it to the namespace of the pod}}"\n'
    ),
    "jwt": (
        "{tool} write auth/{mount}/role/{role} {token} \\\n"
        "  role_type=jwt user_claim=sub \\\n"
        '  bound_audiences="${{AUDIENCE:?set it to the audience of the tokens}}" \\\n'
        '  bound_subject="${{SUBJECT:?set it to the subject of the tokens}}"\n'
    ),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """What is set up, under which names.

    Args:
        method: the auth method.
        role: name of the role.
        policy: name of the policy.
        tool: `vault` or `bao`.
    """

    method: MethodName
    role: str = "ostiary"
    policy: str = "ostiary"
    tool: Literal["vault", "bao"] = "vault"


def method_named(config: VaultConfig | None) -> MethodName | None:
    """The method of the settings, if it is one that is set up by commands."""
    match config.auth if config is not None else None:
        case AppRoleAuth():
            return "approle"
        case KubernetesAuth():
            return "kubernetes"
        case JwtAuth():
            return "jwt"
        case _:
            return None


def commands(
    setup: Setup, config: VaultConfig | None, secrets: Sequence[SecretSpec], keys: Sequence[TransitUse] = ()
) -> str:
    """The commands, as a script for `sh`.

    Args:
        setup: names.
        config: of the settings: mount, role, namespace and files are taken from it where its method is this one.
        secrets: what routes read.
        keys: what signs for them inside Vault.
    """
    auth = config.auth if config is not None and method_named(config) == setup.method else None
    mount = getattr(auth, "mount", None) or setup.method
    role = getattr(auth, "role", None) or setup.role
    quoted = {
        "tool": setup.tool,
        "mount": shlex.quote(mount),
        "role": shlex.quote(role),
        "token": f"token_policies={shlex.quote(setup.policy)} token_no_default_policy=true token_period={PERIOD}",
    }
    namespace = config.namespace if config is not None else None
    parts = ["# Read it, then run it with a token that may write policies and auth methods.\nset -eu\n"]
    if namespace:
        parts.append(f"export {'BAO' if setup.tool == 'bao' else 'VAULT'}_NAMESPACE={shlex.quote(namespace)}\n")
    parts.append(
        f"\n{setup.tool} policy write {shlex.quote(setup.policy)} - <<'POLICY'\n{least_policy(secrets, namespace, keys)}POLICY\n"
    )
    parts.append(
        "\n{tool} auth list -format=json | grep -q '\"{plain}/\"' || {tool} auth enable -path={mount} {method}\n".format(
            **quoted, plain=mount, method=setup.method
        )
    )
    parts.append(_CONFIG[setup.method].format(**quoted))
    parts.append(_ROLE[setup.method].format(**quoted))
    if setup.method == "approle":
        parts.append(_approle_files(auth if isinstance(auth, AppRoleAuth) else None, quoted))
    return "".join(parts)


def _approle_files(auth: AppRoleAuth | None, quoted: dict[str, str]) -> str:
    """Role id and secret id, into the files that the settings name."""
    path = "auth/{mount}/role/{role}".format(**quoted)
    tool = quoted["tool"]
    wrapped = auth.wrapped_file if auth is not None else None
    role_file = auth.role_id if auth is not None and isinstance(auth.role_id, Path) else "role-id"
    secret_file = (auth.secret_id_file if auth is not None else None) or "secret-id"
    text = f"\n{tool} read -field=role_id {path}/role-id > {shlex.quote(str(role_file))}\n"
    if wrapped is not None:
        return text + (
            "# It can be unwrapped once, within five minutes: start Ostiary.\n"
            f"(umask 077 && {tool} write -wrap-ttl=5m -f -field=wrapping_token {path}/secret-id > {shlex.quote(str(wrapped))})\n"
        )
    return (
        text + f"(umask 077 && {tool} write -f -field=secret_id {path}/secret-id > {shlex.quote(str(secret_file))})\n"
    )
