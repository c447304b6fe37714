"""A real database (Valkey) whose users Vault makes, lends and removes: `database/creds/ROLE` of OpenBao, or of HashiCorp
Vault with its Redis plugin.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import urllib.error
from typing import Any, Final

from tests.harness.openbao import OpenBao
from tests.harness.upstream import Script, Seen, Wire, plain
from tests.harness.valkey import Valkey
from tests.harness.vault_binary import vault_version

PASSWORD: Final = "of-the-database-itself"
MAY: Final = """
path "database/creds/*" { capabilities = ["read"] }
path "sys/leases/renew" { capabilities = ["update"] }
path "sys/leases/revoke" { capabilities = ["update"] }
path "auth/token/*" { capabilities = ["read", "update"] }
path "sys/capabilities-self" { capabilities = ["update"] }
"""


def plugin() -> str:
    """The database plugin of this server."""
    return "valkey-database-plugin" if vault_version().startswith("OpenBao") else "redis-database-plugin"


def connect(openbao: OpenBao, valkey: Valkey) -> None:
    """Mounts the engine and leads it to the database, as its user `default`."""
    with contextlib.suppress(urllib.error.HTTPError):
        openbao.api("POST", "sys/mounts/database", {"type": "database"})
    connection = {
        "plugin_name": plugin(), "host": "127.0.0.1", "port": valkey.port, "username": "default",
        "password": PASSWORD, "allowed_roles": "*",
    }  # fmt: skip
    openbao.api("POST", "database/config/valkey", connection)


def role(openbao: OpenBao, name: str, default_ttl: str, max_ttl: str) -> None:
    """A role whose users may read."""
    body = {"db_name": "valkey", "creation_statements": '["+@read"]'}
    openbao.api("POST", f"database/roles/{name}", {**body, "default_ttl": default_ttl, "max_ttl": max_ttl})


def said(valkey: Valkey, *words: str, username: str = "default", password: str = PASSWORD) -> bytes:
    """What the database answers a user; empty where it does not let the user in."""
    with socket.create_connection(("127.0.0.1", valkey.port), 5) as link:
        link.sendall(f"AUTH {username} {password}\r\n".encode())
        if not link.recv(200).startswith(b"+OK"):
            return b""
        link.sendall((" ".join(words) + "\r\n").encode())
        return link.recv(65536)


def users(valkey: Valkey) -> list[str]:
    """Users that Vault has made and not removed."""
    lines = said(valkey, "ACL", "USERS").decode().split("\r\n")
    return sorted(known_as(line) for line in lines if line and line[0] not in "*$" and line != "default")


def known_as(username: str) -> str:
    """A short name of a user that is no part of its credential."""
    return hashlib.sha256(username.encode()).hexdigest()[:16]


def logs_in(valkey: Valkey, username: str, password: str) -> bool:
    """Whether the database lets this user in."""
    return said(valkey, "PING", username=username, password=password) != b""


def opens(valkey: Valkey, fields: Any) -> bool:
    """The same, for the fields of a secret."""
    return logs_in(valkey, fields["username"].reveal_bytes().decode(), fields["password"].reveal_bytes().decode())


def asks(valkey: Valkey) -> Script:
    """An API that lets in whom the database lets in, by Basic authentication, and answers with what the user is
    known as: the name itself is part of the credential, and would be taken out of the answer.
    """

    def script(seen: Seen, wire: Wire) -> None:
        kind, _, coded = (seen.get("authorization") or "").partition(" ")
        username, _, password = base64.b64decode(coded).decode().partition(":")
        if kind == "Basic" and logs_in(valkey, username, password):
            plain(known_as(username).encode())(seen, wire)
        else:
            plain(b"no such user", 401, ("www-authenticate", "Basic"))(seen, wire)

    return script
