"""A credential inside a body: a member of a JSON object, or a field of a form.

Rules:
- A body is taken apart once, without a secret at hand (`read_content`); what is put is put between its bytes, so the others
  stay as they are.
- A body that two parsers could read in two ways is refused: doubled names, numbers that are none, another charset, a
  content coding, a byte order mark, a form whose field hides behind a semicolon.
- Missing parents of a member are made; one that is no object is the caller's mistake.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn
from urllib.parse import quote_plus, unquote_to_bytes

from addons.head import Fields
from addons.refusal import Code, Refusal
from policies.pointer import Pointer, pointer_text

LARGE_BYTES: Final = 64 * 1024
"""What takes longer than a millisecond or so to read."""
MAX_DEPTH: Final = 64
"""Of JSON. Parsers differ in how deep they go."""
MAX_BRACKETS: Final = 1_000_000
"""In a JSON text, those in strings too: each is an object to make, while other threads wait."""

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_TYPE: Final = re.compile(
    rb"[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+/[!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*(?:;(.*))?", re.DOTALL
)
_CHARSET: Final = re.compile(rb"(?:\A|;)[ \t]*charset[ \t]*=[ \t]*\"?([^;\"]*)\"?", re.IGNORECASE)
_CHARSETS: Final = frozenset({b"utf-8", b"utf8", b"us-ascii"})
FORM: Final = b"application/x-www-form-urlencoded"


def _bad(sentence: str) -> Refusal:
    return Refusal(Code.BAD_REQUEST, sentence)


# --- what kind of body ---


def kind_of(fields: Fields) -> bytes | None:
    """The media type of a request's body, in lower case; None where there is none, or more than one."""
    found = [value for name, value in fields if name.lower() == b"content-type"]
    match = _TYPE.fullmatch(found[0]) if len(found) == 1 else None
    return match[1].lower() if match else None


def is_json(kind: bytes | None) -> bool:
    return kind is not None and (kind == b"application/json" or kind.endswith(b"+json"))


def judge_content(fields: Fields, *, form: bool) -> None:
    """Judges what the head says of a body, before any of it is read.

    Args:
        fields: of the request.
        form: whether a form is needed, and not JSON.

    Raises:
        Refusal: `bad_request`.
    """
    kind = kind_of(fields)
    if form and kind != FORM:
        raise _bad("This route puts its credential into a form: send application/x-www-form-urlencoded.")
    if not form and not is_json(kind):
        raise _bad("This route puts its credential into a JSON body: send application/json.")
    for name, value in fields:
        key = name.lower()
        if key == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            raise _bad("This route puts its credential into the body: send it without a content coding.")
        if key == b"content-type" and any(
            one.strip().lower() not in _CHARSETS for one in _CHARSET.findall(value.partition(b";")[2])
        ):
            raise _bad("This route puts its credential into the body: send it in UTF-8.")


# --- JSON ---


@dataclass(frozen=True, slots=True)
class Member:
    """A place in a JSON text. `begin` and `end` enclose the value that is there, or are where a new member goes."""

    pointer: Pointer
    begin: int
    end: int
    missing: Pointer = ()
    """Members to be made, from the outermost inwards."""
    first: bool = False
    """Whether the object that they go into is empty."""
    value: Any = None

    @property
    def there(self) -> bool:
        return not self.missing


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _bad("A name stands twice in one object of the JSON body.")
    return found


def _no_constant(text: str) -> NoReturn:
    raise _bad(f"The JSON body holds {text}, which is no JSON.")


def _digits(text: str) -> str:
    """Numbers are not looked at: their digits stay where they are.

    A function of Python's own, so that a long list of them does not keep other threads waiting.
    """
    return text


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_constant=_no_constant, parse_float=_digits, parse_int=_digits
)


