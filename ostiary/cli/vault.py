"""`ostiary vault`: what a Vault must be told for the loaded routes."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ostiary.cli.common import CommandFailed, add_config, config_of


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "vault",
        help="print what a Vault must be told",
        description="Prints what a Vault must be told for the loaded routes. Changes no Vault and asks none.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    least = actions.add_parser(
        "policy",
        help="print the least Vault policy for the loaded routes",
        description="Prints, in Vault's language, the least policy that the loaded routes need: vault policy write NAME - reads it from stdin. check --live tells whether the login has it.",
    )
    add_config(least)
    least.set_defaults(command=_policy)
    setup = actions.add_parser(
        "setup",
        help="print the commands for policy, auth method and role",
        description="Prints, for review, the commands of Vault's own tool that make the least policy for the loaded routes, the auth method and a role.",
    )
    add_config(setup)
    setup.add_argument("--dry-run", action="store_true", help="print the commands (needed: nothing else is done)")
    setup.add_argument(
        "--method", choices=("approle", "kubernetes", "jwt"), help="auth method (default: vault.auth.method)"
    )
    setup.add_argument("--role", metavar="NAME", default="ostiary", help="role, where the settings name none (ostiary)")
    setup.add_argument("--policy", metavar="NAME", default="ostiary", help="name of Vault's policy (ostiary)")
    setup.add_argument("--tool", choices=("vault", "bao"), default="vault", help="whose commands (vault)")
    setup.set_defaults(command=_setup)


def _policy(options: argparse.Namespace) -> int:
    from ostiary.settings import load_all
    from ostiary.vault_policy import least_policy

    settings, policy = load_all(config_of(options), os.environ)
    if settings.vault is None:
        raise CommandFailed(f"{settings.file} names no Vault: add vault: {{addresses: […], auth: …}}", 78)
    secrets = [secret for _, secret in policy.secret_refs()]
    keys = [use for _, use in policy.transit_uses()]
    print(least_policy(secrets, settings.vault.namespace, keys), end="")
    return 0


def _setup(options: argparse.Namespace) -> int:
    from ostiary.settings import load_all
    from ostiary.vault_setup import Setup, commands, method_named

    if not options.dry_run:
        raise CommandFailed(
            "Ostiary changes no Vault: add --dry-run, read the commands, and run them with a token of your own", 64
        )
    settings, policy = load_all(config_of(options), os.environ)
    method = options.method or method_named(settings.vault)
    if method is None:
        raise CommandFailed("vault.auth names no approle, kubernetes or jwt: say which with --method", 64)
    setup = Setup(method, options.role, options.policy, options.tool)
    secrets, keys = [secret for _, secret in policy.secret_refs()], [use for _, use in policy.transit_uses()]
    print(commands(setup, settings.vault, secrets, keys), end="")
    return 0
