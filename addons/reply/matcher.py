"""Finds the spellings of some values in bytes that come in pieces, and puts fill in their place.

Fill is as long as what it replaces, so a length that was announced stays right, and so does the framing of whatever
format it stands in.

Rules:
- What leaves never holds a spelling, however the bytes were split; bytes without one leave unchanged.
- Held back is only what could still become a spelling: the end of a piece that one of them begins with, at most
  `longest - 1` bytes. Of that, a few bytes go on at once: any byte may begin a spelling by chance, and the two sides of a
  stream may each wait for the other's last byte. Should the rest follow, it alone is filled.
- The fill is a byte that no spelling has, so what leaves cannot make up a new one.
- Nearly all bytes are looked at by one search for a few bytes of each spelling at once (ahocorasick-rs: SIMD, several GB a
  second). It only ever says that there is nothing to find; what is found, is found by what stands here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NoReturn, final

from ahocorasick_rs import BytesAhoCorasick, MatchKind

from addons.reply.spellings import Spelling

MOST_LET_GO_BYTES: Final = 3
"""Of the beginning of a spelling; never more than a quarter of the shortest."""
_FILLS: Final = b"*#~!.xX0"
"""All of them are legal in a field name (RFC 9110 section 5.6.2)."""


@final
class Matcher:
    """Some spellings, to be looked for together. Immutable, shared by all requests that use the same secrets."""

    __slots__ = ("_begin", "_begins", "_fill", "_last", "_probes", "_short", "_spellings", "let_go_bytes", "longest")

    def __init__(self, spellings: Iterable[Spelling]) -> None:
        self._spellings: Final = tuple(spellings)
        self.longest: Final = max((spelling.longest for spelling in self._spellings), default=0)
        shortest = min((spelling.shortest for spelling in self._spellings), default=0)
        self.let_go_bytes: Final = min(MOST_LET_GO_BYTES, shortest // 4)
        alphabet = frozenset[int]().union(*(spelling.alphabet for spelling in self._spellings))
        self._fill = bytes((next((byte for byte in _FILLS if byte not in alphabet), _FILLS[0]),))
        self._probes = _search_for(spelling.probes for spelling in self._spellings)
        self._begins = _search_for(spelling.beginnings for spelling in self._spellings)
        beginnings = frozenset[bytes]().union(*(spelling.beginnings for spelling in self._spellings))
        self._short = tuple({way[:size] for way in beginnings for size in range(1, len(way))})
        """What may stand at the very end of a beginning that is not yet whole."""
        self._last = frozenset(way[-1] for way in self._short)
        self._begin: re.Pattern[bytes] | None = None

    def with_those_of(self, other: Matcher) -> Matcher:
        """What looks for the spellings of both."""
        return Matcher((*self._spellings, *other._spellings))

    def may_find(self, data: bytes) -> bool:
        """Whether it is worth looking closely: false for nearly everything, and then no spelling stands in `data`."""
        return self._probes is None or bool(self._probes.find_matches_as_indexes(data))

    def finds(self, data: bytes) -> bool:
        """Whether a spelling stands in `data`."""
        return bool(self._places(data))

    def redact(self, data: bytes) -> tuple[bytes, int]:
        """`data` with fill for each spelling, and how many places were filled. The very same bytes where there is none."""
        places = self._places(data)
        return (self._filled(data, places), len(places)) if places else (data, 0)

    def _places(self, data: bytes) -> list[tuple[int, int]]:
        """Spans of spellings, those that touch made one."""
        spans: list[tuple[int, int]] = []
        if not self.may_find(data):
            return spans
        for spelling in self._spellings:
            spans.extend(spelling.spans(data))
        if len(spans) < 2:
            return spans
        spans.sort()
        places = [spans[0]]
        for begin, end in spans[1:]:
            if begin < places[-1][1]:
                places[-1] = (places[-1][0], max(end, places[-1][1]))
            else:
                places.append((begin, end))
        return places

    def _filled(self, data: bytes, places: list[tuple[int, int]]) -> bytes:
        pieces: list[bytes] = []
        at = 0
        for begin, end in places:
            pieces += (data[at:begin], self._fill * (end - begin))
            at = end
        pieces.append(data[at:])
        return b"".join(pieces)

    def _unfinished(self, data: bytes, begin: int) -> int:
        """Where, from `begin` on, the end of `data` could be the beginning of a spelling; its size where nowhere."""
        size = len(data)
        begin = max(begin, size - self.longest + 1)
        tail = data[begin:]
        short = bool(tail) and tail[-1] in self._last and tail.endswith(self._short)
        if not short and self._begins is not None and not self._begins.find_matches_as_indexes(tail):
            return size
        at = 0
        if self._begin is None:
            self._begin = re.compile(_beginnings(self._spellings), re.DOTALL)
        while (found := self._begin.search(tail, at)) is not None:
            at = found.start()
            if any(spelling.begins(tail, at) for spelling in self._spellings):
                return begin + at
            at += 1
        return size

    def __repr__(self) -> str:
        return "Matcher(…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("spellings of secrets are not serialised")


def _search_for(sets: Iterable[frozenset[bytes]]) -> BytesAhoCorasick | None:
    """A search for all of them; None where one is empty, or holds an empty string: that could stand anywhere."""
    known = tuple(sets)
    if not all(known) or any(b"" in one for one in known):
        return None
    # Leftmost: the kind of search that has a SIMD prefilter.
    return BytesAhoCorasick(sorted(frozenset[bytes]().union(*known)), matchkind=MatchKind.LeftmostFirst)


def _beginnings(spellings: Iterable[Spelling]) -> bytes:
    """A pattern for where a spelling may begin: its first bytes, or fewer of them at the very end."""
    ways = frozenset[bytes]().union(*(spelling.beginnings for spelling in spellings))
    short = {way[:size] for way in ways for size in range(1, len(way))}
    return b"|".join([*(re.escape(way) for way in sorted(ways)), *(re.escape(way) + rb"\Z" for way in sorted(short))])


@final
class Redactor:
    """One body on its way through a matcher."""

    __slots__ = ("_gone", "_held", "_matcher", "count")

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._held = b""
        self._gone = b""
        """Let go, although a spelling begins with it."""
        self.count = 0
        """Places filled so far."""

    def feed(self, piece: bytes) -> bytes:
        """What of the body may leave, now that this piece has come."""
        matcher, gone = self._matcher, len(self._gone)
        data = self._gone + self._held + piece if gone or self._held else piece
        places = matcher._places(data)  # noqa: SLF001 - the two are one machine
        keep = matcher._unfinished(data, places[-1][1] if places else 0)  # noqa: SLF001 - as above
        rest = data[keep:]
        if len(rest) <= matcher.let_go_bytes:
            self._gone, self._held, keep = rest, b"", len(data)
        else:
            # What has gone of it cannot be called back.
            self._gone, self._held = rest[: max(gone - keep, 0)], rest[max(gone - keep, 0) :]
        if places:
            self.count += len(places)
            data = matcher._filled(data, places)  # noqa: SLF001 - as above
        return data[gone : max(keep, gone)] if gone or keep < len(data) else data

    def end(self) -> bytes:
        """What was held back: the body has ended, so it is no spelling."""
        held, self._held, self._gone = self._held, b"", b""
        return held

    def __repr__(self) -> str:
        return f"Redactor({self.count} redacted)"
