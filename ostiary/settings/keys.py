"""Keys of ostiary.yaml: what is known and what is of the contract but not built yet. docs/reference/settings.md is
checked against this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "settings": ("listen", "ca", "vault", "secrets_file", "secrets_key", "store", "audit", "admin", "policies", "vars", "egress", "limits", "state", "engine", "addons", "workers"),
    "listen": ("name", "bind", "workload", "mode", "hosts", "tls", "socket_mode"),
    "listen_tls": ("cert", "key"),
    "ca": ("dir",),
    "vault": ("addresses", "namespace", "ca_file", "client_cert", "client_key", "auth"),
    "auth": ("method", "file", "env", "role_id", "secret_id_file", "wrapped_file", "role", "jwt_file", "mount", "region", "header_value"),
    "secrets_key": ("file", "env", "credential"),
    "audit": ("sinks", "durability", "wait", "reserve"),
    "sink": ("file", "stdout"),
    "admin": ("bind", "socket_mode", "probes", "tokens"),
    "token": ("name", "hash", "roles"),
    "policies": ("files", "may"),
    "may": ("define", "hosts", "secrets", "workloads"),
    "may_secret": ("namespace", "path"),
    "egress": ("allow", "resolve", "ca_file"),
    "addon": ("addon", "options", "timeout"),
    "state": ("url", "username", "password", "ca_file", "prefix", "deadline", "allow_cleartext"),
    "limits": (
        "request_line", "header_bytes", "header_count", "header_timeout", "connect_timeout", "first_byte_timeout", "idle_timeout", "total_timeout",
        "drain_timeout", "connections", "connections_per_source", "connections_per_workload", "buffers", "buffered_body",
    ),
}  # fmt: skip

LATER: Final[Mapping[str, Mapping[str, str]]] = {
    "settings": {
        "identity": "tokens of an issuer come later; use key_hash, peer or any",
    },
    "listen": {"client_ca": "client certificates as proof come later"},
    "listen_tls": {"client_ca": "client certificates as proof come later"},
    "ca": {"vault_pki": "a CA in Vault comes later; write dir"},
    "sink": {
        "syslog": "syslog comes later",
        "otlp": "OTLP comes later",
        "kafka": "Kafka comes later",
        "s3": "S3 comes later",
    },
    "limits": {},
}
