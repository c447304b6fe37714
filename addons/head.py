"""Request heads as values: what the caller sent, and what will be sent upstream.

`RequestHead` is what the caller sent, byte for byte. `HeadersToSend` is what leaves: built aside by `addons/injection`,
handed to the engine once, never stored on a flow, without a repr because it holds a credential.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, NoReturn, final

type Fields = tuple[tuple[bytes, bytes], ...]
"""Header fields in order, names as sent."""


class RequestHead(NamedTuple):
    """The head of one request. `target` is origin-form (`/path?query`) or `*`."""

    method: str
    target: bytes
    fields: Fields
    http2: bool

    @property
    def path(self) -> str:
        """The path as sent, without its query; undecoded."""
        return self.target.partition(b"?")[0].decode("ascii", "backslashreplace")

    def values(self, name: bytes) -> tuple[bytes, ...]:
        """Values of every field of this lower-case name."""
        size = len(name)
        return tuple([value for key, value in self.fields if len(key) == size and key.lower() == name])


@final
class HeadersToSend:
    """The head that leaves, credential included.

    Args:
        target: origin-form.
        fields: in order.
        body: the whole of what follows, where it was held (`addons/bodies.py`); None where the caller's streams behind it.
    """

    __slots__ = ("body", "fields", "target")

    def __init__(self, target: bytes, fields: Fields, body: bytes | None = None) -> None:
        self.target = target
        self.fields = fields
        self.body = body

    def __repr__(self) -> str:
        return "HeadersToSend(…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("heads that hold a credential are not serialised")


@dataclass(frozen=True, slots=True)
class Challenge:
    """The fields of a 401 that has not been passed on: what an upstream wants otherwise."""

    fields: Fields

    def values(self, name: bytes) -> tuple[bytes, ...]:
        """Values of every field of this lower-case name."""
        return tuple(value.strip(b" \t") for key, value in self.fields if key.lower() == name)
