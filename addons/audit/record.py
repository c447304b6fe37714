"""Audit records: their keys, their encoding, and the `OpenRecord` that unseals a secret.

One record is one line of JSON in UTF-8 with the keys of docs/reference/audit.md in that order, absent rather than null.
No key can hold a secret value: values are names, numbers and what the caller sent as method, host and path.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import operator
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple, Self, TypedDict

from addons.clock import Clock


class Fields(TypedDict, total=False):
    """The keys of a record, apart from `v`, `time`, `event` and `id`, which the log adds."""

    request_id: str
    trace_id: str
    workload: str
    proof: str
    source: str
    listener: str
    route: str
    rule: str
    host: str
    port: int
    method: str
    path: str
    secret: str
    secret_version: str
    lease: str
    cache: str
    payload_sha256: str
    status: int
    outcome: str
    code: str
    bytes_in: int
    bytes_out: int
    ms: float
    ms_secret: float
    ms_upstream: float
    redactions: int
    retries: int
    use: str
    """`verify`, where the secret is a key that a signature of the caller is judged with."""
    addon: str
    """The user's addon that answered, refused or failed."""
    count: int
    """How many refusals of one unproven source this record stands for."""
    version: str
    """Of the policy."""
    reason: str
    caller_credential: str
    """Where the caller sent a credential of its own."""
    by: str
    """Who asked: the name of an admin token, or SIGHUP."""
    version_before: str
    """The version of a secret that another has taken the place of."""


ORDER: Final = tuple(Fields.__annotations__)
_PREFIXES: Final = {key: f',"{key}":' for key in ORDER}
MAX_TEXT: Final = 2048
"""Characters of a text value; a longer one ends in …"""
MAX_SHAPES: Final = 256
"""Sets of keys whose order is remembered; the code makes a few dozen."""


class AuditUnavailable(Exception):
    """No sink could make the record durable in time."""


class _Opened(NamedTuple):
    id: str
    fields: Fields
    opened_s: float
    body: str
    request_id: str | None
    secret: str | None
    secret_version: str | None


class OpenRecord(_Opened):
    """Proof that `credential.opened` is durable, and for which secret and version. Only the audit log makes one: what
    it proves cannot be changed, and the class cannot be called. Satisfies `vault.store.Opening`.

    `opened_s` is in monotonic seconds; `body` holds the fields, encoded: the closing repeats them.
    """

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> Self:
        raise TypeError("open records are made by the audit log alone")

    def __repr__(self) -> str:
        return f"OpenRecord(id={self.id!r}, secret={self.secret!r}, secret_version={self.secret_version!r})"

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


def make_open(record_id: str, fields: Fields, opened_s: float, body: str) -> OpenRecord:
    """For the audit log only: the record is durable."""
    known = fields.get
    # Copied: what the record proves does not change with the fields that were handed over.
    return tuple.__new__(
        OpenRecord,
        (record_id, fields.copy(), opened_s, body, known("request_id"), known("secret"), known("secret_version")),
    )


def text(value: str) -> str:
    """A text value as a record holds it: capped, and with lone surrogates (which strict readers refuse) spelled out."""
    if not value.isascii():
        value = value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value if len(value) <= MAX_TEXT else value[: MAX_TEXT - 1] + "…"


_quoted: Final = json.encoder.encode_basestring_ascii
"""Escapes U+2028, controls and everything else outside ASCII: a line is one line for every reader."""


_FEW: Final = frozenset(
    {
        "workload", "proof", "source", "listener", "route", "rule", "host", "port", "method", "secret", "secret_version",
        "version_before", "cache", "status", "outcome", "code", "use", "addon", "version", "caller_credential",
    }
)  # fmt: skip
"""Keys whose values come again and again: they are encoded once for all records that have the same ones, while they are
remembered.
"""
MAX_KNOWN: Final = 1024
"""Of such values remembered for one set of keys; then all of them are forgotten."""
MAX_REMEMBERED: Final = 4096
"""Characters; what is longer is not remembered."""


def _encoded(key: str, value: Any) -> str:
    """One key with its value; nothing where no record has such a value."""
    if isinstance(value, str):
        if key == "path":
            # Callers give it without a query; here it is made sure of (G30).
            value = value.partition("?")[0]
        if len(value) > MAX_TEXT or not value.isascii():
            value = text(value)
        return _PREFIXES[key] + _quoted(value)
    if isinstance(value, int):
        return _PREFIXES[key] + int.__repr__(value)
    if isinstance(value, float) and math.isfinite(value):
        return f"{_PREFIXES[key]}{value:.3f}"
    return ""


