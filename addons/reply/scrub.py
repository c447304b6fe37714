"""Keeps a credential out of the answer to the request that carried it (row C5 of the contract).

What is looked for are the values that the request used, in all their `spellings`; what is found becomes fill of the same
length (`scrub`) or ends the answer (`block`).

Rules:
- The answer is asked for in a form that can be read here (`readable.py`).
- What cannot be read is not passed on: a coding that nobody asked for, a part (206).
- A body without coding keeps its length, and leaves byte for byte where nothing is found. A coded one leaves decoded and
  framed anew; what was said of its coded bytes (length, digests) goes.
- Framing fields are never filled: the engine has read them already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, final

from addons.head import Fields
from addons.names import ByName
from addons.refusal import Code, Refusal
from addons.reply.codings import Decoding, Undecodable, codings_of
from addons.reply.matcher import Matcher, Redactor
from addons.reply.spellings import encoded, spellings_of
from policies.model import ScrubMode
from vault.secret import Secret

_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"connection"})
_OF_PARTS: Final = frozenset({b"accept-ranges"})
_OF_CODED_BYTES: Final = frozenset(
    {
        b"accept-ranges",
        b"content-encoding",
        b"content-length",
        b"transfer-encoding",
        b"content-md5",
        b"digest",
        b"content-digest",
        b"repr-digest",
    }
)
"""RFC 9110 section 8, RFC 9530: they tell of the bytes as they were coded."""
_PARTS: Final = frozenset({206, 226})
"""A part, and what was made of the whole in a way that `IM` names (RFC 3229): compressed, or only what has changed."""
_UNCHANGED: Final = 304
_SWITCHING: Final = 101
_MATCHERS: Final = 8
"""Of one route: callers' own user names inside Basic make several."""
_NO_BODY: Final = frozenset({101, 204, 304})


@final
@dataclass(frozen=True, slots=True)
class Scrub:
    """What one answer is searched for."""

    matcher: Matcher
    block: bool

    def also(self, before: Scrub) -> Scrub:
        """For a request that is sent again with another credential: its upstream has seen both."""
        return self if before is self else Scrub(self.matcher.with_those_of(before.matcher), self.block)


@final
class _Known:
    """A search that has been made."""

    __slots__ = ("basics", "credential", "scrub", "secrets")

    def __init__(self, credential: str, secrets: tuple[Secret, ...], basics: tuple[bytes, ...], scrub: Scrub) -> None:
        self.credential = credential
        self.secrets = secrets
        self.basics = basics
        self.scrub = scrub

    def holds(self, secrets: tuple[Secret, ...]) -> bool:
        if len(self.secrets) != len(secrets):
            return False
        for mine, other in zip(self.secrets, secrets, strict=True):  # noqa: SIM110 - a generator would cost more
            if mine is not other:
                return False
        return True


@final
class Scrubs:
    """What the answers of one route are searched for. Made anew only when a secret has changed."""

    __slots__ = ("_block", "_known")

    def __init__(self, mode: ScrubMode) -> None:
        self._block = mode == "block"
        self._known: list[_Known] = []

    def of(self, credential: str, secrets: tuple[Secret, ...], basics: tuple[bytes, ...]) -> Scrub:
        """The search for these values.

        Args:
            credential: its name; a route may have several.
            secrets: values that the request used. Those of one version are the same objects, so they are compared by
                identity.
            basics: what stands behind `Basic ` in it.
        """
        for known in self._known:
            if known.basics == basics and known.holds(secrets):
                return known.scrub
        spellings = [spelling for secret in secrets for spelling in spellings_of(_value(secret))]
        spellings += [encoded(token.rstrip(b"=")) for token in basics if len(token) > 4]
        scrub = Scrub(Matcher(spellings), self._block)
        # What belongs to an old version of this credential is not kept.
        kept = [known for known in self._known if known.credential != credential or known.holds(secrets)]
        self._known = [_Known(credential, secrets, basics, scrub), *kept[: _MATCHERS - 1]]
        return scrub

    def __repr__(self) -> str:
        return "Scrubs(…)"


def _value(secret: Secret) -> str | bytes:
    try:
        return secret.reveal()
    except UnicodeDecodeError:
        return secret.reveal_bytes()


def basics_of(fields: Fields) -> tuple[bytes, ...]:
    """What stands behind `Basic ` in a head that is about to leave."""
    return tuple([value[6:] for _, value in fields if value[:6] == b"Basic "])


