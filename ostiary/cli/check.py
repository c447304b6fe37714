"""`ostiary check`: loads settings and policies as `run` would, and tells every fault."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import Any

from ostiary.cli.common import add_config, config_of


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="check settings and policies",
        description="Loads settings and policies as run would and lists every fault as file:line:column. Touches no network unless --live. Exit 0, or 78 with faults.",
    )
    add_config(parser)
    parser.add_argument(
        "--live",
        action="store_true",
        help="also log in to the secret store and look for every secret's fields, never its values",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    from ostiary.settings import load_to_run
    from policies.faults import FaultError

    path = config_of(options)
    try:
        settings, policy, _ = load_to_run(path, os.environ)
    except FaultError as error:
        if options.json:
            print(json.dumps({"ok": False, "faults": [str(fault) for fault in error.faults]}))
        else:
            for fault in error.faults:
                sys.stderr.write(f"{fault}\n")
            sys.stderr.write(f"{_counted(len(error.faults), 'fault')}\n")
        return 78
    notes: list[str] = []
    problems, waiting = asyncio.run(_live(settings, policy, notes)) if options.live else ([], "")
    presets = {name: route.presets.keys for name, route in policy.routes.items() if route.presets is not None}
    summary = {
        "routes": len(policy.routes),
        "workloads": len(policy.workloads),
        "policy": policy.version,
        "store": settings.store,
        **({"presets": presets} if presets else {}),
        **({"notes": notes} if notes else {}),
    }
    if options.json:
        print(
            json.dumps({"ok": not problems, "faults": problems, **summary, **({"waiting": waiting} if waiting else {})})
        )
        return 78 if problems else 0
    for problem in [*notes, *problems]:
        sys.stderr.write(f"{problem}\n")
    if problems:
        return 78
    live = ", and every secret has its fields" if options.live else ""
    if waiting:
        live = f"; no secret was looked for: {waiting}"
    print(
        f"{path}: {_counted(len(policy.routes), 'route')} for {_counted(len(policy.workloads), 'workload')}, secrets from {settings.store}{live}"
    )
    for name, keys in presets.items():
        origins = ", ".join(f"{key} of {preset}" for key, preset in keys.items())
        print(f"{policy.routes[name].place}: route {name} has {origins}")
    return 0


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


async def _live(settings: Any, policy: Any, notes: list[str]) -> tuple[list[str], str]:
    """Asks the store for the fields that routes need, and Vault for the rights of the login. What could not be asked goes
    to `notes`. What is wrong, and why nothing was asked for, if so.
    """
    from addons.credentials import reference_of
    from addons.telemetry import Metrics
    from ostiary.stores import StoreFailed, open_store
    from vault.store import StoreError

    try:
        store = open_store(settings, os.environ, Metrics())
    except StoreFailed as error:
        return [str(error)], ""
    problems: list[str] = []
    try:
        examine = getattr(store, "examine", None)
        if examine is not None and (waiting := await examine()):
            return [], waiting
        problems += await _rights(settings, policy, store, notes)
        for route, secret in policy.secret_refs():
            place = policy.routes[route].place
            if secret.is_made:
                continue  # asked for when it is needed; whether it may be, the rights have told
            try:
                fields = await store.fields_of(reference_of(secret))
            except StoreError as error:
                problems.append(f"{place}: route {route}: {error}")
                continue
            problems += [
                f"{place}: route {route}: secret {secret.path} has no field {field!r} (it has {', '.join(sorted(fields))})"
                for field in secret.named_fields
                if field not in fields
            ]
    except StoreError as error:
        problems.append(error.reason)
    finally:
        await store.close()
    return problems, ""


async def _rights(settings: Any, policy: Any, store: Any, notes: list[str]) -> list[str]:
    """What the login may not do of what the routes need."""
    from ostiary.vault_policy import beyond, least_policy, missing

    if settings.store != "vault" or settings.vault is None:
        return []
    keys = [use for _, use in policy.transit_uses()]
    least = least_policy([secret for _, secret in policy.secret_refs()], settings.vault.namespace, keys)
    told = await store.capabilities([rule.path for rule in least.rules])
    if not told:
        notes.append(
            "note: the Vault token may not ask what it may do (sys/capabilities-self), so only names of fields were asked for"
        )
        return []
    notes += [f"note: {more}" for more in beyond(least, told)]
    lacking = missing(least, told)
    return [*lacking, "ostiary vault policy prints the policy that is needed"] if lacking else []
