"""The type that holds a secret, and the rules that keep it from being printed.

`Secret` owns one value. It has no `repr`, `str`, format, pickle, copy, hash or equality that would show or compare the
value; `reveal()` (and `reveal_bytes()`, `derive()`) is the one way out, and a search for these lists every place where a value leaves. Nothing else in
Ostiary may carry a secret value as plain `str` or `bytes` across a function boundary.

The value lies in a buffer that is overwritten with zeros when the last reference to it goes. That is as far as Python
lets us: the text it came from and each text that `reveal()` makes are Python's to free, and are not overwritten.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Final, NoReturn, final

MAX_DERIVED: Final = 32
"""Things that are remembered of one secret: the oldest goes first."""


@final
class Secret:
    """One secret value, held as text or bytes, shown to nobody.

    Args:
        value: the material as the store returned it. Text that is not valid UTF-8 must be handed over as bytes.
    """

    __slots__ = ("__made", "__text", "__value")

    def __init__(self, value: str | bytes) -> None:
        # A lone surrogate, which JSON can spell, is kept as it is: whoever uses the value refuses it.
        self.__value: Final = bytearray(value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value)
        self.__text: Final = isinstance(value, str)
        self.__made: dict[Hashable, Any] | None = None

    def __del__(self) -> None:
        # Nothing was kept where the constructor failed.
        with suppress(AttributeError):
            self.__value[:] = bytes(len(self.__value))

    def reveal(self) -> str:
        """The value as text.

        Raises:
            UnicodeDecodeError: the value is bytes that are no UTF-8; the error is re-raised without the offending
                bytes.
        """
        if self.__text:
            return self.__value.decode("utf-8", "surrogatepass")
        try:
            return self.__value.decode("utf-8")
        except UnicodeDecodeError:
            # The original error carries the whole value in its `object` attribute.
            raise UnicodeDecodeError("utf-8", b"", 0, 0, "the secret is not text") from None

    def reveal_bytes(self) -> bytes:
        """The value as bytes; text is encoded as UTF-8."""
        return bytes(self.__value)

    def matches(self, other: Secret) -> bool:
        """Whether both hold the same bytes: for a store without versions, which has no other way to notice a change. Takes
        as long whether they differ early or late.
        """
        return hmac.compare_digest(self.__value, other.__value)

    def derive[T](self, name: Hashable, make: Callable[[bytes], T]) -> T:
        """What is computed from the value again and again, such as a key of a day or a parsed private key. It lives exactly
        as long as this secret, and only a few such things do.

        Args:
            name: what it is, with everything it depends on beside the value.
            make: computes it from the value's bytes; what it raises is passed on, and nothing is kept.
        """
        made = self.__made
        if made is None:
            made = self.__made = {}
        elif name in made:
            known: T = made[name]
            return known
        found = make(self.reveal_bytes())
        if len(made) >= MAX_DERIVED:
            made.pop(next(iter(tuple(made))), None)  # another thread may do the same
        made[name] = found
        return found

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("secrets are not compared; compare versions or keyed fingerprints")

    def __hash__(self) -> NoReturn:
        raise TypeError("secrets are not hashed; use versions or keyed fingerprints")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("secrets are not serialised")

    def __copy__(self) -> NoReturn:
        raise TypeError("secrets are not copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("secrets are not copied")

    def __bool__(self) -> bool:
        return bool(self.__value)
