"""Reads the XML that AWS answers, for the texts of a few elements.

No document type is read past: without one there are no entities, and nothing to expand or fetch. Elements nest to a bound,
and of texts only those that were asked for are kept.
"""

from __future__ import annotations

import xml.parsers.expat
from typing import Final

from addons.deriving.made import unreadable

MAX_DEPTH: Final = 16
MAX_TEXT: Final = 16 * 1024


class _No(Exception):
    """It is not the XML that AWS writes."""


class _Reader:
    def __init__(self, names: frozenset[str]) -> None:
        self.found: dict[str, str] = {}
        self._names = names
        self._depth = 0
        self._open: str | None = None

    def began(self, name: str, _attributes: object) -> None:
        self._depth += 1
        local = name.rpartition(":")[2]
        if self._depth > MAX_DEPTH or (local in self._names and local in self.found):
            raise _No
        self._open = local if local in self._names else None
        if self._open is not None:
            self.found[self._open] = ""

    def ended(self, _name: str) -> None:
        self._depth -= 1
        self._open = None

    def read(self, text: str) -> None:
        if self._open is not None:
            self.found[self._open] += text
            if len(self.found[self._open]) > MAX_TEXT:
                raise _No

    @staticmethod
    def refused(*_: object) -> None:
        raise _No


def texts_of(body: bytes, names: frozenset[str], host: str) -> dict[str, str]:
    """The texts of elements of these names, each of which stands at most once.

    Args:
        body: of an answer, already capped.
        names: without a prefix.
        host: of the endpoint, for the refusal.

    Raises:
        Refusal: `secret_malformed`.
    """
    reader = _Reader(names)
    parser = xml.parsers.expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = reader.began
    parser.EndElementHandler = reader.ended
    parser.CharacterDataHandler = reader.read
    parser.StartDoctypeDeclHandler = reader.refused
    parser.EntityDeclHandler = reader.refused
    parser.ProcessingInstructionHandler = reader.refused
    try:
        parser.Parse(body, True)
    except (xml.parsers.expat.ExpatError, _No, ValueError):
        raise unreadable(host, "what is no XML of AWS") from None
    return reader.found
