"""Requests and credentials for signers, made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from addons.credentials import Credential
from addons.head import RequestHead
from addons.signing.outgoing import Outgoing
from policies.model import CredentialSpec, SecretSpec
from vault.secret import Secret

SPEC = CredentialSpec("api", {"secret": SecretSpec("secret/api", "key")})


def credential(fields: Mapping[str, str | bytes]) -> Credential:
    """What one version of a secret holds."""
    return Credential(SPEC, {"secret": {name: Secret(value) for name, value in fields.items()}})


def outgoing(
    method: str,
    target: bytes,
    fields: Sequence[tuple[bytes, bytes]] = (),
    body: bytes | None = b"",
    *,
    host: bytes = b"api.test",
    caller: Sequence[tuple[bytes, bytes]] | None = None,
    caller_target: bytes | None = None,
) -> Outgoing:
    """A request that leaves; `caller` is what came, where it differs."""
    head = RequestHead(
        method,
        target if caller_target is None else caller_target,
        tuple(fields if caller is None else caller),
        http2=False,
    )
    return Outgoing(method, "https", host, target, fields, body, head, http2=False)
