"""What a request says of its own signature, and how a time, a nonce or a text of it is read.

Rules:
- A claim is read whole before a key is opened: what is not there, doubled, malformed, too old or too new is refused there.
- What is signed is what the receiver reads: a head in which it would not be is refused.
- Every key is tried with every candidate, in constant time: neither which of them fits nor how nearly is told by time.
- A nonce is used up only by a signature that holds: a stranger must not be able to spend those of others.
"""

from __future__ import annotations

import datetime as dt
import hmac
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from addons.credentials import Credential
from addons.head import RequestHead
from addons.injection.places import place
from addons.refusal import Code, Refusal
from policies.sign import TimestampForm, TransitUse
from policies.template import FieldRef

MAX_SIGNATURE_BYTES: Final = 8 * 1024
"""Of a field that holds signatures."""
MAX_CANDIDATES: Final = 16
"""Signatures in one request, each of which costs a comparison with every key."""
MAX_NONCE_BYTES: Final = 256
_NUMBER: Final = re.compile(r"[0-9]{1,17}")
_RFC3339: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?Z")
_VISIBLE: Final = re.compile(rb"[\x20-\x7e]+")


@dataclass(frozen=True, slots=True)
class Single:
    """What may pass once: the nonce, and for how long it must be remembered."""

    nonce: str
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Claim:
    """A signature that was made with a key of ours."""

    reads: tuple[FieldRef, ...]
    """What is opened to judge it."""
    needed: tuple[FieldRef, ...]
    """What of that must be there. Further keys may be missing: there is no previous one before the first rotation."""
    holds: Callable[[Credential], bool]
    """Whether it was made with one of the keys. Raises `Refusal`: a key is not usable."""
    single: Single | None = None
    remote: Remote | None = None
    """The key stays in Vault: then this tells, and `holds` does not."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A signature that Vault must be asked about."""

    use: TransitUse
    text: Callable[[Credential], bytes]
    """What was signed. Raises `Refusal`: a secret that the text names is not usable."""
    signature: bytes


def invalid(sentence: str) -> Refusal:
    """The refusal of a signature; the sentence says what is wrong with it, never what would be right."""
    return Refusal(Code.SIGNATURE_INVALID, sentence)


def only(head: RequestHead, name: str, *, most: int = MAX_SIGNATURE_BYTES) -> bytes:
    """The value of a field that must stand there once, without blanks around it.

    Raises:
        Refusal: `signature_invalid`.
    """
    values = head.values(name.lower().encode("ascii"))
    if len(values) != 1:
        raise invalid(f"The request must have one {name} field, and has {'several' if values else 'none'}.")
    value = values[0].strip(b" \t")
    if not value or len(value) > most:
        raise invalid(f"The {name} field is {'too long' if value else 'empty'}.")
    return value


def judge_signed(head: RequestHead, names: Iterable[str]) -> None:
    """Refuses a head in which a field that counts here would not count for the receiver: `Connection` takes it away on our
    way on (RFC 9110 section 7.6.1), or another spelling (`X_Role` of `X-Role`) is read in its place (RFC 3875 section
    4.1.18).

    Args:
        head: as it came.
        names: of fields that are signed, or held against what is.

    Raises:
        Refusal: `signature_invalid`.
    """
    counted = {name.lower().encode("ascii") for name in names}
    if not counted:
        return
    places = {place(name) for name in counted}
    for name, value in head.fields:
        key = name.lower()
        if key == b"connection":
            if counted & {option.strip(b" \t").lower() for option in value.split(b",")}:
                raise invalid("The Connection field takes away a field that is signed.")
        elif key not in counted and place(key) in places:
            raise invalid("A field that is signed stands there in another spelling too.")


def visible(value: bytes, what: str) -> str:
    """Text of visible ASCII and spaces.

    Raises:
        Refusal: `signature_invalid`.
    """
    if not _VISIBLE.fullmatch(value):
        raise invalid(f"The {what} is not visible ASCII.")
    return value.decode("ascii")


def read_time(form: TimestampForm, text: str) -> float:
    """Seconds since the epoch of a timestamp as it was sent.

    Raises:
        Refusal: `signature_invalid`.
    """
    if form == "rfc3339":
        if _RFC3339.fullmatch(text):
            try:
                return dt.datetime.fromisoformat(text).timestamp()
            except ValueError:
                pass
    elif _NUMBER.fullmatch(text):
        return int(text) / (1000 if form == "milliseconds" else 1)
    raise invalid("The timestamp of the signature cannot be read.")


def judge_time(at_s: float, now_s: float, *, past_s: float, future_s: float) -> None:
    """Refuses what is too old or too new.

    Raises:
        Refusal: `signature_invalid`.
    """
    if at_s < now_s - past_s:
        raise invalid(f"The signature is older than {past_s:g} seconds.")
    if at_s > now_s + future_s:
        raise invalid(f"The signature is dated more than {future_s:g} seconds ahead of this clock.")


def any_matches(candidates: Sequence[bytes], made: Iterable[bytes]) -> bool:
    """Whether one of the candidates is one of those that our keys make. Every pair is compared."""
    found = False
    for own in made:
        for candidate in candidates:
            found |= hmac.compare_digest(candidate, own)
    return found


def present[T](references: Iterable[T], value: Callable[[T], bytes]) -> list[bytes]:
    """What each key makes of the text; a key that the secret does not have makes nothing.

    Raises:
        Refusal: a key is there and not usable.
    """
    made: list[bytes] = []
    for reference in references:
        try:
            made.append(value(reference))
        except Refusal as refusal:
            if refusal.code is not Code.SECRET_MISSING:
                raise
    return made
