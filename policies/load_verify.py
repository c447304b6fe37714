"""Reads `verify:`: one kind, with its keys."""

from __future__ import annotations

import re
from typing import Final, cast

from policies.document import Mapping as MappingNode
from policies.document import Node, Scalar, kind_of
from policies.fields import Fields
from policies.keys import LATER, SNS, TWILIO, VERIFY, VERIFY_HMAC, VERIFY_MESSAGE, WEBHOOK, WEBHOOK_UNTIMED
from policies.load_parts import Context
from policies.load_reverse import read_upstream
from policies.load_sign_hmac import read_form
from policies.load_sign_message import LABEL, read_components
from policies.load_sign_parts import transit_of
from policies.sign import KeyEncoding, MessageAlgorithm, TransitKey
from policies.template import Template, TemplateError, parse_template
from policies.verify import (
    MAX_SKEW_S,
    SCHEMES,
    SNS_MAX_SKEW_S,
    HmacVerifier,
    MessageVerifier,
    Scheme,
    SnsVerifier,
    Verifier,
    WebhookVerifier,
)

KINDS: Final = ("hmac", "http_message", *SCHEMES, "sns")
MAX_KEYS: Final = 8
"""Each is tried on every request."""
_LONGEST_SKEW_S: Final = 3600.0
_LONGEST_SNS_SKEW_S: Final = 24 * 3600.0
_TOPIC: Final = re.compile(r"arn:aws(?:-cn)?:sns:[a-z0-9-]{1,32}:[0-9]{12}:[A-Za-z0-9_.-]{1,256}")
_TARGETS: Final = frozenset({"@target-uri", "@request-target", "@path"})


def read_verifier(route: str, keys: Fields, context: Context) -> Verifier | None:
    """What a route wants signed; None where it does not say, or has faults."""
    node = keys.node("verify")
    if node is None:
        return None
    what = f"verify of route {route}"
    inner = Fields(node, context.faults, what, known=VERIFY)
    if not isinstance(node, MappingNode):
        return None
    kinds = [kind for kind in KINDS if kind in inner]
    if len(kinds) != 1:
        context.faults.add(node.place, f"{what} has one kind", f"one of {', '.join(KINDS)}")
        return None
    own = inner.node(kinds[0])
    if own is None:
        return None
    before = len(context.faults.found)
    match kinds[0]:
        case "hmac":
            found: Verifier | None = _hmac(route, own, context)
        case "http_message":
            found = _message(route, own, context)
        case "sns":
            found = _sns(route, own, context)
        case kind:
            found = _webhook(cast("Scheme", kind), route, own, context)
    return found if len(context.faults.found) == before else None


def _hmac(route: str, node: Node, context: Context) -> HmacVerifier | None:
    keys = Fields(node, context.faults, f"hmac of route {route}", known=VERIFY_HMAC)
    if not isinstance(node, MappingNode):
        return None
    found: tuple[Template, ...] = ()
    key: Template | TransitKey | None
    if "transit" in keys:
        key = transit_of(keys, "keys", context)
    elif keys.require("keys"):
        found = _keys(keys, context, alone=False)
        key = found[0] if found else None
    else:
        return None
    form = read_form(keys, context, key, nonce=True)
    skew_s = _skew(keys, context)
    if form is None:
        return None
    if form.timestamp is None:
        context.faults.add(
            keys.place_of("template"), "the template does not sign the timestamp: a signature would be good for ever"
        )
    return HmacVerifier(found, form, skew_s)


def _message(route: str, node: Node, context: Context) -> MessageVerifier | None:
    faults = context.faults
    keys = Fields(node, faults, f"http_message of route {route}", known=VERIFY_MESSAGE, later=LATER["verify_message"])
    if not isinstance(node, MappingNode) or _later(node, "verify_message"):
        return None
    if not keys.require("keys", "algorithm", "components"):
        return None
    named = _named_keys(keys, context)
    algorithm = keys.choice("algorithm", {"hmac-sha256", "ed25519", "ecdsa-p256-sha256", "rsa-pss-sha512"})
    if "key_encoding" in keys and algorithm not in {"hmac-sha256", None}:
        faults.add(keys.place_of("key_encoding"), f"a key of {algorithm} is PEM: it has no key_encoding")
    key_encoding = keys.choice("key_encoding", {"utf8", "hex", "base64"}, "utf8") or "utf8"
    label = keys.text("label")
    if label is not None and not LABEL.fullmatch(label):
        faults.add(keys.place_of("label"), f"{label!r} is no label", "lower-case letters, digits, _ . * -")
    components = read_components(keys, context)
    names = {component.name for component in components}
    if components and ("@method" not in names or not names & _TARGETS):
        faults.add(
            keys.place_of("components"),
            "a signature that covers neither method nor target fits other requests",
            'add "@method" and "@target-uri"',
        )
    skew_s, nonce, tag = _skew(keys, context), keys.boolean("nonce", default=True), keys.text("tag")
    if not named or algorithm is None or not components:
        return None
    return MessageVerifier(
        named,
        cast("MessageAlgorithm", algorithm),
        components,
        label,
        cast("KeyEncoding", key_encoding),
        nonce,
        tag,
        skew_s,
    )


