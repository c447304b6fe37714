"""`ostiary key mint`: a new caller key or admin token, shown once. Only its hash goes into policy or settings."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
from typing import Any

KEY_BYTES = 32


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "key", help="make caller keys", description="Makes keys by which workloads prove themselves."
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    mint = actions.add_parser(
        "mint",
        help="make a key; prints it and its hash once",
        description="Prints a new key of 256 random bits and its hash as JSON. The hash goes into the policy (key_hash) or the settings (admin tokens); the key goes to the caller and is stored nowhere.",
    )
    who = mint.add_mutually_exclusive_group(required=True)
    who.add_argument("--workload", metavar="W", help="for a workload: put the hash under its proofs as key_hash")
    who.add_argument("--admin", metavar="NAME", help="for the admin API: put the hash under admin.tokens")
    mint.set_defaults(command=command)


def new_key() -> str:
    """A fresh caller key."""
    return "ost_" + base64.urlsafe_b64encode(os.urandom(KEY_BYTES)).decode().rstrip("=")


def key_hash(key: str) -> str:
    """Lower-case hex SHA-256 of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def command(options: argparse.Namespace) -> int:  # noqa: ARG001 - the name only says what for
    key = new_key()
    print(json.dumps({"key": key, "hash": f"sha256:{key_hash(key)}"}))
    return 0
