"""Structured fields (RFC 8941), as far as signatures need them: dictionaries of byte sequences, and of inner lists with
parameters.

Read strictly: what the grammar does not allow is no structured field, and the request that has it is refused. A member
that stands twice is refused too, where the RFC would let the last one count: readers would differ about which of them was
judged. Decimals, dates and display strings stand in nothing that is signed here.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final

MAX_MEMBERS: Final = 16
MAX_ITEMS: Final = 64
MAX_PARAMETERS: Final = 16

_KEY: Final = re.compile(r"[a-z*][a-z0-9_.*-]*")
_STRING: Final = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_INTEGER: Final = re.compile(r"-?[0-9]{1,15}(?![0-9.])")
_TOKEN: Final = re.compile(r"[A-Za-z*][A-Za-z0-9!#$%&'*+\-.^_`|~:/]*")
_BYTES: Final = re.compile(r":([A-Za-z0-9+/]*={0,2}):")
_BOOLEAN: Final = re.compile(r"\?([01])")
_SPACE: Final = re.compile(r" *")
_BLANK: Final = re.compile(r"[ \t]*")


class Malformed(ValueError):
    """The text is no such field."""


@dataclass(frozen=True, slots=True)
class Token:
    """A bare word."""

    text: str


type Bare = int | str | bytes | bool | Token
type Parameters = tuple[tuple[str, Bare], ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One value with its parameters, in order."""

    value: Bare
    parameters: Parameters = ()


@dataclass(frozen=True, slots=True)
class InnerList:
    """`("a" "b";x);created=1`."""

    items: tuple[Item, ...]
    parameters: Parameters = ()


type Member = Item | InnerList


def read_dictionary(values: tuple[bytes, ...]) -> dict[str, Member]:
    """A dictionary (section 3.2) from the lines of a field.

    Raises:
        Malformed: it is none, has a member twice, or too much of anything.
    """
    try:
        text = ", ".join([value.decode("ascii") for value in values]).strip(" ")
    except UnicodeDecodeError:
        raise Malformed from None
    reader = _Reader(text)
    found: dict[str, Member] = {}
    while not reader.ended():
        key = reader.take(_KEY).group()
        if key in found or len(found) >= MAX_MEMBERS:
            raise Malformed
        found[key] = reader.member() if reader.skip("=") else Item(value=True, parameters=reader.parameters())
        reader.take(_BLANK)
        if reader.ended():
            break
        if not reader.skip(","):
            raise Malformed
        reader.take(_BLANK)
        if reader.ended():
            raise Malformed
    return found


class _Reader:
    """A place in a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def ended(self) -> bool:
        return self._at >= len(self._text)

    def skip(self, char: str) -> bool:
        if self._text.startswith(char, self._at):
            self._at += len(char)
            return True
        return False

    def find(self, grammar: re.Pattern[str]) -> re.Match[str] | None:
        match = grammar.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
        return match

    def take(self, grammar: re.Pattern[str]) -> re.Match[str]:
        match = self.find(grammar)
        if match is None:
            raise Malformed
        return match

    def member(self) -> Member:
        if not self.skip("("):
            return Item(self.bare(), self.parameters())
        items: list[Item] = []
        while True:
            self.take(_SPACE)
            if self.skip(")"):
                return InnerList(tuple(items), self.parameters())
            if len(items) >= MAX_ITEMS:
                raise Malformed
            items.append(Item(self.bare(), self.parameters()))
            if not self._text.startswith((" ", ")"), self._at):
                raise Malformed

    def parameters(self) -> Parameters:
        found: dict[str, Bare] = {}
        while self.skip(";"):
            self.take(_SPACE)
            key = self.take(_KEY).group()
            if key in found or len(found) >= MAX_PARAMETERS:
                raise Malformed
            found[key] = self.bare() if self.skip("=") else True
        return tuple(found.items())

    def bare(self) -> Bare:
        if (match := self.find(_STRING)) is not None:
            return re.sub(r"\\(.)", r"\1", match[1])
        if (match := self.find(_INTEGER)) is not None:
            return int(match.group())
        if (match := self.find(_BYTES)) is not None:
            try:
                return base64.b64decode(match[1], validate=True)
            except binascii.Error:
                raise Malformed from None
        if (match := self.find(_BOOLEAN)) is not None:
            return match[1] == "1"
        return Token(self.take(_TOKEN).group())
