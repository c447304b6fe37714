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


def _policy(options: argparse.Namespace) -> int:
    from ostiary.settings import load_all
    from ostiary.vault_policy import least_policy

    settings, policy = load_all(config_of(options), os.environ)
    if settings.vault is None:
        raise CommandFailed(f"{settings.file} names no Vault: add vault: {{addresses: […], auth: …}}", 78)
    secrets = [secret for _, secret in policy.secret_refs()]
    print(least_policy(secrets, settings.vault.namespace), end="")
    return 0
