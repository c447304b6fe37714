"""Reads `addons:`: which classes, with which options. Nothing is imported here (`ostiary/user_addons.py` does)."""

from __future__ import annotations

import re
from typing import Final

from addons.user_addon import DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S
from ostiary.settings.keys import KNOWN
from ostiary.settings.model import AddonSetting
from policies.document import Mapping as MappingNode
from policies.document import Node, Scalar, Sequence
from policies.fields import Fields
from policies.load_parts import Context

_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_MODULE: Final = re.compile(rf"({_NAME}(?:\.{_NAME})*):({_NAME})")
_FILE: Final = re.compile(rf"(.+\.py):({_NAME})")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,15}\.[0-9]{1,15}")
_WORDS: Final = {"true": True, "false": False}


def read_addons(keys: Fields, context: Context) -> tuple[AddonSetting, ...]:
    """The addons of the settings, in their order."""
    found: list[AddonSetting] = []
    for node in keys.nodes("addons"):
        one = _one(node, context)
        if one is None:
            continue
        if any(one.name == other.name for other in found):
            context.faults.add(one.place, f"addon {one.name} stands twice", "remove one of them")
            continue
        found.append(one)
    return tuple(found)


def _one(node: Node, context: Context) -> AddonSetting | None:
    options: dict[str, object] = {}
    timeout_s = DEFAULT_TIMEOUT_S
    if isinstance(node, Scalar):
        scalar: Scalar | None = node
    else:
        inner = Fields(node, context.faults, "an addon", known=KNOWN["addon"])
        if not isinstance(node, MappingNode) or not inner.require("addon"):
            return None
        scalar = inner.scalar("addon")
        options = _options(inner.node("options"), context)
        timeout_s = _timeout(inner, context)
    if scalar is None:
        return None
    by_file, by_module = _FILE.fullmatch(scalar.text), _MODULE.fullmatch(scalar.text)
    if by_file is not None:
        return AddonSetting(scalar.text, context.folder / by_file[1], "", by_file[2], options, timeout_s, scalar.place)
    if by_module is not None:
        return AddonSetting(scalar.text, None, by_module[1], by_module[2], options, timeout_s, scalar.place)
    context.faults.add(
        scalar.place,
        f"{scalar.text!r} names no addon",
        "write ./my_addon.py:MyClass for a file, or installed_module:MyClass",
    )
    return None


def _timeout(keys: Fields, context: Context) -> float:
    found = keys.duration("timeout", DEFAULT_TIMEOUT_S)
    if found is None or 0 < found <= MAX_TIMEOUT_S:
        return DEFAULT_TIMEOUT_S if found is None else found
    context.faults.add(
        keys.place_of("timeout"), f"timeout of an addon lies between 1ms and {MAX_TIMEOUT_S:g}s", "write 5s"
    )
    return DEFAULT_TIMEOUT_S


def _options(node: Node | None, context: Context) -> dict[str, object]:
    if node is None:
        return {}
    if not isinstance(node, MappingNode):
        context.faults.add(node.place, "options of an addon must be a mapping", "write options: {name: value}")
        return {}
    for entry in node:
        if not entry.key.isidentifier():
            context.faults.add(entry.key_place, f"{entry.key!r} is no name of an argument", "use letters, digits and _")
    return {entry.key: _value(entry.value) for entry in node}


def _value(node: Node) -> object:
    """A value as Python has it: quoted text stays text; a plain `true`, `false` or number is one."""
    match node:
        case Scalar(text=text, quoted=quoted):
            if quoted:
                return text
            if text in _WORDS:
                return _WORDS[text]
            if _INTEGER.fullmatch(text):
                return int(text)
            return float(text) if _DECIMAL.fullmatch(text) else text
        case Sequence(items=items):
            return [_value(item) for item in items]
        case MappingNode():
            return {entry.key: _value(entry.value) for entry in node}
