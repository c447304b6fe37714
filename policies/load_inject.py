"""Reads `inject:`: one kind an item, each with the template of what it puts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from policies.document import Mapping as MappingNode
from policies.document import Node
from policies.faults import Place
from policies.fields import Fields
from policies.keys import BASIC, INJECT
from policies.load_parts import TOKEN, Context, read_template
from policies.model import (
    BasicInjector,
    BearerInjector,
    CookieInjector,
    FormInjector,
    HeaderInjector,
    Injector,
    JsonInjector,
    PathInjector,
    QueryInjector,
    SwapInjector,
)
from policies.paths import parse_pattern
from policies.pointer import Pointer, parse_pointer, pointer_text
from policies.template import FieldRef, Template

_KINDS: Final = ("header", "bearer", "basic", "query", "path", "json", "form", "cookie", "swap")
_NEEDS: Final = {kind: {"value"} for kind in _KINDS} | {
    "bearer": set[str](),
    "basic": set[str](),
    "swap": {"value", "in"},
}

_PATH_TEXT: Final = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,=:@]|%[0-9A-Fa-f]{2})*")
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
            other = next((known for known in places if _meet(place, known)), None)
            if other == place:
                context.faults.add(
                    node.place, f"two injectors of route {route} put {place}", f"the first stands at {places[place]}"
                )
            elif other is not None:
                context.faults.add(
                    node.place,
                    f"route {route} cannot put {place} and {other}",
                    f"the other stands at {places[other]}",
                )
            places[place] = node.place
        found.append(injector)
    return tuple(found)


def _places(injector: Injector) -> Sequence[str]:
    """What an injector puts, each place in words that no other place has."""
    match injector:
        case HeaderInjector(name=name):
            return [f"header {name.lower()}"]
        case BearerInjector() | BasicInjector():
            return ["header authorization"]
        case QueryInjector(name=name):
            return [f"query {name}"]
        case PathInjector():
            return ["path"]
        case CookieInjector(name=name):
            return [f"cookie {name}"]
        case JsonInjector(pointer=pointer):
            return [f"json {pointer_text(pointer)}"]
        case FormInjector(name=name):
            return [f"form {name}"]
        case SwapInjector(headers=headers, parameters=parameters, pointers=pointers):
            return [
                *(f"header {name.lower()}" for name in headers),
                *(f"query {name}" for name in parameters),
                *(f"json {pointer_text(pointer)}" for pointer in pointers),
            ]


def _meet(one: str, other: str) -> bool:
    """Whether two places cannot both be put: they are one, one lies within the other, or a body would be of two kinds."""
    kinds = {one.partition(" ")[0], other.partition(" ")[0]}
    if kinds == {"json"}:
        return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")
    if kinds == {"cookie", "header"}:
        return "header cookie" in {one, other}
    return one == other or kinds == {"json", "form"}


def _read(route: str, node: Node, context: Context) -> Injector | None:
    faults = context.faults
    what = f"an injector of route {route}"
    keys = Fields(node, faults, what, known=INJECT)
    if not isinstance(node, MappingNode):
        return None
    kinds = [kind for kind in _KINDS if kind in keys]
    if len(kinds) != 1:
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
        case "path":
            return _path(keys, context)
        case "json":
            scalar = keys.scalar("json")
            pointer = _pointer(scalar.text, scalar.place, context) if scalar is not None else None
            value = _template(keys, "value", context, secret=True)
            return JsonInjector(pointer, value) if pointer and value else None
        case "form":
            name, value = keys.text("form"), _template(keys, "value", context, secret=True)
            return FormInjector(name, value) if name and value else None
        case "cookie":
            name, value = keys.text("cookie"), _template(keys, "value", context, secret=True)
            if name is not None and not TOKEN.fullmatch(name):
                context.faults.add(keys.place_of("cookie"), f"{name!r} is no cookie name", "letters, digits and dashes")
                return None
            return CookieInjector(name, value) if name and value else None
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


def _pointer(text: str, place: Place, context: Context) -> Pointer | None:
    try:
        return parse_pointer(text)
    except ValueError as error:
        context.faults.add(place, f"{text!r} is no place in a JSON body: {error}")
        return None


def _path(keys: Fields, context: Context) -> PathInjector | None:
    """A pattern, and what the path becomes where it matches."""
    faults = context.faults
    written, value = keys.scalar("path"), _template(keys, "value", context, secret=True)
    if written is None or value is None:
        return None
    try:
        pattern = parse_pattern(written.text)
    except ValueError as error:
        faults.add(written.place, f"{written.text!r} is no path pattern: {error}")
        return None
    segments = _segments(value)
    deep = [index for index, segment in enumerate(segments) if segment.parts == ("**",)]
    stars = sum(part.count("*") for part in value.parts if isinstance(part, str))
    place = keys.place_of("value")
    if not isinstance(value.parts[0], str) or not value.parts[0].startswith("/"):
        faults.add(
            place, "the value of a path injector starts with /", 'write it as the path is to be: "/bot{secret}/**"'
        )
    elif pattern.segments.count("**") > 1 or len(deep) != pattern.segments.count("**") or stars != 2 * len(deep):
        faults.add(
            place,
            "the pattern and the value of a path injector have one ** each, or neither has one",
            "what ** matches is kept; what a * matches is replaced by the value's own text",
        )
    elif not any("*" in segment.replace("**", "") for segment in pattern.segments):
        faults.add(
            written.place, f"{written.text!r} leaves no place for the credential", 'a * stands for it: "/bot*/**"'
        )
    elif any(not _fits(segment) for segment in segments):
        faults.add(place, "the value of a path injector holds a character that no path has, or an empty or dot segment")
    else:
        cut = deep[0] if deep else len(segments)
        return PathInjector(pattern, segments[:cut], segments[cut + 1 :], value)
    return None


def _fits(segment: Template) -> bool:
    """Whether the literal text of a segment can stand in a path."""
    texts = [part for part in segment.parts if isinstance(part, str)]
    whole = segment.literal and (not texts[0] or texts[0] in {".", ".."})
    return not whole and all(_PATH_TEXT.fullmatch(text) for text in texts)


def _segments(value: Template) -> tuple[Template, ...]:
    """A template cut at each slash of its literal text; what stands before the first is left out."""
    found: list[list[str | FieldRef]] = [[]]
    for part in value.parts:
        if not isinstance(part, str):
            found[-1].append(part)
            continue
        first, *others = part.split("/")
        if first:
            found[-1].append(first)
        found += [[text] if text else [] for text in others]
    return tuple(Template(tuple(parts) or ("",)) for parts in found[1:])


def _template(keys: Fields, key: str, context: Context, *, secret: bool) -> Template | None:
    template, scalar = read_template(keys, key, context), keys.scalar(key)
    if template is None or scalar is None:
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
    parameters: list[str] = []
    pointers: list[Pointer] = []
    for scalar in keys.texts("in"):
        place, colon, name = scalar.text.partition(":")
        if place not in {"header", "query", "json"} or not colon or not name:
            context.faults.add(
                scalar.place, f"{scalar.text!r} is no place", "write header:NAME, query:NAME or json:/POINTER"
            )
        elif place == "query":
            parameters.append(name)
        elif place == "json":
            pointer = _pointer(name, scalar.place, context)
            if pointer is not None:
                pointers.append(pointer)
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
    if not placeholder or not value or not (headers or parameters or pointers):
        return None
    return SwapInjector(placeholder, tuple(headers), value, tuple(parameters), tuple(pointers))


def references_of(injectors: Sequence[Injector]) -> tuple[FieldRef, ...]:
    """Every reference that the templates of these injectors make."""
    found: list[FieldRef] = []
    for injector in injectors:
        templates = (injector.username, injector.password) if isinstance(injector, BasicInjector) else (injector.value,)
        for template in templates:
            found.extend(template.references)
    return tuple(found)
