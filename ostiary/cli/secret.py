"""`ostiary secret`: the embedded store, and the secrets of a running process. Values come on stdin, never as arguments,
and are never printed.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from typing import Any
from urllib.parse import quote

from ostiary.cli.admin_call import add_admin, ask
from ostiary.cli.common import CommandFailed, add_config, config_of


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "secret",
        help="keep secrets in the embedded store; look after those of a running process",
        description="Keeps secrets in the embedded store: one sealed file, versions as in a key-value store. refresh and status ask a running process instead, whichever store it reads.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    init = actions.add_parser(
        "init",
        help="make the key and an empty secrets file",
        description="Makes the key file and an empty secrets file, both readable by you alone. Overwrites nothing.",
    )
    add_config(init)
    init.set_defaults(command=_init)

    put = actions.add_parser(
        "set",
        help="store a field; the value is read from stdin",
        description="Stores one field as a new version of PATH; the other fields stay. The value is read from stdin; one trailing newline is dropped.",
    )
    add_config(put)
    put.add_argument("path", metavar="PATH", help="mount/path, such as secret/egress/stripe")
    put.add_argument("field", metavar="FIELD", help="name of the field, such as api_key")
    put.add_argument("--raw", action="store_true", help="store every byte of stdin, a trailing newline too")
    put.set_defaults(command=_set)

    listing = actions.add_parser(
        "list",
        help="list paths, versions and field names",
        description="Lists paths with their newest version and field names; never values.",
    )
    add_config(listing)
    listing.set_defaults(command=_list)

    remove = actions.add_parser(
        "rm",
        help="remove a path, or one field of it",
        description="Removes PATH with all its versions, or one FIELD by a new version without it.",
    )
    add_config(remove)
    remove.add_argument("path", metavar="PATH")
    remove.add_argument("field", metavar="FIELD", nargs="?")
    remove.set_defaults(command=_remove)

    history = actions.add_parser(
        "history",
        help="list the versions of a path",
        description="Lists the kept versions of PATH with their times and field names; never values.",
    )
    add_config(history)
    history.add_argument("path", metavar="PATH")
    history.set_defaults(command=_history)

    refresh = actions.add_parser(
        "refresh",
        help="make a running process use the newest version now",
        description="Asks the admin API to read PATH past the cache and returns when the version found is in use. The token comes from --token-file or $OSTIARY_ADMIN_TOKEN.",
    )
    add_admin(refresh)
    refresh.add_argument("path", metavar="PATH", help="whole path, such as secret/egress/stripe")
    refresh.set_defaults(command=_refresh)

    status = actions.add_parser(
        "status",
        help="tell which versions a running process uses",
        description="Asks the admin API which versions of its secrets are in use, how old they are, when they end, and who used the version before last. The token comes from --token-file or $OSTIARY_ADMIN_TOKEN.",
    )
    add_admin(status)
    status.add_argument("path", metavar="PATH", nargs="?", help="this secret alone")
    status.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    status.set_defaults(command=_status)


def _settings(options: argparse.Namespace) -> Any:
    """The settings as far as the embedded store needs them: policies need not be right yet."""
    from ostiary.settings import load_settings

    settings = load_settings(config_of(options), os.environ)
    if settings.secrets_file is None or settings.secrets_key is None:
        raise CommandFailed(f"{settings.file} has no embedded store: add secrets_file: and secrets_key:", 78)
    return settings


def _open(options: argparse.Namespace) -> Any:
    from vault.sealed import SealedFile, SealedFileError, read_key

    settings = _settings(options)
    try:
        return SealedFile(settings.secrets_file, read_key(settings.secrets_key, os.environ))
    except SealedFileError as error:
        raise CommandFailed(str(error)) from None


def _init(options: argparse.Namespace) -> int:
    from vault.sealed import KeyFile, SealedFile, SealedFileError

    settings = _settings(options)
    if not isinstance(settings.secrets_key, KeyFile):
        raise CommandFailed("secret init makes a key file: write secrets_key: {file: …}")
    try:
        SealedFile.create(settings.secrets_file, settings.secrets_key.path)
    except SealedFileError as error:
        raise CommandFailed(str(error)) from None
    print(
        f"made {settings.secrets_key.path} and {settings.secrets_file}; back up the key: without it the secrets are lost"
    )
    return 0


def _value(options: argparse.Namespace) -> bytes:
    if sys.stdin.isatty():
        return getpass.getpass(f"value of {options.path} {options.field} (not shown): ").encode()
    raw = sys.stdin.buffer.read(1024 * 1024 + 1)
    if len(raw) > 1024 * 1024:
        raise CommandFailed("the value is larger than 1 MiB")
    if options.raw:
        return raw
    return raw.removesuffix(b"\n").removesuffix(b"\r") if raw.endswith(b"\r\n") else raw.removesuffix(b"\n")


def _set(options: argparse.Namespace) -> int:
    from vault.sealed import SealedFileError
    from vault.secret import Secret

    file = _open(options)
    value = Secret(_value(options))
    if not value:
        raise CommandFailed("the value is empty; nothing was stored")
    try:
        version = file.set(options.path, options.field, value)
    except SealedFileError as error:
        raise CommandFailed(str(error)) from None
    print(f"{options.path} version {version}")
    return 0


def _list(options: argparse.Namespace) -> int:
    return _print(options, lambda file: file.list())


def _history(options: argparse.Namespace) -> int:
    return _print(options, lambda file: file.history(options.path))


def _print(options: argparse.Namespace, read: Any) -> int:
    from vault.sealed import SealedFileError

    try:
        rows = read(_open(options))
    except SealedFileError as error:
        raise CommandFailed(str(error)) from None
    if not rows and getattr(options, "path", None):
        raise CommandFailed(f"there is no secret {options.path}")
    for row in rows:
        print(f"{row.path}\tversion {row.version}\t{row.created_at}\t{', '.join(row.fields)}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    from vault.sealed import SealedFileError

    try:
        removed = _open(options).remove(options.path, options.field)
    except SealedFileError as error:
        raise CommandFailed(str(error)) from None
    what = f"field {options.field} of {options.path}" if options.field else options.path
    if not removed:
        raise CommandFailed(f"there is no {what}")
    print(f"removed {what}")
    return 0


# --- a running process ---


def _refresh(options: argparse.Namespace) -> int:
    status, found = ask(options, "POST", f"/secrets/{quote(options.path.strip('/'), safe='')}/refresh")
    if status != 200:
        raise CommandFailed(f"{found['title']}: {found['detail']}")
    change = "" if found.get("changed") else ", unchanged"
    print(f"{found.get('secret')} version {found.get('version')} is in use{change}")
    return 0


def _status(options: argparse.Namespace) -> int:
    status, found = ask(options, "GET", "/secrets")
    if status != 200:
        raise CommandFailed(f"{found['title']}: {found['detail']}")
    wanted = options.path.strip("/") if options.path else None
    secrets = [one for one in found.get("secrets", ()) if wanted is None or one.get("secret") == wanted]
    if wanted is not None and not secrets:
        raise CommandFailed(f"no route reads {wanted}")
    if options.json:
        print(json.dumps({"secrets": secrets}))
        return 0
    for one in secrets:
        print("\n".join(_lines(one)))
    return 0


def _lines(one: dict[str, Any]) -> list[str]:
    """One secret, in words."""
    pinned = f" (pinned to version {one['pinned']})" if "pinned" in one else ""
    lines = [f"{one['secret']}{pinned}, read by {', '.join(one['routes'])}"]
    if "version" in one:
        made = f", made {one['created_at']}" if "created_at" in one else ""
        lines.append(f"  version {one['version']} in use, confirmed {_ago(one.get('age_seconds', 0))}{made}")
        lines += _use("  ", one["requests"], one.get("last_use"))
    elif "problem" not in one:
        lines.append("  not read yet")
    if "problem" in one:
        lines.append(f"  the store said: {one['problem']}")
    if "before" in one:
        lines.append(f"  version {one['before']} before it")
        lines += _use("  ", one["before_requests"], one.get("before_last_use"))
    for key, word in (("expires_at", "expires"), ("overlap_until", "overlaps until"), ("owner", "owner")):
        if key in one:
            lines.append(f"  {word} {one[key]}")
    if "pending_version" in one:
        lines.append(f"  version {one['pending_version']} is pending")
    return lines


def _use(indent: str, requests: int, last: dict[str, Any] | None) -> list[str]:
    if last is None:
        return []
    who = f"by {last['workload']} on {last['route']} " if "workload" in last and "route" in last else ""
    under_way = f", {requests} under way" if requests else ""
    return [f"{indent}  last used {who}{_ago(last['seconds_ago'])} (request {last.get('request_id', '-')}){under_way}"]


def _ago(seconds: float) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit} ago"
    return f"{seconds:.1f} s ago"
