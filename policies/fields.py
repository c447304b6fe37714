"""Judging the keys of one mapping: known, not built yet, or unknown with the nearest known key; and typing scalars by
their key.

`Fields` is how `load.py` and the settings read a mapping: every accessor reports a fault and returns the default
instead of raising, so that one pass finds everything; `done()` reports what nobody asked for. Units stand in the value
(`15s`, `8MiB`) and are returned as seconds (float) and bytes (int).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from collections.abc import Mapping as MappingType
from typing import Final

from policies.document import Entry, Mapping, Node, Scalar, Sequence, kind_of
from policies.faults import Faults, Place, nearest

_DURATION: Final = re.compile(r"(0)|([0-9]{1,9})(ms|s|m|h|d)")
_DURATION_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"([0-9]{1,12})(B|KiB|MiB|GiB)")
_SIZE_UNIT: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")


def parse_duration(text: str) -> float | None:
    """Seconds of `0`, `250ms`, `15s`, `10m`, `24h` or `7d`; None when the text is no duration."""
    found = _DURATION.fullmatch(text)
    if found is None:
        return None
    return 0.0 if found.group(1) else int(found.group(2)) * _DURATION_UNIT_S[found.group(3)]


def parse_size(text: str) -> int | None:
    """Bytes of `512B`, `64KiB`, `8MiB` or `1GiB`; None when the text is no size."""
    found = _SIZE.fullmatch(text)
    return int(found.group(1)) * _SIZE_UNIT[found.group(2)] if found else None


class Fields:
    """The keys of one mapping, each taken once.

    Args:
        node: the mapping; any other kind is a fault and reads as empty.
        faults: where faults go.
        what: what the mapping is, for messages (`route stripe-charges`).
        known: every key that may stand here.
        later: keys of the language that are not built yet, each with the sentence that says so.
    """

    def __init__(
        self,
        node: Node,
        faults: Faults,
        what: str,
        *,
        known: Collection[str],
        later: MappingType[str, str] | None = None,
    ) -> None:
        self.faults = faults
        self.what = what
        self.place = node.place
        self._entries: dict[str, Entry] = {}
        if not isinstance(node, Mapping):
            faults.add(node.place, f"{what} must be a mapping, not {kind_of(node)}")
            return
        for entry in node:
            if entry.key in known:
                self._entries[entry.key] = entry
            elif later and entry.key in later:
                faults.add(entry.key_place, f"{entry.key!r} is not built yet: {later[entry.key]}", "remove it for now")
            else:
                near = nearest(entry.key, known)
                mend = f"did you mean {near!r}?" if near else f"known here: {', '.join(sorted(known))}"
                faults.add(entry.key_place, f"unknown key {entry.key!r} in {what}", mend)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def entry(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def node(self, key: str) -> Node | None:
        entry = self._entries.get(key)
        return entry.value if entry else None

    def place_of(self, key: str) -> Place:
        entry = self._entries.get(key)
        return entry.value.place if entry else self.place

    def require(self, *keys: str) -> bool:
        """Reports each missing key; True when all are there."""
        missing = [key for key in keys if key not in self._entries]
        for key in missing:
            self.faults.add(self.place, f"{self.what} needs {key!r}", f"add {key}: …")
        return not missing

    def scalar(self, key: str) -> Scalar | None:
        node = self.node(key)
        if node is None:
            return None
        if isinstance(node, Scalar):
            return node
        self.faults.add(node.place, f"{key!r} of {self.what} must be a scalar, not {kind_of(node)}")
        return None

    def text(self, key: str, default: str | None = None) -> str | None:
        scalar = self.scalar(key)
        if scalar is None:
            return default
        if not scalar.text:
            self.faults.add(scalar.place, f"{key!r} of {self.what} is empty")
            return default
        return scalar.text

    def boolean(self, key: str, *, default: bool = False) -> bool:
        scalar = self.scalar(key)
        if scalar is None:
            return default
        if scalar.text not in {"true", "false"}:
            self.faults.add(scalar.place, f"{key!r} of {self.what} must be true or false, not {scalar.text!r}")
            return default
        return scalar.text == "true"

    def integer(
        self, key: str, default: int | None = None, *, low: int | None = None, high: int | None = None
    ) -> int | None:
        scalar = self.scalar(key)
        if scalar is None:
            return default
        if not _INTEGER.fullmatch(scalar.text):
            self.faults.add(scalar.place, f"{key!r} of {self.what} must be a whole number, not {scalar.text!r}")
            return default
        value = int(scalar.text)
        if (low is not None and value < low) or (high is not None and value > high):
            self.faults.add(scalar.place, f"{key!r} of {self.what} must lie between {low} and {high}, not {value}")
            return default
        return value

    def choice(self, key: str, choices: Collection[str], default: str | None = None) -> str | None:
        scalar = self.scalar(key)
        if scalar is None:
            return default
        if scalar.text not in choices:
            near = nearest(scalar.text, choices)
            mend = f"did you mean {near!r}?" if near else f"one of {', '.join(sorted(choices))}"
            self.faults.add(scalar.place, f"{key!r} of {self.what} cannot be {scalar.text!r}", mend)
            return default
        return scalar.text

    def duration(self, key: str, default: float | None = None) -> float | None:
        """Seconds; `0` is zero."""
        return self._measure(key, default, parse_duration, "a duration", "write 250ms, 15s, 10m, 24h or 7d")

    def size(self, key: str, default: int | None = None) -> int | None:
        """Bytes."""
        return self._measure(key, default, parse_size, "a size", "write 512B, 64KiB, 8MiB or 1GiB")

    def _measure[T](
        self, key: str, default: T | None, parse: Callable[[str], T | None], kind: str, mend: str
    ) -> T | None:
        scalar = self.scalar(key)
        if scalar is None:
            return default
        value = parse(scalar.text)
        if value is None:
            self.faults.add(
                scalar.place, f"{key!r} of {self.what} is no {kind.rsplit(maxsplit=1)[-1]}: {scalar.text!r}", mend
            )
            return default
        return value

    def nodes(self, key: str) -> tuple[Node, ...]:
        """The items of a list; a single node stands for a list of one; () when the key is absent."""
        node = self.node(key)
        if node is None:
            return ()
        return node.items if isinstance(node, Sequence) else (node,)

    def texts(self, key: str) -> tuple[Scalar, ...]:
        """The scalars of a list, or the one scalar; anything else in it is a fault."""
        found: list[Scalar] = []
        for node in self.nodes(key):
            if isinstance(node, Scalar):
                found.append(node)
            else:
                self.faults.add(node.place, f"{key!r} of {self.what} must hold scalars, not {kind_of(node)}")
        return tuple(found)
