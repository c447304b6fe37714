"""Reads the signers of single vendors (`edgegrid:`, `acs3:`, `tc3:`), and `dpop:`."""

from __future__ import annotations

import re
from typing import Final, cast

from policies.document import Mapping as MappingNode
from policies.document import Node
from policies.fields import Fields
from policies.keys import ACS3, DPOP, EDGEGRID, TC3
from policies.load_parts import Context
from policies.load_sign_parts import judge_one_secret, signed_names, template_of
from policies.sign import Acs3Signer, DpopSigner, EdgeGridSigner, ProofAlgorithm, Tc3Signer

_SERVICE: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_MAX_BODY_BYTES: Final = 131_072
_MOST_BODY_BYTES: Final = 8 * 1024 * 1024


def read_edgegrid(route: str, node: Node, context: Context) -> EdgeGridSigner | None:
    keys = Fields(node, context.faults, f"edgegrid of route {route}", known=EDGEGRID)
    if not isinstance(node, MappingNode) or not keys.require("client_token", "client_secret", "access_token"):
        return None
    client = template_of(keys, "client_token", context, secret=False)
    secret = template_of(keys, "client_secret", context, secret=True, alone=True)
    access = template_of(keys, "access_token", context, secret=False)
    judge_one_secret(keys, "client_secret", (client, secret, access), context)
    size = keys.size("max_body", _MAX_BODY_BYTES)
    if size is not None and not 1 <= size <= _MOST_BODY_BYTES:
        context.faults.add(keys.place_of("max_body"), "max_body must lie between 1B and 8MiB")
    headers = signed_names(keys, context)
    if client is None or secret is None or access is None:
        return None
    return EdgeGridSigner(client, secret, access, headers, size or _MAX_BODY_BYTES)


def read_acs3(route: str, node: Node, context: Context) -> Acs3Signer | None:
    keys = Fields(node, context.faults, f"acs3 of route {route}", known=ACS3)
    if not isinstance(node, MappingNode) or not keys.require("access_key_id", "access_key_secret"):
        return None
    access = template_of(keys, "access_key_id", context, secret=False)
    secret = template_of(keys, "access_key_secret", context, secret=True, alone=True)
    token = template_of(keys, "security_token", context, secret=True, alone=True)
    judge_one_secret(keys, "access_key_secret", (access, secret, token), context)
    return None if access is None or secret is None else Acs3Signer(access, secret, token)


def read_tc3(route: str, node: Node, context: Context) -> Tc3Signer | None:
    keys = Fields(node, context.faults, f"tc3 of route {route}", known=TC3)
    if not isinstance(node, MappingNode) or not keys.require("secret_id", "secret_key", "services"):
        return None
    access = template_of(keys, "secret_id", context, secret=False)
    secret = template_of(keys, "secret_key", context, secret=True, alone=True)
    token = template_of(keys, "token", context, secret=True, alone=True)
    judge_one_secret(keys, "secret_key", (access, secret, token), context)
    services: dict[str, None] = {}
    for scalar in keys.texts("services"):
        if not _SERVICE.fullmatch(scalar.text):
            context.faults.add(
                scalar.place, f"{scalar.text!r} of services of {keys.what} is no name of a service", "cvm, sts"
            )
        services[scalar.text] = None
    if access is None or secret is None or not services:
        return None
    return Tc3Signer(access, secret, tuple(services), token)


def read_dpop(route: str, node: Node, context: Context) -> DpopSigner | None:
    keys = Fields(node, context.faults, f"dpop of route {route}", known=DPOP)
    if not isinstance(node, MappingNode) or not keys.require("key"):
        return None
    key = template_of(keys, "key", context, secret=True, alone=True)
    algorithm = keys.choice("algorithm", {"ES256", "EdDSA"}, "ES256") or "ES256"
    return None if key is None else DpopSigner(key, cast("ProofAlgorithm", algorithm))
