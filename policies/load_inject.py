"""Reads `inject:`: one kind an item, each with the template of what it puts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from policies.document import Mapping as MappingNode
from policies.document import Node
from policies.faults import Place
from policies.fields import Fields
from policies.keys import BASIC, INJECT, LATER
from policies.load_parts import TOKEN, Context
from policies.model import BasicInjector, BearerInjector, HeaderInjector, Injector, QueryInjector, SwapInjector
from policies.template import FieldRef, Template, TemplateError, parse_template

_KINDS: Final = ("header", "bearer", "basic", "query", "swap")
_NEEDS: Final = {
    "header": {"value"},
    "bearer": set[str](),
    "basic": set[str](),
    "query": {"value"},
    "swap": {"value", "in"},
}

FORBIDDEN_HEADERS: Final = frozenset({
    "host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect",
    "proxy-authorization", "proxy-authenticate", "proxy-connection",
})  # fmt: skip
"""They frame the message or end at this proxy: a credential in them would never arrive, or would change what is
sent."""


def read_injectors(route: str, keys: Fields, context: Context) -> tuple[Injector, ...]:
    """All injectors of a route; two that put the same place are a fault."""
    found: list[Injector] = []
    places: dict[str, Place] = {}
    for node in keys.nodes("inject"):
        injector = _read(route, node, context)
        if injector is None:
            continue
        for place in _places(injector):
            if place in places:
                context.faults.add(
                    node.place, f"two injectors of route {route} put {place}", f"the first stands at {places[place]}"
                )
            places[place] = node.place
        found.append(injector)
    return tuple(found)


def _places(injector: Injector) -> Sequence[str]:
    match injector:
        case HeaderInjector(name=name):
            return [f"header {name.lower()}"]
        case BearerInjector() | BasicInjector():
            return ["header authorization"]
        case QueryInjector(name=name):
            return [f"query {name}"]
        case SwapInjector(headers=headers):
            return [f"header {name.lower()}" for name in headers]


def _read(route: str, node: Node, context: Context) -> Injector | None:
    faults = context.faults
    what = f"an injector of route {route}"
    keys = Fields(node, faults, what, known=INJECT, later=LATER["inject"])
    if not isinstance(node, MappingNode):
        return None
    kinds = [kind for kind in _KINDS if kind in keys]
    if len(kinds) != 1:
        if kinds or not any(entry.key in LATER["inject"] for entry in node):
            faults.add(node.place, f"{what} has one kind", f"one of {', '.join(_KINDS)}")
        return None
    kind = kinds[0]
    for key in {"value", "in"} - _NEEDS[kind]:
        if key in keys:
            faults.add(keys.place_of(key), f"{key!r} does not belong to a {kind} injector")
    if not keys.require(*sorted(_NEEDS[kind])):
        return None
    match kind:
        case "header":
            name, value = _header_name(keys, "header", context), _template(keys, "value", context, secret=True)
            return HeaderInjector(name, value) if name and value else None
        case "bearer":
            value = _template(keys, "bearer", context, secret=True)
            return BearerInjector(value) if value else None
        case "basic":
            return _basic(route, keys, context)
        case "query":
            name, value = keys.text("query"), _template(keys, "value", context, secret=True)
            return QueryInjector(name, value) if name and value else None
        case _:
            return _swap(keys, context)


def _header_name(keys: Fields, key: str, context: Context) -> str | None:
    scalar = keys.scalar(key)
    return None if scalar is None else _judge_header(scalar.text, scalar.place, context)


def _judge_header(name: str, place: Place, context: Context) -> str | None:
    if not TOKEN.fullmatch(name):
        context.faults.add(place, f"{name!r} is no header name", "letters, digits and dashes")
        return None
    if name.lower() in FORBIDDEN_HEADERS or name.lower().startswith("x-ostiary-"):
        context.faults.add(place, f"{name!r} cannot carry a credential", "it frames the message or ends at the proxy")
        return None
    return name


def _template(keys: Fields, key: str, context: Context, *, secret: bool) -> Template | None:
    scalar = keys.scalar(key)
    if scalar is None:
        return None
    try:
        template = parse_template(scalar.text)
    except TemplateError as error:
        context.faults.add(scalar.place, f"{key!r} of {keys.what}: {error}")
        return None
    if any(reference.entry == "token" for reference in template.references):
        context.faults.add(scalar.place, "{token} is not built yet: derived credentials come later", "use {secret}")
        return None
    if any(not 0x20 <= ord(char) < 0x7F for part in template.parts if isinstance(part, str) for char in part):
        context.faults.add(scalar.place, f"{key!r} of {keys.what} holds something other than visible ASCII and spaces")
        return None
    if secret and template.literal:
        # A literal key in a policy is a key in git.
        context.faults.add(
            scalar.place,
            f"{key!r} of {keys.what} must name a secret, not a literal",
            "store the value and write {secret}",
        )
        return None
    return template


def _basic(route: str, keys: Fields, context: Context) -> BasicInjector | None:
    node = keys.node("basic")
    if node is None:
        return None
    inner = Fields(node, context.faults, f"basic of route {route}", known=BASIC)
    if not inner.require("username", "password"):
        return None
    username, password = (
        _template(inner, "username", context, secret=False),
        _template(inner, "password", context, secret=False),
    )
    if username is None or password is None:
        return None
    if username.literal and password.literal:
        context.faults.add(
            node.place, f"basic of route {route} must name a secret, not literals", "store the value and write {secret}"
        )
        return None
    if password.literal and password.parts != ("",):
        context.faults.add(
            inner.place_of("password"),
            f"the password of basic of route {route} must name a secret",
            "only an empty literal is allowed here",
        )
        return None
    if username.literal and ":" in "".join(str(part) for part in username.parts):
        context.faults.add(inner.place_of("username"), "a Basic user name has no colon")
        return None
    return BasicInjector(username, password)


def _swap(keys: Fields, context: Context) -> SwapInjector | None:
    placeholder = keys.text("swap")
    value = _template(keys, "value", context, secret=True)
    headers: list[str] = []
    for scalar in keys.texts("in"):
        place, colon, name = scalar.text.partition(":")
        if place in {"query", "json"} and colon:
            context.faults.add(
                scalar.place, f"a swap in {place}: is not built yet", "headers are: header:Authorization"
            )
        elif place != "header" or not colon:
            context.faults.add(scalar.place, f"{scalar.text!r} is no place", "write header:NAME")
        else:
            judged = _judge_header(name, scalar.place, context)
            if judged is not None:
                headers.append(judged)
    if placeholder is not None and (len(placeholder) < 8 or not all(0x21 <= ord(char) < 0x7F for char in placeholder)):
        context.faults.add(
            keys.place_of("swap"),
            "a placeholder has at least 8 visible ASCII characters and no spaces",
            "so that nothing else is taken for it",
        )
        return None
    return SwapInjector(placeholder, tuple(headers), value) if placeholder and value and headers else None


def references_of(injectors: Sequence[Injector]) -> tuple[FieldRef, ...]:
    """Every reference that the templates of these injectors make."""
    found: list[FieldRef] = []
    for injector in injectors:
        templates = (injector.username, injector.password) if isinstance(injector, BasicInjector) else (injector.value,)
        for template in templates:
            found.extend(template.references)
    return tuple(found)