class JsonBody:
    """A JSON text, taken apart along some pointers.

    Raises:
        Refusal: `bad_request`.
    """

    def __init__(self, body: bytes, pointers: Sequence[Pointer]) -> None:
        try:
            self._text = body.decode("utf-8")
            if _depth(body) > MAX_DEPTH:
                raise _bad("The JSON body is nested too deeply, or has too many objects and lists.")
            root = _DECODER.decode(self._text)
        except (ValueError, RecursionError):
            # The text of the original error quotes the body.
            raise _bad("The body is no JSON.") from None
        if not isinstance(root, dict):
            raise _bad("The JSON body is no object.")
        self.members = tuple(self._find(pointer) for pointer in pointers)

    def __repr__(self) -> str:
        return "JsonBody(…)"

    def _find(self, pointer: Pointer) -> Member:
        at = self._skip(0)
        for depth, name in enumerate(pointer):
            members, end = self._object(at)
            here = next((index for index, member in enumerate(members) if member[0] == name), None)
            if here is None:
                return Member(pointer, end, end, pointer[depth:], first=not members)
            _, value_at, value_end = members[here]
            if depth == len(pointer) - 1:
                return Member(pointer, value_at, value_end, value=_DECODER.raw_decode(self._text, value_at)[0])
            if self._text[value_at] != "{":
                raise _bad(f"What stands at {pointer_text(pointer[: depth + 1])} of the JSON body is no object.")
            at = value_at
        raise AssertionError("a pointer names a member")

    def _object(self, at: int) -> tuple[list[tuple[str, int, int]], int]:
        """Members of the object at `at` (name, where the value begins and ends), and where a new member goes. The text is
        known to be JSON.
        """
        text = self._text
        members: list[tuple[str, int, int]] = []
        at = inside = at + 1
        while True:
            at = self._skip(at)
            if text[at] == "}":
                return members, members[-1][2] if members else inside
            if text[at] == ",":
                at = self._skip(at + 1)
            name, at = _DECODER.raw_decode(text, at)
            at = self._skip(self._skip(at) + 1)
            value_at = at
            at = _DECODER.raw_decode(text, at)[1]
            members.append((name, value_at, at))

    def _skip(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        return match.end() if match is not None else at

    def put(self, values: Sequence[str | None]) -> bytes:
        """The text with these values at its members, in their order.

        Args:
            values: None makes `null` of what is there.
        """
        changes: list[tuple[int, int, str]] = []
        made: dict[int, list[tuple[Member, str]]] = {}
        for member, value in zip(self.members, values, strict=True):
            if member.there:
                changes.append((member.begin, member.end, json.dumps(value)))
            elif value is not None:
                made.setdefault(member.begin, []).append((member, value))
        for at, news in made.items():
            text = _joined([(member.missing, value) for member, value in news])
            changes.append((at, at, text if news[0][0].first else f",{text}"))
        text, done = self._text, 0
        pieces: list[str] = []
        for begin, end, new in sorted(changes):
            pieces += (text[done:begin], new)
            done = end
        return "".join([*pieces, text[done:]]).encode()


def _joined(news: Sequence[tuple[Pointer, str]]) -> str:
    """New members of one object as JSON writes them, those with common parents together."""
    tree: dict[str, Any] = {}
    for pointer, value in news:
        at = tree
        for name in pointer[:-1]:
            at = at.setdefault(name, {})
        at[pointer[-1]] = value
    return json.dumps(tree)[1:-1]


def _depth(body: bytes) -> int:
    """How many brackets are open at once at most, those in strings left out; too many where there are too many of them."""
    brackets = body.count(b"{") + body.count(b"[")
    if brackets <= MAX_DEPTH or brackets > MAX_BRACKETS:
        return brackets if brackets > MAX_BRACKETS else 0
    depth = most = 0
    for match in _BRACKETS.finditer(body):
        if match[0] in {b"{", b"["}:
            depth += 1
            most = max(most, depth)
        elif match[0] in {b"}", b"]"}:
            depth -= 1
    return most


_BRACKETS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


# --- forms ---


def judge_form(body: bytes, names: Collection[str]) -> None:
    """Judges a form that is to get fields of these names.

    Raises:
        Refusal: `bad_request`; one of them hides behind a semicolon, at which some servers cut, too.
    """
    wanted = {name.encode() for name in names}
    for pair in body.split(b"&") if b";" in body else ():
        if any(_name(part) in wanted for part in pair.split(b";")[1:]):
            raise _bad("A field of the form can be read in two ways: write %3B for a semicolon.")


def form_names(body: bytes) -> list[bytes]:
    """Names of the fields of a form."""
    return [_name(pair) for pair in body.split(b"&")]


def with_fields(body: bytes, fields: Sequence[tuple[str, str]]) -> bytes:
    """The form with these fields at its end, in the place of all of their names. The others stay byte for byte."""
    names = {name.encode() for name, _ in fields}
    kept = [pair for pair in body.split(b"&") if pair and _name(pair) not in names]
    made = [f"{quote_plus(name)}={quote_plus(value)}".encode() for name, value in fields]
    return b"&".join([*kept, *made])


def _name(pair: bytes) -> bytes:
    return unquote_to_bytes(pair.partition(b"=")[0].replace(b"+", b" ")).strip()
