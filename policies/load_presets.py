"""Puts presets into routes: `use: NAME` becomes the keys that the route did not write, before anything judges them.

Rules (docs/reference/policy.md, Presets): several presets count from left to right, the route itself last; maps merge,
scalars and lists replace, `deny` only adds, a grant of another kind and a credential by name replace a preset's `derive`; the host is the preset's and changes through its parameters alone. What a
built-in preset brings stands at the place of `use:`, so that every fault names a line that the user wrote; an own
preset's keys keep their own places. All of it happens at load: a request never meets a preset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from policies.document import Entry, Node, Scalar, Sequence, kind_of
from policies.document import Mapping as MappingNode
from policies.faults import Faults, Place, nearest
from policies.fields import Fields
from policies.load_parts import Context, put_variables
from policies.model import PresetUse
from policies.preset import Preset, built_in, built_in_names, read_preset

_VALUE: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A parameter stands in host names: one label, so that it can neither name another host nor close a template."""
_REPLACED: Final = frozenset({"inject", "sign"})
"""Lists by their nature, even where one item is written alone."""
VAULTS: Final = frozenset({"vault", "openbao", "hashicorp-vault"})
"""What people may look for: a proxy that holds a Vault token for a workload would hand out every other key."""
_TRACED: Final = frozenset({"match", "secret", "secrets", "derive", "timeouts", "reply"})
"""Maps of a route whose keys are told one by one, where they came from."""
_SECRETS: Final = ("secret", "secrets", "credential")

_OF_A_PATH: Final = frozenset({"mount", "namespace", "kv", "version"})
"""What tells where a secret's path begins goes with it: else a preset would lead the path of a route elsewhere."""


@dataclass(frozen=True, slots=True)
class Used:
    """A preset in one route: what of it was written, with its parameters put in."""

    preset: Preset
    written: MappingNode


@dataclass(frozen=True, slots=True)
class Expanded:
    """A route with its presets put in, and what came from which."""

    entry: Entry
    use: PresetUse
    used: tuple[Used, ...]


@dataclass(slots=True)
class Presets:
    """The presets that the routes of one load may use.

    Args:
        context: of the load.
        own: presets that policies define: name to entry and file.
    """

    context: Context
    own: Mapping[str, tuple[Entry, Path]]
    _known: dict[str, Preset | None] = field(default_factory=dict)

    def define(self) -> None:
        """Reads every own preset, used or not."""
        for name, (entry, path) in self.own.items():
            if name in built_in_names():
                self.context.faults.add(entry.key_place, f"{name!r} is a built-in preset", "give yours another name")
            self._known[name] = read_preset(name, entry.value, self.context.faults, home=path)

    @property
    def used(self) -> Iterator[Preset]:
        """Built-in presets that some route named, in the order of their names."""
        return (preset for _, preset in sorted(self._known.items()) if preset is not None and preset.home is None)

    def expand(self, name: str, entry: Entry) -> Expanded | None:
        """A route that has `use:`, with its presets put in; None with faults."""
        node = entry.value
        use = node.get("use") if isinstance(node, MappingNode) else None
        if not isinstance(node, MappingNode) or use is None:
            return None
        faults = self.context.faults
        before = len(faults.found)
        items = use.value.items if isinstance(use.value, Sequence) else (use.value,)
        uses = [found for item in items if (found := self._use(name, item)) is not None]
        names = [preset.name for preset, _, _ in uses]
        for twice in {one for one in names if names.count(one) > 1}:
            faults.add(use.value.place, f"route {name} uses preset {twice} twice", "name it once")
        _judge_hosts(name, node, uses, use.value.place, faults)
        if len(faults.found) > before:
            return None
        written = MappingNode(tuple(one for one in node if one.key != "use"), node.place)
        merged = MappingNode((), node.place)
        for _, body, _ in uses:
            merged = _merge(merged, body)
        merged = _merge(merged, written)
        origins: dict[str, str] = {}
        for preset, body, _ in uses:
            _trace(merged, {id(one): preset.name for one in _walk(body)}, "", origins)
        placeholders = {key: value for preset, _, _ in uses for key, value in preset.placeholder.items()}
        return Expanded(
            Entry(entry.key, entry.key_place, merged),
            PresetUse(tuple(names), dict(sorted(origins.items())), placeholders),
            tuple(Used(preset, raw) for preset, _, raw in uses),
        )

    def _use(self, route: str, item: Node) -> tuple[Preset, MappingNode, MappingNode] | None:
        """A preset with its parameters put in, whole and as it was written."""
        faults = self.context.faults
        named: Node | None = item
        if isinstance(item, MappingNode):
            found = item.get("preset")
            named = found.value if found is not None else None
        if not isinstance(named, Scalar):
            what = "names no preset" if isinstance(item, MappingNode) else f"must name presets, not {kind_of(item)}"
            faults.add(item.place, f"use of route {route} {what}", "write use: openai, or {preset: NAME, tenant: …}")
            return None
        preset = self._find(named)
        if preset is None:
            return None
        values = self._values(route, preset, item)
        if values is None:
            return None
        place = item.place if preset.home is None else None
        return preset, _put(preset.route, values, place), _put(preset.written, values, place)

    def _find(self, named: Scalar) -> Preset | None:
        name = named.text
        if name in self._known:
            return self._known[name]
        if name in built_in_names():
            self._known[name] = built_in(name)
            return self._known[name]
        if name in VAULTS:
            self.context.faults.add(
                named.place,
                f"{name!r} is no preset: where the keys live is no upstream of a workload",
                "let the workload call the API it needs, and Ostiary read Vault",
            )
            return None
        near = nearest(name, {*built_in_names(), *self.own})
        mend = f"did you mean {near!r}?" if near else "ostiary preset list shows those there are"
        self.context.faults.add(named.place, f"there is no preset {name!r}", mend)
        return None

    def _values(self, route: str, preset: Preset, item: Node) -> dict[str, str] | None:
        faults = self.context.faults
        before = len(faults.found)
        values: dict[str, str] = {}
        if isinstance(item, MappingNode):
            keys = Fields(item, faults, f"preset {preset.name} of route {route}", known={"preset", *preset.parameters})
            for name in preset.parameters:
                scalar = keys.scalar(name)
                text = put_variables(scalar, self.context) if scalar is not None else None
                if text is not None and not _VALUE.fullmatch(text):
                    faults.add(
                        keys.place_of(name),
                        f"{text!r} cannot be the {name} of preset {preset.name}",
                        "one label of a host name: lower-case letters, digits and inner dashes",
                    )
                elif text is not None:
                    values[name] = text
        missing = [name for name in preset.parameters if name not in values]
        if missing and len(faults.found) == before:
            told = ", ".join(f"{name}: …" for name in missing)
            faults.add(
                item.place,
                f"preset {preset.name} of route {route} needs {missing[0]!r}: {preset.parameters[missing[0]]}",
                f"write use: {{preset: {preset.name}, {told}}}",
            )
        return values if len(faults.found) == before else None


