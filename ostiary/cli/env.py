"""`ostiary env`: prints the environment that brings a client to the proxy."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ostiary.cli.common import CommandFailed, add_config, config_of

SHELLS = ("sh", "fish", "powershell", "docker", "k8s")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "env",
        help="print the environment for a client",
        description="Prints the proxy and CA variables for a client. The caller key, where one is needed, is taken from $OSTIARY_KEY.",
    )
    add_config(parser)
    parser.add_argument("--shell", choices=SHELLS, default="sh", help="how to print it (default: sh)")
    parser.add_argument(
        "--proxy", metavar="URL", help="the proxy (default: the first forward listener of the settings)"
    )
    parser.add_argument(
        "--certs",
        metavar="DIR",
        type=Path,
        help="write what clients trust into DIR, for clients that may not read the CA's folder (default: that folder)",
    )
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    from ostiary.settings import load_all

    settings, policy = load_all(config_of(options), os.environ)
    address = options.proxy
    if address is None:
        first = next((one for one in settings.listen if one.mode == "forward"), None)
        if first is None:
            raise CommandFailed("every listener is a reverse listener: clients are given its URL as base URL, no proxy")
        if first.bind.path is not None or first.bind.port == 0:
            raise CommandFailed("the first listener has no fixed TCP address: name the proxy with --proxy URL")
        address = f"https://{first.bind}" if first.tls is not None else str(first.bind)
    made = for_client(settings, policy, address, os.environ.get("OSTIARY_KEY"), os.environ, certs=options.certs)
    for warning in made.warnings:
        sys.stderr.write(f"ostiary: warning: {warning}\n")
    sys.stdout.write(render(made.variables, options.shell))
    return 0


def for_client(
    settings: Any,
    policy: Any,
    address: str,
    key: str | None,
    inherited: Mapping[str, str],
    *,
    certs: Path | None = None,
) -> Any:
    """The environment for a client of these settings; writes the CA bundle, into `certs` if that is given. The CA's own
    folder is closed to other users: it holds the key.

    Raises:
        CommandFailed: the CA cannot be used.
    """
    from ostiary.ca import CERT_FILE, CaError, load_or_create
    from ostiary.environment import client_environment, proxy_url, write_bundle, write_public
    from ostiary.java import write_trust_store

    try:
        authority = load_or_create(settings.ca_dir, dt.datetime.now(dt.UTC))
        ca_file = settings.ca_dir / CERT_FILE
        if certs is not None:
            certs.mkdir(parents=True, exist_ok=True)
            ca_file = write_public(certs / CERT_FILE, authority.pem)
        bundle = write_bundle(certs or settings.ca_dir, authority.pem)
        write_trust_store(bundle)
    except CaError as error:
        raise CommandFailed(str(error), 78) from None
    except OSError as error:
        raise CommandFailed(
            f"the CA bundle cannot be written into {certs or settings.ca_dir}: {error.strerror}"
        ) from None
    hosts = dict.fromkeys(host.text for route in policy.routes.values() for host in route.hosts)
    placeholders: dict[str, str] = {}
    for route in policy.routes.values():
        placeholders |= route.presets.placeholders if route.presets is not None else {}
    return client_environment(
        proxy_url(address, key), ca_file.resolve(), bundle.resolve(), inherited, hosts, placeholders
    )


def render(variables: Mapping[str, str], shell: str) -> str:
    """The variables in a shell's own syntax."""
    match shell:
        case "sh":
            return "".join(f"export {name}={_quoted(value)}\n" for name, value in variables.items())
        case "fish":
            return "".join(
                "set -gx {} '{}'\n".format(name, value.replace("\\", "\\\\").replace("'", "\\'"))
                for name, value in variables.items()
            )
        case "powershell":
            # PowerShell's variables know no case: one spelling of each.
            seen = {name.upper(): value for name, value in variables.items()}
            return "".join("$env:{} = '{}'\n".format(name, value.replace("'", "''")) for name, value in seen.items())
        case "docker":
            return "".join(f"{name}={value}\n" for name, value in variables.items())
        case _:
            lines = "".join(f"  - name: {name}\n    value: {json.dumps(value)}\n" for name, value in variables.items())
            return f"env:\n{lines}"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"
