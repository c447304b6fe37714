"""`ostiary secret`: the embedded store. Values come on stdin, never as arguments, and are never printed."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from typing import Any

from ostiary.cli.common import CommandFailed, add_config, config_of


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "secret",
        help="keep secrets in the embedded store",
        description="Keeps secrets in the embedded store: one sealed file, versions as in a key-value store.",
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
