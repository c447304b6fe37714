"""How a value can stand in an answer: as it is, and as ordinary encoders write it.

A `Spelling` is a sequence of parts; each part is the set of byte strings that may stand there. Letters, digits and
`-_.`, which no encoder here touches, are joined into parts of one string; any other character is a part of its own, with
all that URLs, forms, JSON and HTML make of it. So one spelling covers every mixture of escapes.

Known: plain text, URL and form escapes (RFC 3986 section 2.1, once or twice), JSON (RFC 8259 section 7, what is escaped without need
too), HTML entities, Base64 in its three alignments and two alphabets (RFC 4648 sections 4 and 5), hexadecimal digits of one case.
Not known, and told in docs/threat-model.md: what an encoder of the upstream's own would make (reversed, compressed inside a
format, broken into lines).

Nothing here prints a value: no repr, no pickle.
"""

from __future__ import annotations

import base64
import html
import itertools
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NoReturn, final

MIN_VALUE_BYTES: Final = 4
"""A shorter value is no secret worth the damage: it would be found everywhere."""
MIN_ENCODED_BYTES: Final = 8
"""Of Base64 and hexadecimal digits; shorter ones stand in many bodies by chance."""

_OTHER_ALPHABET: Final = {"+": (b"-",), "/": (b"_",)}

MAX_ANCHOR_BYTES: Final = 64
"""`bytes.find` prepares a table for needles that are much longer, at each call."""
PROBE_BYTES: Final = 8
"""Of a probe, and of a beginning: enough that other bytes hardly ever have them."""
MAX_PROBES: Final = 32
"""Of one spelling. What finds many at once is fast up to 64 of them in all."""

type Part = tuple[bytes, ...]

_PLAIN: Final = re.compile(r"[A-Za-z0-9._-]+|.", re.DOTALL)
_NAMED: Final = {"\n": b"\\n", "\r": b"\\r", "\t": b"\\t", "\b": b"\\b", "\f": b"\\f"}


@final
class Spelling:
    """The ways to write one value that have the same order of parts.

    Args:
        parts: none empty, no alternative empty.
    """

    __slots__ = ("_pattern", "alphabet", "anchor", "beginnings", "longest", "parts", "probes", "shortest")

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts
        self.longest: Final = sum(max(map(len, part)) for part in parts)
        """Bytes of the longest way."""
        self.shortest: Final = sum(min(map(len, part)) for part in parts)
        anchor = max((part[0] for part in parts if len(part) == 1), key=len, default=b"")
        self.anchor: Final = anchor[:MAX_ANCHOR_BYTES]
        """Stands in each of them."""
        self.probes: Final = _probes(parts)
        """One of these stands in each of them; where it is empty, that is not known of any."""
        self.beginnings: Final = _beginnings(parts)
        """Each of them begins with one of these."""
        self.alphabet: Final = frozenset(byte for part in parts for way in part for byte in way)
        self._pattern: re.Pattern[bytes] | None = None

    def spans(self, data: bytes) -> Iterable[tuple[int, int]]:
        """Where it stands in `data`, from left to right."""
        anchor = self.anchor
        at = data.find(anchor)
        if at < 0:
            return ()
        if self.longest == len(anchor):
            return _occurrences(data, anchor, at)
        if self._pattern is None:
            # Made only once there is something to look at closely: for a long key it takes milliseconds.
            ways = (b"|".join(re.escape(way) for way in part) for part in self.parts)
            self._pattern = re.compile(b"".join(b"(?:%b)" % way for way in ways), re.DOTALL)
        return [match.span() for match in self._pattern.finditer(data, max(0, at - self.longest))]

    def begins(self, data: bytes, at: int) -> bool:
        """Whether `data` from `at` on is the beginning of one of the ways, and not yet all of it."""
        places = {at}
        size = len(data)
        for part in self.parts:
            following = set[int]()
            for place in places:
                for way in part:
                    if data.startswith(way, place):
                        following.add(place + len(way))
                    elif size - place < len(way) and way.startswith(data[place:]):
                        return True
            if not following:
                return False
            places = following
        return False

    def __repr__(self) -> str:
        return "Spelling(…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("spellings of secrets are not serialised")


