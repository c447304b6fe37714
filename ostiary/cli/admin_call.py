"""Calls of the admin API of a running process, for the commands that need one."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any, Final

from ostiary.cli.common import CommandFailed, add_config, config_of

TOKEN_VARIABLE: Final = "OSTIARY_ADMIN_TOKEN"  # noqa: S105 - the name of a variable
ANSWER_S: Final = 40.0
"""A little longer than the API takes for an answer."""
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024


def add_admin(parser: argparse.ArgumentParser) -> None:
    """`--config`, `--admin` and `--token-file`."""
    add_config(parser)
    parser.add_argument(
        "--admin", metavar="ADDRESS", help="host:port or unix:/path (default: admin.bind of the settings)"
    )
    parser.add_argument("--token-file", metavar="FILE", type=Path, help="file that holds the admin token")


def ask(options: argparse.Namespace, method: str, path: str) -> tuple[int, dict[str, Any]]:
    """Status and body of the answer.

    Raises:
        CommandFailed: there is none, or it is none of an admin API.
    """
    address = options.admin or _address(options)
    status, found = _call(address, method, path, _token(options))
    if status != 200 and ("title" not in found or "detail" not in found):
        raise CommandFailed(f"what answers at {address} is no admin API (status {status})")
    return status, found


def _address(options: argparse.Namespace) -> str:
    from ostiary.settings import load_settings

    admin = load_settings(config_of(options), os.environ).admin
    if admin is None or admin.bind is None:
        raise CommandFailed("the settings name no admin.bind (or name the address with --admin)", 78)
    if admin.bind.path is None and admin.bind.port == 0:
        raise CommandFailed("admin.bind has port 0: name the address of the ready line with --admin", 78)
    return str(admin.bind)


def _token(options: argparse.Namespace) -> str:
    if options.token_file is not None:
        try:
            token = options.token_file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise CommandFailed(f"{options.token_file} holds no token that can be read", 78) from None
    else:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise CommandFailed(
            f"there is no admin token: export {TOKEN_VARIABLE} or name a --token-file (ostiary key mint --admin NAME makes one)",
            78,
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise CommandFailed("the admin token holds characters that no token has", 78)
    return str(token)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _call(address: str, method: str, path: str, token: str) -> tuple[int, dict[str, Any]]:
    if address.startswith("unix:"):
        connection: http.client.HTTPConnection = _UnixConnection(address.removeprefix("unix:"))
    else:
        try:
            connection = http.client.HTTPConnection(address, timeout=ANSWER_S)
        except http.client.InvalidURL:
            raise CommandFailed(f"{address} is no address of an admin API", 64) from None
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        found = json.loads(answer.read(MAX_ANSWER_BYTES))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CommandFailed(f"the admin API at {address} cannot be reached: {reason}") from None
    except (http.client.HTTPException, ValueError):
        raise CommandFailed(f"what answers at {address} is no admin API") from None
    finally:
        connection.close()
    return answer.status, found if isinstance(found, dict) else {}