def _judge_hosts(
    name: str, route: MappingNode, uses: list[tuple[Preset, MappingNode, MappingNode]], place: Place, faults: Faults
) -> None:
    """The host is one preset's: whoever could change it would choose where the credential goes."""
    written = _at(_at(route, "match"), "host")
    if written is not None and uses:
        faults.add(
            written.place,
            f"the host of route {name} is that of preset {uses[0][0].name}",
            "remove host, or write the route without the preset",
        )
    hosts = {_texts_of(_at(_at(body, "match"), "host")) for _, body, _ in uses}
    if len(hosts) > 1:
        faults.add(place, f"the presets of route {name} name different hosts", "write a route for each")


def _merge(base: MappingNode, over: MappingNode) -> MappingNode:
    """`over` wins; a secret of another kind than the base's replaces it whole."""
    secrets = {key for key in _SECRETS if over.get(key) is not None}
    lost = set(_SECRETS) - secrets if secrets else set()
    if "credential" in secrets or _kinds(base) != _kinds(over) != frozenset():
        lost.add("derive")  # a credential by name has its own, and a route one grant
    entries = {entry.key: entry for entry in base if entry.key not in lost}
    for entry in over:
        under = entries.get(entry.key)
        value = entry.value
        if under is not None and entry.key == "deny":
            value = Sequence((*_items(entry.value), *_items(under.value)), entry.value.place)
        elif under is not None and entry.key not in _REPLACED:
            value = _joined(under.value, entry.value)
        entries[entry.key] = Entry(entry.key, entry.key_place, value)
    return MappingNode(tuple(entries.values()), over.place)


def _kinds(node: MappingNode) -> frozenset[str]:
    """The grants under `derive:`."""
    derive = _at(node, "derive")
    return frozenset(entry.key for entry in derive) if isinstance(derive, MappingNode) else frozenset()


def _joined(base: Node, over: Node) -> Node:
    if not isinstance(base, MappingNode) or not isinstance(over, MappingNode):
        return over
    lost = _OF_A_PATH if over.get("path") is not None else frozenset()
    entries = {entry.key: entry for entry in base if entry.key not in lost}
    for entry in over:
        under = entries.get(entry.key)
        value = _joined(under.value, entry.value) if under is not None else entry.value
        entries[entry.key] = Entry(entry.key, entry.key_place, value)
    return MappingNode(tuple(entries.values()), over.place)


def _put(node: MappingNode, values: Mapping[str, str], place: Place | None) -> MappingNode:
    """A new tree with the parameters put in, at `place` if that is given."""
    names = "|".join(map(re.escape, values)) or "(?!)"
    written = re.compile(rf"(?<!\{{)\{{({names})\}}(?!\}})")

    def put(one: Node) -> Node:
        where = place or one.place
        match one:
            case Scalar():
                return Scalar(written.sub(lambda found: values[found[1]], one.text), where, one.quoted)
            case Sequence():
                return Sequence(tuple(put(item) for item in one.items), where)
            case MappingNode():
                return MappingNode(
                    tuple(Entry(entry.key, place or entry.key_place, put(entry.value)) for entry in one), where
                )

    made = put(node)
    assert isinstance(made, MappingNode)  # noqa: S101 - a mapping gives a mapping
    return made


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in (entry.value for entry in node) if isinstance(node, MappingNode) else _inner(node):
        yield from _walk(child)


def _inner(node: Node) -> tuple[Node, ...]:
    return node.items if isinstance(node, Sequence) else ()


def _trace(node: Node, owners: Mapping[int, str], name: str, found: dict[str, str]) -> None:
    """Which keys of the merged route are a preset's own nodes."""
    if isinstance(node, MappingNode) and (not name or name in _TRACED):
        for entry in node:
            _trace(entry.value, owners, f"{name}.{entry.key}" if name else entry.key, found)
    elif name == "deny":
        for index, item in enumerate(_items(node)):
            if id(item) in owners:
                found[f"deny[{index}]"] = owners[id(item)]
    elif id(node) in owners:
        found[name] = owners[id(node)]


def _at(node: Node | None, key: str) -> Node | None:
    found = node.get(key) if isinstance(node, MappingNode) else None
    return found.value if found is not None else None


def _items(node: Node) -> tuple[Node, ...]:
    return node.items if isinstance(node, Sequence) else (node,)


def _texts_of(node: Node | None) -> tuple[str, ...]:
    return tuple(sorted(item.text for item in _items(node) if isinstance(item, Scalar))) if node is not None else ()
