"""The type that holds a secret, and the rules that keep it from being printed.

`Secret` owns one value. It has no `repr`, `str`, format, pickle, copy, hash or equality that would show or compare the
value; `reveal()` is the one way out, and a search for `reveal(` lists every place where a value leaves. Nothing else in
Ostiary may carry a secret value as plain `str` or `bytes` across a function boundary.
"""

from __future__ import annotations

from typing import Final, NoReturn, final


@final
class Secret:
    """One secret value, held as text or bytes, shown to nobody.

    Args:
        value: the material as the store returned it. Text that is not valid UTF-8 must be handed over as bytes.
    """

    __slots__ = ("__value",)

    def __init__(self, value: str | bytes) -> None:
        self.__value: Final = value

    def reveal(self) -> str:
        """The value as text.

        Raises:
            UnicodeDecodeError: the value is bytes that are no UTF-8; the error is re-raised without the offending
                bytes.
        """
        value = self.__value
        if isinstance(value, str):
            return value
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            # The original error carries the whole value in its `object` attribute.
            raise UnicodeDecodeError("utf-8", b"", 0, 0, "the secret is not text") from None

    def reveal_bytes(self) -> bytes:
        """The value as bytes; text is encoded as UTF-8."""
        value = self.__value
        return value.encode("utf-8") if isinstance(value, str) else value

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
