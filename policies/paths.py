"""Path patterns, and the one reading of a path that they are matched against.

A raw path is split at `/` and decoded once, segment by segment. What two parsers could read in two ways has no such
reading (`read_path` gives None), and a route that distinguishes paths at all refuses it: encoded dots, slashes (unless
a pattern of the route writes `%2f` itself), backslashes, semicolons, percent signs and controls; empty and dot
segments; invalid UTF-8; anything that is not visible ASCII (RFC 3986 section 3.3, section 6.2.2).

In a pattern `*` stands for text inside one segment (a whole `*` for a non-empty one), `**` for any number of segments;
`/v1/x/**` also matches `/v1/x`. Neither ever stands for an encoded slash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

_RAW: Final = re.compile(r"(?:/(?:[A-Za-z0-9\-._~!$&'()*+,=:@]|%[0-9A-Fa-f]{2})*)+")
# Encoded: controls, `%`, `.`, `;`, `\`, DEL. An encoded slash is judged apart.
_AMBIGUOUS_ESCAPE: Final = re.compile(r"%(?:[01][0-9A-Fa-f]|25|2[eE]|3[bB]|5[cC]|7[fF])")
_ENCODED_SLASH: Final = re.compile(r"%2[fF]")
_SLASH: Final = "\x01"
"""Stands for a decoded slash inside a segment: no control character survives the reading, so it cannot be sent."""
_PATTERN: Final = re.compile(r"(?:/(?:[A-Za-z0-9\-._~!$&'()*+,=:@]|%[0-9A-Fa-f]{2})*)+")

LITERAL, GLOB, STAR, DEEP, END = 3, 2, 1, 0, 4
"""Rank of a segment; a pattern that ends where another goes on deep is the more specific one."""


@dataclass(frozen=True, slots=True)
class PathPattern:
    """One pattern, compiled.

    `rank` orders patterns by specificity, segment by segment; two patterns of one rank are equally specific.
    """

    text: str
    segments: tuple[str, ...]
    rank: tuple[int, ...]
    regex: re.Pattern[str]
    encoded_slash: bool

    @property
    def everything(self) -> bool:
        return self.text == "/**"

    @property
    def literal_prefix(self) -> tuple[str, ...]:
        """The leading segments that hold no wildcard."""
        prefix: list[str] = []
        for segment, rank in zip(self.segments, self.rank, strict=False):
            if rank != LITERAL:
                break
            prefix.append(segment)
        return tuple(prefix)

    def matches(self, canonical: str) -> bool:
        """Whether a path that `read_path` gave falls under this pattern."""
        return self.regex.fullmatch(canonical) is not None

    def __str__(self) -> str:
        return self.text


@lru_cache(maxsize=65_536)
def parse_pattern(text: str) -> PathPattern:
    """Compiles a pattern.

    Raises:
        ValueError: says what is wrong with it.
    """
    if not text.startswith("/"):
        raise ValueError("a path pattern starts with /")
    if "?" in text or "#" in text:
        raise ValueError("a path pattern has no query; use the query key for parameters")
    if not _PATTERN.fullmatch(text):
        raise ValueError("the path pattern holds a character that no unambiguous path has")
    if _AMBIGUOUS_ESCAPE.search(text):
        raise ValueError("the path pattern holds an escape that two parsers could read in two ways")
    segments: list[str] = []
    ranks: list[int] = []
    regex = ""
    raw_segments = text[1:].split("/")
    for index, raw in enumerate(raw_segments):
        segment = _decode(raw)
        if segment is None:
            raise ValueError("the path pattern is not UTF-8")
        if segment in {".", ".."} or (not segment and index < len(raw_segments) - 1):
            raise ValueError("the path pattern holds an empty or dot segment")
        if "**" in segment and segment != "**":
            raise ValueError("** must be a whole segment")
        segments.append(segment)
        if segment == "**":
            ranks.append(DEEP)
            regex += rf"(?:/[^/{_SLASH}]*)*"
        elif segment == "*":
            ranks.append(STAR)
            regex += rf"/[^/{_SLASH}]+"
        elif "*" in segment:
            ranks.append(GLOB)
            regex += "/" + rf"[^/{_SLASH}]*".join(re.escape(part) for part in segment.split("*"))
        else:
            ranks.append(LITERAL)
            regex += "/" + re.escape(segment)
    ranks.append(END)
    return PathPattern(text, tuple(segments), tuple(ranks), re.compile(regex), bool(_ENCODED_SLASH.search(text)))


def _decode(raw: str) -> str | None:
    try:
        return unquote_to_bytes(raw).decode("utf-8").replace("/", _SLASH)
    except UnicodeDecodeError:
        return None


def read_path(raw: str, *, encoded_slash: bool = False) -> str | None:
    """The one reading of a raw path, or None where there are two.

    Args:
        raw: as sent, without query.
        encoded_slash: whether the asking route writes `%2f` in a pattern of its own.

    Returns:
        A canonical text that only `PathPattern.matches` understands.
    """
    if not _RAW.fullmatch(raw):
        return None
    if "%" not in raw:
        if "//" in raw or ("/." in raw and _dotted(raw)):
            return None
        return raw
    if _AMBIGUOUS_ESCAPE.search(raw) or (not encoded_slash and _ENCODED_SLASH.search(raw)):
        return None
    segments: list[str] = []
    for part in raw[1:].split("/"):
        segment = _decode(part)
        if segment is None or (
            not segment.isprintable() and any(ord(char) < 32 and char != _SLASH for char in segment)
        ):
            return None
        if any(piece in {".", ".."} for piece in segment.split(_SLASH)):
            return None
        segments.append(segment)
    canonical = "/" + "/".join(segments)
    return None if "//" in canonical else canonical


def _dotted(raw: str) -> bool:
    return any(segment in {".", ".."} for segment in raw.split("/"))


def can_meet(one: PathPattern, other: PathPattern) -> bool:
    """Whether two equally specific patterns can match the same path: the question behind "two routes tie"."""
    if one.rank != other.rank:
        return False
    for left, right, rank in zip(one.segments, other.segments, one.rank, strict=False):
        if rank == LITERAL and left != right:
            return False
        if rank == GLOB and not _ends_meet(left, right):
            return False
    return True


def _ends_meet(one: str, other: str) -> bool:
    """Whether what stands before and behind the stars of two segments can be that of one text."""
    heads = [text.partition("*")[0] for text in (one, other)]
    tails = [text.rpartition("*")[2] if "*" in text else text for text in (one, other)]
    return (heads[0].startswith(heads[1]) or heads[1].startswith(heads[0])) and (
        tails[0].endswith(tails[1]) or tails[1].endswith(tails[0])
    )


def may_overlap(one: PathPattern, other: PathPattern) -> bool:
    """Whether two patterns of any rank can match the same path. Where text around a `*` stands on both sides the answer
    may be a yes too many, never a no too many.
    """
    # What is still to match on either side; each pair is looked at once, so the cost is the product of the lengths.
    todo, seen = [(0, 0)], set[tuple[int, int]]()
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        left, right = at
        first = one.segments[left] if left < len(one.segments) else None
        second = other.segments[right] if right < len(other.segments) else None
        if first is None and second is None:
            return True
        # A `**` ends here, or takes one segment and stands on.
        if first == "**":
            todo.append((left + 1, right))
        if second == "**":
            todo.append((left, right + 1))
        if first is not None and second is not None and _segments_meet(first, second):
            todo.append((left + (first != "**"), right + (second != "**")))
    return False


def _segments_meet(one: str, other: str) -> bool:
    """Whether some segment fits both."""
    if "**" in {one, other}:
        return True
    if "*" not in one and "*" not in other:
        return one == other
    for lone, text in ((one, other), (other, one)):
        if lone == "*" and not text:
            return False  # a lone star stands for no empty segment
    return _ends_meet(one, other)
