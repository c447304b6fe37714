"""JSON pointers (RFC 6901), as `inject` names places in a body."""

from __future__ import annotations

import re
from typing import Final

type Pointer = tuple[str, ...]
"""Names of members from the outermost object inwards."""

_TOKEN: Final = re.compile(r"(?:[^~/]|~[01])*")


def parse_pointer(text: str) -> Pointer:
    """Parses a pointer to a member of an object.

    Raises:
        ValueError: says what is wrong with it.
    """
    if not text.startswith("/"):
        raise ValueError("a JSON pointer starts with /, such as /auth/key")
    tokens = text[1:].split("/")
    if not all(_TOKEN.fullmatch(token) for token in tokens):
        raise ValueError("in a JSON pointer ~ stands in ~0 and ~1 alone")
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in tokens)


def pointer_text(pointer: Pointer) -> str:
    """A pointer as it is written."""
    return "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in pointer)