def _webhook(scheme: Scheme, route: str, node: Node, context: Context) -> WebhookVerifier | None:
    known = TWILIO if scheme == "twilio" else WEBHOOK_UNTIMED if scheme == "github" else WEBHOOK
    keys = Fields(node, context.faults, f"{scheme} of route {route}", known=known)
    if not isinstance(node, MappingNode) or not keys.require("keys"):
        return None
    found = _keys(keys, context, alone=True)
    skew_s = _skew(keys, context) if "max_skew" in known else 0.0
    origin = _origin(keys, context) if "origin" in known else None
    return WebhookVerifier(scheme, found, skew_s, origin) if found else None


def _origin(keys: Fields, context: Context) -> str | None:
    scalar = keys.scalar("origin")
    if scalar is None:
        return None
    return scalar.text.removesuffix("/") if read_upstream(scalar, context.faults) is not None else None


def _sns(route: str, node: Node, context: Context) -> SnsVerifier | None:
    keys = Fields(node, context.faults, f"sns of route {route}", known=SNS)
    if not isinstance(node, MappingNode) or not keys.require("topics"):
        return None
    topics: list[str] = []
    for scalar in keys.texts("topics"):
        if _TOPIC.fullmatch(scalar.text):
            topics.append(scalar.text)
        else:
            context.faults.add(
                scalar.place,
                f"{scalar.text!r} is no topic",
                "write its ARN, such as arn:aws:sns:eu-west-1:123456789012:orders: AWS signs for every topic of everybody",
            )
    skew_s = _skew(keys, context, SNS_MAX_SKEW_S, _LONGEST_SNS_SKEW_S)
    return SnsVerifier(tuple(dict.fromkeys(topics)), skew_s)


def _skew(keys: Fields, context: Context, default: float = MAX_SKEW_S, longest: float = _LONGEST_SKEW_S) -> float:
    found = keys.duration("max_skew", default)
    if found is None or not 1 <= found <= longest:
        context.faults.add(
            keys.place_of("max_skew"), f"max_skew of {keys.what} must lie between 1s and {longest / 3600:g}h"
        )
        return default
    return found


def _keys(keys: Fields, context: Context, *, alone: bool) -> tuple[Template, ...]:
    """`keys:` as a list: the present one first."""
    found = [key for scalar in keys.texts("keys") if (key := _key(scalar, keys.what, context, alone=alone)) is not None]
    if len(found) != len(set(found)):
        context.faults.add(keys.place_of("keys"), f"keys of {keys.what} name one secret twice")
    _few(keys, context, len(found))
    return tuple(found)


def _named_keys(keys: Fields, context: Context) -> tuple[tuple[str, Template], ...]:
    """`keys:` by key id."""
    node = keys.node("keys")
    if node is None:
        return ()
    if not isinstance(node, MappingNode):
        context.faults.add(
            node.place,
            f"keys of {keys.what} must be a mapping of key ids, not {kind_of(node)}",
            'write {billing-2026: "{keys.current}"}',
        )
        return ()
    found: list[tuple[str, Template]] = []
    for entry in node:
        if any(not 0x20 <= ord(char) < 0x7F for char in entry.key):
            context.faults.add(entry.key_place, f"{entry.key!r} is no key id", "visible ASCII and spaces")
        elif not isinstance(entry.value, Scalar):
            context.faults.add(entry.value.place, f"key {entry.key} of {keys.what} must be a scalar")
        elif (key := _key(entry.value, keys.what, context, alone=True)) is not None:
            found.append((entry.key, key))
    _few(keys, context, len(found))
    return tuple(found)


def _later(node: MappingNode, table: str) -> bool:
    return any(entry.key in LATER[table] for entry in node)


def _few(keys: Fields, context: Context, count: int) -> None:
    if count > MAX_KEYS:
        context.faults.add(keys.place_of("keys"), f"{keys.what} has more than {MAX_KEYS} keys", "remove retired ones")


def _key(scalar: Scalar, what: str, context: Context, *, alone: bool) -> Template | None:
    try:
        template = parse_template(scalar.text)
    except TemplateError as error:
        context.faults.add(scalar.place, f"a key of {what}: {error}")
        return None
    if any(reference.entry == "token" for reference in template.references):
        context.faults.add(scalar.place, f"a key of {what} is stored, never a token that is derived", "use {secret}")
        return None
    if len(template.references) != 1:
        context.faults.add(
            scalar.place,
            f"a key of {what} must name one secret, not {'several' if template.references else 'a literal'}",
            'store the value and write "{secret}", or "{keys.current}" of secrets:',
        )
        return None
    if alone and len(template.parts) != 1:
        context.faults.add(scalar.place, f"a key of {what} is a secret alone, without text around it")
        return None
    return template
