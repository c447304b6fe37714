"""`ostiary ca`: the certificate that callers must trust."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import sys
from typing import Any

from ostiary.cli.common import CommandFailed, add_config, config_of


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "ca",
        help="show or export the CA certificate",
        description="The CA whose certificates callers see. Its key never leaves its file.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser(
        "show",
        help="tell name, dates and fingerprint",
        description="Tells where the CA lies, its name, dates and SHA-256 fingerprint. Makes it if there is none yet.",
    )
    add_config(show)
    show.set_defaults(command=_show)
    export = actions.add_parser(
        "export",
        help="print the certificate as PEM",
        description="Prints the CA certificate as PEM on stdout. Makes the CA if there is none yet.",
    )
    add_config(export)
    export.set_defaults(command=_export)


def _authority(options: argparse.Namespace) -> Any:
    from ostiary.ca import CaError, load_or_create
    from ostiary.settings import load_settings

    settings = load_settings(config_of(options), os.environ)
    try:
        return settings, load_or_create(settings.ca_dir, dt.datetime.now(dt.UTC))
    except CaError as error:
        raise CommandFailed(str(error), 78) from None


def _show(options: argparse.Namespace) -> int:
    from cryptography.hazmat.primitives import hashes

    settings, authority = _authority(options)
    cert = authority.cert
    print(f"certificate  {settings.ca_dir / 'ca.pem'}")
    print(f"name         {cert.subject.rfc4514_string()}")
    print(f"valid        {cert.not_valid_before_utc:%Y-%m-%d} to {cert.not_valid_after_utc:%Y-%m-%d}")
    print(f"sha256       {cert.fingerprint(hashes.SHA256()).hex(':')}")
    return 0


def _export(options: argparse.Namespace) -> int:
    _, authority = _authority(options)
    sys.stdout.write(authority.pem.decode())
    return 0
