"""YAML with positions: a file becomes a tree of nodes that remember where they stood.

Rules (docs/reference/policy.md, "How YAML is read"): one document a file; duplicate keys, anchors, aliases, merge keys
and tags are faults; null and empty lists are faults (a commented-out list must not mean "all"); scalars stay text and
are typed by the key that holds them, so `no` is no boolean and `1e3` no number. This module knows YAML and nothing of
policies; `fields.py` judges keys, `load.py` and `ostiary/settings` give them meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from policies.faults import Fault, FaultError, Faults, Place

MAX_FILE_BYTES: Final = 8 * 1024 * 1024
"""A larger policy file is a fault: it would hold the process for seconds."""
MAX_DEPTH: Final = 64


@dataclass(frozen=True, slots=True)
class Scalar:
    """One plain or quoted scalar, as text."""

    text: str
    place: Place
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Sequence:
    items: tuple[Node, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a mapping with the place of the key."""

    key: str
    key_place: Place
    value: Node


@dataclass(frozen=True, slots=True)
class Mapping:
    entries: tuple[Entry, ...]
    place: Place

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def get(self, key: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.key == key), None)


type Node = Scalar | Sequence | Mapping


def kind_of(node: Node) -> str:
    """What a person would call the node: for messages."""
    match node:
        case Scalar():
            return "a scalar"
        case Sequence():
            return "a list"
        case Mapping():
            return "a mapping"


