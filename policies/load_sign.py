"""Reads `sign:`: one signer or a list, one kind an item, each with its keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, cast

from policies.document import Mapping as MappingNode
from policies.document import Node
from policies.faults import Place
from policies.fields import Fields
from policies.keys import AWS_SIGV4, LATER, SIGN
from policies.load_parts import Context
from policies.load_sign_hmac import read_hmac
from policies.load_sign_message import read_message
from policies.load_sign_parts import template_of
from policies.model import BasicInjector, BearerInjector, HeaderInjector, Injector, QueryInjector, SwapInjector
from policies.sign import AwsSigV4Signer, HmacSigner, HttpMessageSigner, Payload, Signer

KINDS: Final = ("hmac", "aws_sigv4", "http_message")

_SCOPE: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


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
    if len(found) > 1 and any(isinstance(signer, AwsSigV4Signer) for signer in found):
        context.faults.add(
            keys.place_of("sign"), f"aws_sigv4 of route {route} has other signers beside it", "it signs alone"
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


def _read(route: str, node: Node, context: Context) -> Signer | None:
    faults = context.faults
    what = f"a signer of route {route}"
    keys = Fields(node, faults, what, known=SIGN, later=LATER["sign"])
    if not isinstance(node, MappingNode):
        return None
    kinds = [kind for kind in KINDS if kind in keys]
    if len(kinds) != 1:
        if kinds or not any(entry.key in LATER["sign"] for entry in node):
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
        case _:
            signer = read_message(route, inner, context)
    return signer if len(faults.found) == before else None


def _aws(route: str, node: Node, context: Context) -> AwsSigV4Signer | None:
    keys = Fields(node, context.faults, f"aws_sigv4 of route {route}", known=AWS_SIGV4, later=LATER["aws_sigv4"])
    if not isinstance(node, MappingNode):
        return None
    if not keys.require("access_key_id", "secret_access_key", "regions", "services"):
        return None
    access = template_of(keys, "access_key_id", context, secret=False)
    secret = template_of(keys, "secret_access_key", context, secret=True, alone=True)
    token = template_of(keys, "session_token", context, secret=True, alone=True)
    regions, services = _scopes(keys, "regions", context), _scopes(keys, "services", context)
    payload = keys.choice("payload", {"auto", "signed", "unsigned"}, "auto") or "auto"
    entries = {one.entry for template in (access, secret, token) if template for one in template.references}
    if len(entries) > 1:
        context.faults.add(
            keys.place_of("secret_access_key"),
            f"the keys of {keys.what} come from several secrets",
            "keep them as fields of one secret: then they are always of one version",
        )
    if access is None or secret is None or not regions or not services:
        return None
    return AwsSigV4Signer(access, secret, regions, services, token, cast("Payload", payload))


def _scopes(keys: Fields, key: str, context: Context) -> tuple[str, ...]:
    found: list[str] = []
    for scalar in keys.texts(key):
        if not _SCOPE.fullmatch(scalar.text):
            context.faults.add(
                scalar.place, f"{scalar.text!r} of {key} of {keys.what} is no name as AWS writes it", "eu-west-1, s3"
            )
        elif scalar.text not in found:
            found.append(scalar.text)
    return tuple(found)