@final
class BodyScrub:
    """One answer's body on its way through."""

    __slots__ = ("_block", "_decoding", "_redactor")

    def __init__(self, scrub: Scrub, codings: Sequence[str]) -> None:
        self._block = scrub.block
        self._redactor = Redactor(scrub.matcher)
        self._decoding = Decoding(codings) if codings else None

    @property
    def decodes(self) -> bool:
        """Whether its size changes."""
        return self._decoding is not None

    @property
    def redactions(self) -> int:
        return self._redactor.count

    def feed(self, piece: bytes) -> Iterable[bytes]:
        """What of the body leaves. Of a coded one each piece is decoded when it is asked for, since a few bytes may become
        many; all must be taken before the next are fed.

        Args:
            piece: what has come; empty at the end of the body.

        Raises:
            Refusal: `reply_blocked`, here or while pieces are taken; nothing more may leave.
        """
        if self._decoding is not None:
            return self._decoded(self._decoding, piece)
        redactor = self._redactor
        passes = redactor.feed(piece) if piece else redactor.end()
        if self._block and redactor.count:
            raise _reflected()
        return (passes,) if passes else ()

    def _decoded(self, decoding: Decoding, piece: bytes) -> Iterator[bytes]:
        redactor = self._redactor
        try:
            for decoded in decoding.feed(piece):
                passes = redactor.feed(decoded)
                if self._block and redactor.count:
                    raise _reflected()
                if passes:
                    yield passes
            if not piece:
                decoding.end()
        except Undecodable as error:
            raise _blocked(f"The upstream's answer cannot be read: {error}.") from None
        if not piece and (last := redactor.end()):
            yield last

    def __repr__(self) -> str:
        return "BodyScrub(…)"


class ScrubbedHead(NamedTuple):
    """The head of an answer, and what its body must pass through."""

    reason: bytes
    fields: Fields
    redactions: int
    body: BodyScrub


def scrub_head(scrub: Scrub, method: str, status: int, reason: bytes, fields: Fields) -> ScrubbedHead:
    """Judges and cleans the head of an answer.

    Args:
        scrub: what is searched for.
        method: of the request.
        status: of the answer.
        reason: phrase of HTTP/1.1.
        fields: as the upstream sent them; the very same where nothing has to change.

    Raises:
        Refusal: `reply_blocked`; the answer may not pass.
    """
    if status in _PARTS:
        raise _blocked("The upstream answered with a part that nobody asked for.")
    if status == _SWITCHING and any(name.lower() == b"sec-websocket-extensions" for name, _ in fields):
        raise _blocked("The upstream chose a WebSocket extension that nobody offered.")
    codings: tuple[str, ...] = ()
    says = [_says[name] for name, _ in fields]
    if _CODING in says:
        found = codings_of(fields)
        if found is None or _compressed_grpc(fields):
            raise _blocked("The upstream's answer has a coding that cannot be read here.")
        codings = found
        gone = _OF_CODED_BYTES if codings and status != _UNCHANGED else _OF_PARTS
        fields = tuple([field for field in fields if field[0].lower() not in gone])
    elif _PARTED in says:
        fields = tuple([field for field, what in zip(fields, says, strict=True) if what is None])
    redactions = 0
    if scrub.matcher.may_find(_lines([reason, *map(_lines, fields)])):
        reason, in_reason = scrub.matcher.redact(reason)
        fields, in_fields = scrub_fields(scrub, fields)
        redactions = in_reason + in_fields
        if scrub.block and redactions:
            raise _reflected()
    bodyless = method == "HEAD" or status in _NO_BODY
    return ScrubbedHead(reason, fields, redactions, BodyScrub(scrub, () if bodyless else codings))


_CODING: Final = "coding"
_PARTED: Final = "parted"


def _says_of_body(name: bytes) -> str | None:
    """What a field of this name says of how the body is to be read."""
    key = name.lower()
    if key in {b"content-encoding", b"grpc-encoding"}:
        return _CODING
    return _PARTED if key in _OF_PARTS else None


_says: Final = ByName(_says_of_body)
_lines: Final = b"\n".join
"""A line feed stands in no field."""


def scrub_fields(scrub: Scrub, fields: Fields) -> tuple[Fields, int]:
    """Fields, or trailers, with fill for what they show, and how many places were filled."""
    matcher = scrub.matcher
    # One search for all.
    if not matcher.may_find(_lines(map(_lines, fields))):
        return fields, 0
    count = 0
    kept: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        if name.lower() in _FRAMING:
            kept.append((name, value))
            continue
        clean_name, in_name = matcher.redact(name)
        clean_value, in_value = matcher.redact(value)
        count += in_name + in_value
        kept.append((clean_name, clean_value))
    return (tuple(kept), count) if count else (fields, 0)


def scrub_trailers(scrub: Scrub | None, fields: Fields) -> tuple[Fields, int]:
    """As `scrub_fields`; where the route blocks, none is left of trailers that show a credential."""
    if scrub is None or not fields:
        return fields, 0
    kept, count = scrub_fields(scrub, fields)
    return (() if scrub.block and count else kept), count


def _compressed_grpc(fields: Fields) -> bool:
    return any(
        len(name) == len(b"grpc-encoding") and name.lower() == b"grpc-encoding" and value.lower() != b"identity"
        for name, value in fields
    )


def _reflected() -> Refusal:
    return _blocked("The upstream's answer shows a credential.")


def _blocked(sentence: str) -> Refusal:
    return Refusal(Code.REPLY_BLOCKED, sentence)