def read_file(
    path: Path,
    *,
    shown_as: str | None = None,
    seen: Callable[[bytes], object] | None = None,
    held: bytes | None = None,
) -> Node:
    """Reads one YAML file.

    Args:
        path: the file.
        shown_as: how faults name it; the path as given by default.
        seen: is given the bytes that were read: a second look could find others.
        held: what the file held when somebody else read it; then nothing is read.

    Raises:
        FaultError: the file cannot be read or breaks a rule; all such faults at once where the parser allows it.
    """
    name = shown_as or str(path)
    raw = _bytes_of(path, name) if held is None else held
    if seen is not None:
        seen(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FaultError([Fault(Place(name, line), "is not UTF-8", "save the file as UTF-8")]) from None
    return parse(text, name)


def _bytes_of(path: Path, name: str) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise FaultError(
                [
                    Fault(
                        Place(name),
                        f"is larger than {MAX_FILE_BYTES // 1024 // 1024} MiB",
                        "split it into several files",
                    )
                ]
            )
        return path.read_bytes()
    except OSError as error:
        raise FaultError(
            [Fault(Place(name), f"cannot be read: {error.strerror or error}", "check the path and its permissions")]
        ) from None


def parse(text: str, name: str) -> Node:
    """Parses YAML text; `name` is how faults call the file. Raises as `read_file` does."""
    faults = Faults()
    try:
        node = _compose(text, name, faults)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(name, mark.line + 1, mark.column + 1) if mark else Place(name)
        faults.add(place, f"is not YAML: {error.problem or 'it cannot be parsed'}", _mend_for(error))
        raise FaultError(faults) from None
    except yaml.YAMLError as error:
        faults.add(Place(name), f"is not YAML: {str(error).splitlines()[0]}")
        raise FaultError(faults) from None
    faults.raise_any()
    if node is None:
        raise FaultError([Fault(Place(name), "is empty", "a file holds one mapping")])
    return node


def _mend_for(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if "\\t" in problem or "tab" in problem:
        return "indent with spaces"
    if "mapping values are not allowed" in problem:
        return "quote a value that contains ': '"
    return "check the indentation and quotes around this place"


class _Loader(yaml.SafeLoader):
    """The pure-Python scanner: its marks are exact, and a policy is read once."""


def _compose(text: str, name: str, faults: Faults) -> Node | None:
    loader = _Loader(text)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            place = Place(name, event.start_mark.line + 1, event.start_mark.column + 1)
            if isinstance(event, yaml.AliasEvent):
                faults.add(place, f"alias *{event.anchor} is not allowed", "write the value out")
            elif isinstance(event, yaml.NodeEvent) and event.anchor is not None:
                faults.add(place, f"anchor &{event.anchor} is not allowed", "write the value out where it is needed")
        if faults:
            return None
        root = loader.get_node() if loader.check_node() else None
        if root is None:
            return None
        if loader.check_node():
            second = loader.get_node()
            faults.add(
                Place(name, second.start_mark.line + 1 if second is not None else 1, 1),
                "a file holds one document",
                "put the second document into a file of its own",
            )
        return _convert(root, name, faults, 0)
    finally:
        loader.dispose()


def _convert(node: yaml.Node, name: str, faults: Faults, depth: int) -> Node | None:
    place = Place(name, node.start_mark.line + 1, node.start_mark.column + 1)
    if depth > MAX_DEPTH:
        faults.add(place, f"is nested deeper than {MAX_DEPTH} levels")
        return None
    if _tagged(node):
        faults.add(place, f"tag {node.tag} is not allowed", "remove the tag; values are typed by their key")
        return None
    if isinstance(node, yaml.ScalarNode):
        quoted = node.style in {"'", '"', "|", ">"}
        if not quoted and node.value in {"", "~", "null", "Null", "NULL"}:
            faults.add(place, "is null", "give a value or remove the key")
            return None
        return Scalar(node.value, place, quoted)
    if isinstance(node, yaml.SequenceNode):
        if not node.value:
            faults.add(
                place, "is an empty list", "give at least one item or remove the key: an empty list does not mean all"
            )
            return None
        items = [_convert(item, name, faults, depth + 1) for item in node.value]
        return Sequence(tuple(item for item in items if item is not None), place)
    assert isinstance(node, yaml.MappingNode)  # noqa: S101 - PyYAML composes these three kinds only
    return _convert_mapping(node, name, faults, depth, place)


def _convert_mapping(node: yaml.MappingNode, name: str, faults: Faults, depth: int, place: Place) -> Mapping:
    entries: list[Entry] = []
    seen: dict[str, Place] = {}
    for key_node, value_node in node.value:
        key_place = Place(name, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        if not isinstance(key_node, yaml.ScalarNode):
            faults.add(key_place, "a key must be a scalar")
            continue
        if _tagged(key_node):
            faults.add(key_place, f"tag {key_node.tag} is not allowed", "remove the tag")
            continue
        key = key_node.value
        if key == "<<" and key_node.style is None:
            faults.add(key_place, "merge keys are not allowed", "write the keys out")
            continue
        if key in seen:
            faults.add(key_place, f"key {key!r} stands twice; first at line {seen[key].line}", "keep one of them")
            continue
        seen[key] = key_place
        if node.flow_style and len(node.value) == 1 and isinstance(value_node, yaml.ScalarNode) and _absent(value_node):
            # bearer: {secret}, which YAML reads as a mapping with one key and nothing in it.
            faults.add(place, f"{{{key}}} without quotes is a mapping, not text", f'write "{{{key}}}"')
            continue
        value = _convert(value_node, name, faults, depth + 1)
        if value is not None:
            entries.append(Entry(key, key_place, value))
    return Mapping(tuple(entries), place)


def _absent(node: yaml.ScalarNode) -> bool:
    return node.style is None and not node.value


_IMPLICIT: Final = frozenset(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("str", "int", "float", "bool", "null", "timestamp", "binary", "map", "seq", "merge", "value")
)


def _tagged(node: yaml.Node) -> bool:
    """Whether the author wrote a tag: the composer resolves plain scalars to standard tags, so only the source text can
    tell.
    """
    if node.tag not in _IMPLICIT:
        return True
    buffer = node.start_mark.buffer
    if buffer is None:
        return False
    return bool(buffer[node.start_mark.pointer : node.start_mark.pointer + 1] == "!")
