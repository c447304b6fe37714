"""The request as it is about to leave: what signers read and add to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, final
from urllib.parse import quote

from addons.head import Fields, HeadersToSend, RequestHead


@final
class Outgoing:
    """One request, credential included. Without a repr. It is nobody's but its signers', which add to it in turn; the engine
    gets what they made of it once all have signed.

    Args:
        method: as granted.
        scheme: `https`, or `http` where the route allows it.
        host: the Host field, which is `:authority` in HTTP/2.
        target: origin-form, or `*`.
        fields: in order.
        http2: whether field names are lower-case.
        body: None where it streams: then no signer may need it.
        caller: what the caller sent, with the credentials that do not travel: a scope is read from there, never a
            credential.
    """

    __slots__ = ("body", "caller", "fields", "host", "http2", "method", "scheme", "target")

    def __init__(
        self,
        method: str,
        scheme: str,
        host: bytes,
        target: bytes,
        fields: Sequence[tuple[bytes, bytes]],
        body: bytes | None,
        caller: RequestHead,
        *,
        http2: bool,
    ) -> None:
        self.method = method
        self.scheme = scheme
        self.host = host
        self.target = target
        self.fields = list(fields)
        self.body = body
        self.caller = caller
        self.http2 = http2

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        """Without the question mark; empty where there is none."""
        return self.target.partition(b"?")[2]

    def values(self, name: bytes) -> list[bytes]:
        """Values of every field of this lower-case name."""
        size = len(name)
        return [value for key, value in self.fields if len(key) == size and key.lower() == name]

    def put(self, name: bytes, value: bytes) -> None:
        """A field, in the place of those of its name."""
        key, size = name.lower(), len(name)
        if any(len(other) == size and other.lower() == key for other, _ in self.fields):
            self.fields = [field for field in self.fields if field[0].lower() != key]
        self.fields.append((key if self.http2 else name, value))

    def put_parameter(self, name: str, value: str) -> None:
        """One more parameter at the end of the query, escaped; the others stay byte for byte."""
        self.extend_query(f"{quote(name, safe='')}={quote(value, safe='')}".encode())

    def extend_query(self, pairs: bytes) -> None:
        """Escaped parameters behind those that are there."""
        path, mark, query = self.target.partition(b"?")
        self.target = path + b"?" + (query + b"&" + pairs if mark and query else pairs)

    def to_send(self) -> HeadersToSend:
        return HeadersToSend(self.target, tuple(self.fields), self.body)

    def __repr__(self) -> str:
        return "Outgoing(…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("heads that hold a credential are not serialised")


def one_cookie(fields: Fields) -> Fields:
    """Fields of an HTTP/2 request with one Cookie field: callers may split it (RFC 9113 section 8.2.3), and on the way to an
    HTTP/1.1 upstream it is joined again, so that is what must be signed.
    """
    cookies = [value for name, value in fields if name == b"cookie"]
    if len(cookies) < 2:
        return fields
    return (*(field for field in fields if field[0] != b"cookie"), (b"cookie", b"; ".join(cookies)))
