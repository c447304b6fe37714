"""Reads `http_message:` of a signer, and the component identifiers of RFC 9421."""

from __future__ import annotations

import re
from typing import Final, cast

from policies.document import Mapping as MappingNode
from policies.document import Node
from policies.faults import Place
from policies.fields import Fields
from policies.keys import HTTP_MESSAGE
from policies.load_parts import Context
from policies.load_sign_parts import judge_signed, key_of, template_of
from policies.sign import Component, HttpMessageSigner, KeyEncoding, MessageAlgorithm

LABEL: Final = re.compile(r"[a-z*][a-z0-9_.*-]{0,62}")
_DERIVED: Final = frozenset({
    "@method", "@target-uri", "@authority", "@scheme", "@request-target", "@path", "@query", "@query-param",
})  # fmt: skip
_COMPONENT: Final = re.compile(r'(@?[a-z0-9!#$%&\'*+.^_`|~-]+)((?:;[a-z]+(?:="[^"\\]*")?)*)')
_MAX_EXPIRES_S: Final = 3600.0


def read_message(route: str, node: Node, context: Context) -> HttpMessageSigner | None:
    keys = Fields(node, context.faults, f"http_message of route {route}", known=HTTP_MESSAGE)
    if not isinstance(node, MappingNode):
        return None
    if not keys.require("key_id", "algorithm", *(() if "transit" in keys else ("key",)), "components"):
        return None
    key_id = template_of(keys, "key_id", context, secret=False)
    key = key_of(keys, context, alone=True)
    algorithms = {"hmac-sha256", "ed25519", "ecdsa-p256-sha256", "rsa-pss-sha512"}
    algorithm = keys.choice("algorithm", algorithms)
    if "key_encoding" in keys and algorithm not in {"hmac-sha256", None}:
        context.faults.add(keys.place_of("key_encoding"), f"a key of {algorithm} is PEM: it has no key_encoding")
    key_encoding = keys.choice("key_encoding", {"utf8", "hex", "base64"}, "utf8") or "utf8"
    label = keys.text("label", "sig1") or "sig1"
    if not LABEL.fullmatch(label):
        context.faults.add(keys.place_of("label"), f"{label!r} is no label", "lower-case letters, digits, _ . * -")
    tag = keys.text("tag")
    if tag is not None and any(not 0x20 <= ord(char) < 0x7F for char in tag):
        context.faults.add(keys.place_of("tag"), "tag holds something other than visible ASCII and spaces")
    expires_s = keys.duration("expires")
    if expires_s is not None and not 1 <= expires_s <= _MAX_EXPIRES_S:
        context.faults.add(keys.place_of("expires"), "expires must lie between 1s and 1h")
    components = read_components(keys, context)
    nonce = keys.boolean("nonce")
    if key_id is None or key is None or algorithm is None or not components:
        return None
    return HttpMessageSigner(
        key_id=key_id,
        algorithm=cast("MessageAlgorithm", algorithm),
        key=key,
        components=components,
        key_encoding=cast("KeyEncoding", key_encoding),
        label=label,
        expires_s=None if expires_s is None else int(expires_s),
        nonce=nonce,
        tag=tag,
    )


def read_components(keys: Fields, context: Context) -> tuple[Component, ...]:
    found: list[Component] = []
    for scalar in keys.texts("components"):
        component = _component(scalar.text, scalar.place, context)
        if component is None:
            continue
        if component in found:
            context.faults.add(scalar.place, f"{scalar.text!r} stands twice in components", "each once: RFC 9421 2")
        found.append(component)
    return tuple(found)


def _component(text: str, place: Place, context: Context) -> Component | None:
    faults = context.faults
    match = _COMPONENT.fullmatch(text)
    if match is None:
        faults.add(place, f"{text!r} is no component", 'write @method, content-type or @query-param;name="q"')
        return None
    name = match[1]
    parameters = {
        part.partition("=")[0]: part.partition("=")[2].strip('"') if "=" in part else None
        for part in match[2].split(";")[1:]
    }
    if name.startswith("@"):
        if name not in _DERIVED:
            faults.add(place, f"{name!r} cannot be signed in a request", f"one of {', '.join(sorted(_DERIVED))}")
            return None
        wanted = parameters.get("name") if name == "@query-param" else None
        if set(parameters) != ({"name"} if name == "@query-param" else set()) or (
            name == "@query-param" and not wanted
        ):
            faults.add(place, f"{text!r} has other parameters than {name} takes", 'only @query-param;name="q" has one')
            return None
        return Component(name, wanted)
    if set(parameters) - {"bs"} or parameters.get("bs") is not None:
        faults.add(
            place, f"of the parameters of a field only bs is built, not those of {text!r}", "sign the field as it is"
        )
        return None
    if not judge_signed(name, place, context):
        return None
    return Component(name, None, "bs" in parameters)
