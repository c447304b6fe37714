"""Reads `sign:`: one signer or a list, one kind an item, each with its keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, cast

from policies.document import Mapping as MappingNode
from policies.document import Node
from policies.faults import Place
from policies.fields import Fields
from policies.keys import AWS_SIGV4, SIGN
from policies.load_parts import Context
from policies.load_sign_hmac import read_hmac
from policies.load_sign_message import read_message
from policies.load_sign_parts import judge_one_secret, template_of
from policies.load_sign_vendors import read_acs3, read_dpop, read_edgegrid, read_tc3
from policies.model import BasicInjector, BearerInjector, HeaderInjector, Injector, QueryInjector, SwapInjector
from policies.sign import (
    Acs3Signer,
    AwsSigV4Signer,
    DpopSigner,
    EdgeGridSigner,
    HmacSigner,
    HttpMessageSigner,
    Payload,
    Signer,
    Tc3Signer,
)

KINDS: Final = ("hmac", "aws_sigv4", "http_message", "edgegrid", "acs3", "tc3", "dpop")
ALONE: Final = (AwsSigV4Signer, EdgeGridSigner, Acs3Signer, Tc3Signer)
"""Sign everything that a vendor looks at, and would be broken by what others put later."""

_SCOPE: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_REGIONS: Final = re.compile(r"\*|[a-z0-9][a-z0-9-]{0,61}\*?")
"""Of a set of regions (Version 4A): a pattern may end in a star."""


def read_signers(route: str, keys: Fields, context: Context) -> tuple[Signer, ...]:
    """All signers of a route, in the order in which they sign; two that send the same name are a fault."""
    found: list[Signer] = []
    sent: dict[str, Place] = {}
    for node in keys.nodes("sign"):
        signer = _read(route, node, context)
        if signer is None:
            continue
        for name in sends(signer):
            if name in sent:
                context.faults.add(
                    node.place, f"two signers of route {route} send {name}", f"the first stands at {sent[name]}"
                )
            sent[name] = node.place
        found.append(signer)
    alone = [signer for signer in found if isinstance(signer, ALONE)]
    if len(found) > 1 and alone:
        context.faults.add(
            keys.place_of("sign"), f"{_kind(alone[0])} of route {route} has other signers beside it", "it signs alone"
        )
    return tuple(found)


def sends(signer: Signer) -> tuple[str, ...]:
    """What a signer puts into the request, as faults name it."""
    match signer:
        case HmacSigner(signature=signature, timestamp=timestamp, nonce=nonce):
            return tuple(
                f"{one.place} {one.name.lower() if one.place == 'header' else one.name}"
                for one in (signature, timestamp, nonce)
                if one is not None
            )
        case AwsSigV4Signer():
            return ("header authorization", "header x-amz-date")
        case EdgeGridSigner() | Acs3Signer() | Tc3Signer():
            return ("header authorization",)
        case DpopSigner():
            return ("header dpop",)
        case HttpMessageSigner(label=label):
            return (f"signature label {label}",)


def judge_beside(inject: Sequence[Injector], signers: Sequence[Signer], place: Place, context: Context) -> None:
    """What an injector puts, a signer must not put again: one of the two would be lost."""
    put: set[str] = set()
    for injector in inject:
        match injector:
            case HeaderInjector(name=name):
                put.add(f"header {name.lower()}")
            case BearerInjector() | BasicInjector():
                put.add("header authorization")
            case QueryInjector(name=name):
                put.add(f"query {name}")
            case SwapInjector(headers=names):
                put.update(f"header {name.lower()}" for name in names)
    for name in (name for signer in signers for name in sends(signer)):
        if name in put:
            context.faults.add(place, f"inject and sign both put {name}", "rename one of them")


def _kind(signer: Signer) -> str:
    match signer:
        case AwsSigV4Signer():
            return "aws_sigv4"
        case EdgeGridSigner():
            return "edgegrid"
        case Acs3Signer():
            return "acs3"
        case Tc3Signer():
            return "tc3"
        case HmacSigner():
            return "hmac"
        case HttpMessageSigner():
            return "http_message"
        case DpopSigner():
            return "dpop"


def _read(route: str, node: Node, context: Context) -> Signer | None:
    faults = context.faults
    what = f"a signer of route {route}"
    keys = Fields(node, faults, what, known=SIGN)
    if not isinstance(node, MappingNode):
        return None
    kinds = [kind for kind in KINDS if kind in keys]
    if len(kinds) != 1:
        faults.add(node.place, f"{what} has one kind", f"one of {', '.join(KINDS)}; several signers are a list")
        return None
    inner = keys.node(kinds[0])
    if inner is None:
        return None
    before = len(faults.found)
    match kinds[0]:
        case "hmac":
            signer: Signer | None = read_hmac(route, inner, context)
        case "aws_sigv4":
            signer = _aws(route, inner, context)
        case "edgegrid":
            signer = read_edgegrid(route, inner, context)
        case "acs3":
            signer = read_acs3(route, inner, context)
        case "tc3":
            signer = read_tc3(route, inner, context)
        case "dpop":
            signer = read_dpop(route, inner, context)
        case _:
            signer = read_message(route, inner, context)
    return signer if len(faults.found) == before else None


def _aws(route: str, node: Node, context: Context) -> AwsSigV4Signer | None:
    keys = Fields(node, context.faults, f"aws_sigv4 of route {route}", known=AWS_SIGV4)
    if not isinstance(node, MappingNode):
        return None
    if not keys.require("access_key_id", "secret_access_key", "regions", "services"):
        return None
    access = template_of(keys, "access_key_id", context, secret=False)
    secret = template_of(keys, "secret_access_key", context, secret=True, alone=True)
    token = template_of(keys, "session_token", context, secret=True, alone=True)
    asymmetric = keys.boolean("asymmetric")
    regions = _scopes(keys, "regions", context, _REGIONS if asymmetric else _SCOPE)
    services = _scopes(keys, "services", context)
    payload = keys.choice("payload", {"auto", "signed", "unsigned"}, "auto") or "auto"
    judge_one_secret(keys, "secret_access_key", (access, secret, token), context)
    if access is None or secret is None or not regions or not services:
        return None
    return AwsSigV4Signer(access, secret, regions, services, token, cast("Payload", payload), asymmetric)


def _scopes(keys: Fields, key: str, context: Context, form: re.Pattern[str] = _SCOPE) -> tuple[str, ...]:
    found: list[str] = []
    for scalar in keys.texts(key):
        if not form.fullmatch(scalar.text):
            context.faults.add(
                scalar.place, f"{scalar.text!r} of {key} of {keys.what} is no name as AWS writes it", "eu-west-1, s3"
            )
        elif scalar.text not in found:
            found.append(scalar.text)
    return tuple(found)