def _picking(keys: tuple[str, ...]) -> Callable[[Fields], tuple[Any, ...]]:
    """Takes the values of these keys out of a record."""
    if len(keys) > 1:
        return operator.itemgetter(*keys)
    return lambda fields: tuple([fields[key] for key in keys])  # type: ignore[literal-required]  # a key of `ORDER`


class _Shape:
    """Records with the same keys. What the values of `_FEW` are encoded as is remembered, with room for the others between."""

    __slots__ = ("_few", "_known", "_own", "_pick", "_pick_own")

    def __init__(self, names: Collection[str]) -> None:
        keys = [key for key in ORDER if key in names]
        self._few = tuple([key for key in keys if key in _FEW])
        self._own = tuple([key for key in keys if key not in _FEW])
        self._pick = _picking(self._few)
        self._pick_own = _picking(self._own)
        self._known: dict[tuple[Any, ...], tuple[str, ...]] = {}

    def encode(self, fields: Fields) -> str:
        values = self._pick(fields)
        pieces = self._known.get(values) or self._between(values)
        own: list[str] = []
        for value in self._pick_own(fields):
            kind = value.__class__
            if kind is str and len(value) <= MAX_TEXT and "?" not in value and value.isascii():
                own.append(_quoted(value))
            elif kind is int:
                own.append(str(value))
            elif kind is float and value - value == 0:
                own.append("%.3f" % value)  # noqa: UP031 - half the time of an f-string or of `repr`
            else:
                return self._rare(fields)
        encoded = [*pieces]
        encoded[1::2] = own
        return "".join(encoded)

    def _rare(self, fields: Fields) -> str:
        """As `encode`, with a value that has to be looked at closely."""
        few = set(self._few)
        return "".join([_encoded(key, fields[key]) for key in ORDER if key in few or key in self._own])  # type: ignore[literal-required]  # a key of `ORDER`

    def _between(self, values: tuple[Any, ...]) -> tuple[str, ...]:
        """What stands around the values that are a record's own: an empty text stands for each of them."""
        given = dict(zip(self._few, values, strict=True))
        pieces = [""]
        for key in ORDER:
            if key in given:
                pieces[-1] += _encoded(key, given[key])
            elif key in self._own:
                pieces[-1] += _PREFIXES[key]
                pieces += ("", "")
        found = tuple(pieces)
        if sum(map(len, found)) <= MAX_REMEMBERED:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[values] = found
        return found


class Encoder:
    """Turns records into lines. Built by hand: `json.dumps` and a sort take three times as long.

    Args:
        clock: wall time of the records.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second = -1
        self._prefix = ""
        self._millisecond = -1
        self._time = ""
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self._heads: dict[str, str] = {}

    def time(self) -> str:
        """RFC 3339 in UTC with milliseconds."""
        now_s = self._clock.wall_s()
        millisecond = int(now_s * 1000)
        if millisecond != self._millisecond:
            second = int(now_s)
            if second != self._second:
                self._second = second
                self._prefix = dt.datetime.fromtimestamp(second, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.")
            self._millisecond = millisecond
            self._time = f"{self._prefix}{int((now_s - second) * 1000):03d}Z"
        return self._time

    def body(self, fields: Fields) -> str:
        """The keys of a record, encoded, without what `join` puts before and after them."""
        names = tuple(fields)
        return (self._shapes.get(names) or self._shape(names)).encode(fields)

    def join(self, event: str, record_id: str, *bodies: str) -> bytes:
        """One line, its line feed included, of what `body` gave."""
        named = self._heads.get(event) or self._head(event)
        return "".join(('{"v":1,"time":"', self.time(), named, _quoted(record_id), *bodies, "}\n")).encode("ascii")

    def _head(self, event: str) -> str:
        """What stands between time and id. Events are a list in the code."""
        self._heads[event] = head = f'","event":{_quoted(event)},"id":'
        return head

    def line(self, event: str, record_id: str, fields: Fields) -> bytes:
        """One line, its line feed included."""
        return self.join(event, record_id, self.body(fields))

    def _shape(self, names: tuple[str, ...]) -> _Shape:
        shape = _Shape(names)
        if len(self._shapes) < MAX_SHAPES:
            self._shapes[names] = shape
        return shape