def _probes(parts: tuple[Part, ...]) -> frozenset[bytes]:
    """Few byte strings, as long as can be, one of which stands in every way to write this."""
    best, best_bytes = frozenset[bytes](), 0
    for begin in range(len(parts)):
        ways = 1
        for end in range(begin, min(len(parts), begin + PROBE_BYTES)):
            ways *= len(parts[end])
            if ways > MAX_PROBES:
                break
            window = parts[begin : end + 1]
            shortest = min(PROBE_BYTES, sum(min(map(len, part)) for part in window))
            if shortest > best_bytes:
                # The end of each: values often begin as those of others do (`sk_live_…`).
                best = frozenset(b"".join(way)[-PROBE_BYTES:] for way in itertools.product(*window))
                best_bytes = shortest
    return best


def _beginnings(parts: tuple[Part, ...]) -> frozenset[bytes]:
    """The first bytes of every way to write this: as many as leave few of them."""
    found = frozenset([b""])
    for part in parts:
        longer = frozenset((known + way)[:PROBE_BYTES] for known in found for way in part)
        if len(longer) > MAX_PROBES and b"" not in found:
            break
        if longer == found:
            break
        found = longer
    return found


def _occurrences(data: bytes, needle: bytes, at: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while at >= 0:
        found.append((at, at + len(needle)))
        at = data.find(needle, at + len(needle))
    return found


def spellings_of(value: str | bytes) -> tuple[Spelling, ...]:
    """Every spelling of a value; none for one that is too short.

    Args:
        value: text, or bytes that are none.
    """
    raw = value.encode() if isinstance(value, str) else value
    if len(raw) < MIN_VALUE_BYTES:
        return ()
    found = [Spelling(_parts(value))]
    digits = raw.hex().encode()
    found += [Spelling(((way,),)) for way in dict.fromkeys((digits, digits.upper())) if len(way) >= MIN_ENCODED_BYTES]
    for shift in range(3):
        # What comes before the value changes its first digits, what comes behind it the last: the middle is the same.
        middle = base64.b64encode(bytes(shift) + raw)[-(-shift * 4 // 3) : (shift + len(raw)) * 4 // 3]
        if len(middle) >= MIN_ENCODED_BYTES:
            found.append(encoded(middle))
    return tuple(found)


def encoded(digits: bytes) -> Spelling:
    """Base64 digits, without padding, in both alphabets, and with what URLs and JSON make of them."""
    texts = _PLAIN.findall(digits.decode("ascii"))
    return Spelling(tuple([(*_ways(text), *_OTHER_ALPHABET.get(text, ())) for text in texts]))


def _parts(value: str | bytes) -> tuple[Part, ...]:
    if isinstance(value, bytes):
        return tuple([(bytes((byte,)), *_percent(bytes((byte,)))) for byte in value])
    return tuple([_ways(text) for text in _PLAIN.findall(value)])


@lru_cache(maxsize=1024)
def _special(character: str) -> Part:
    """One character that some encoder would not leave as it is."""
    raw = character.encode()
    ways = [raw, *_percent(raw)]
    units = [character.encode("utf-16-be")[at : at + 2] for at in range(0, len(character.encode("utf-16-be")), 2)]
    lower = b"".join(b"\\u" + unit.hex().encode() for unit in units)
    ways += [lower, b"".join(b"\\u" + unit.hex().upper().encode() for unit in units)]
    if character in _NAMED:
        ways.append(_NAMED[character])
    elif character in {'"', "\\", "/"}:
        ways.append(b"\\" + raw)
    elif character == " ":
        ways.append(b"+")
    point = ord(character)
    ways += [b"&#%d;" % point, b"&#x%x;" % point, b"&#x%X;" % point]
    escaped = html.escape(character).encode()
    if escaped != raw:
        ways.append(escaped)
    # Longest first: a pattern takes the first that fits.
    return tuple(sorted(dict.fromkeys(ways), key=len, reverse=True))


def _ways(text: str) -> Part:
    return (
        (text.encode(),) if len(text) > 1 or (text.isascii() and (text.isalnum() or text in "._-")) else _special(text)
    )


def _percent(raw: bytes) -> list[bytes]:
    found: list[bytes] = []
    for mark in (b"%", b"%25"):
        found += [b"".join(mark + b"%02X" % byte for byte in raw), b"".join(mark + b"%02x" % byte for byte in raw)]
    return list(dict.fromkeys(found))
