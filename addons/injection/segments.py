"""A credential as part of the path: `/bot123:ABC/sendMessage`.

The path is read in the one way that `policies.paths` knows; where there are two, nothing is put and the request is refused.
What `**` matched stays byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from addons.refusal import Code, Refusal
from policies.model import PathInjector
from policies.paths import read_path
from policies.template import FieldRef, Template

_SAFE: Final = "!$&'()*+,=:@"
"""pchar of RFC 3986 section 3.3 without the semicolon, behind which some servers see parameters."""


def path_with(injector: PathInjector, path: bytes, text: Callable[[FieldRef], str]) -> bytes:
    """The path that leaves.

    Args:
        injector: of the route.
        path: as the caller sent it, without the query.
        text: gives the value behind a reference.

    Raises:
        Refusal: `path_denied`, the path does not fit; `secret_malformed`, the value would be a dot segment; or what
            `text` raises.
    """
    kept = _kept(injector, path)
    segments = [
        *(_segment(part, text) for part in injector.head),
        *kept,
        *(_segment(part, text) for part in injector.tail),
    ]
    return b"/" + b"/".join(segments)


def judge_path(injector: PathInjector, path: bytes) -> None:
    """Judges a path before any secret is read.

    Raises:
        Refusal: `path_denied`; it does not fit.
    """
    _kept(injector, path)


def replaced(injector: PathInjector, path: bytes) -> tuple[bytes, ...]:
    """What the caller sent where the pattern has a `*`; nothing where the path does not fit."""
    segments = path[1:].split(b"/")
    patterns = injector.pattern.segments
    if injector.deep:
        cut = patterns.index("**")
        behind = len(patterns) - cut - 1
        pairs = [*zip(patterns[:cut], segments, strict=False)]
        pairs += zip(patterns[cut + 1 :], segments[len(segments) - behind :], strict=False)
    else:
        pairs = [*zip(patterns, segments, strict=False)]
    found: list[bytes] = []
    for pattern, segment in pairs:
        if "*" in pattern:
            match = re.fullmatch("(.*)".join(map(re.escape, pattern.split("*"))), segment.decode("latin-1"))
            found += [one.encode("latin-1") for one in match.groups()] if match else []
    return tuple(found)


def _kept(injector: PathInjector, path: bytes) -> list[bytes]:
    pattern = injector.pattern
    canonical = read_path(path.decode("ascii", "replace"), encoded_slash=pattern.encoded_slash)
    if canonical is None or not pattern.matches(canonical):
        raise Refusal(
            Code.PATH_DENIED, f"This route puts its credential into paths like {pattern.text}, and this is none."
        )
    if not injector.deep:
        return []
    segments = path[1:].split(b"/")
    cut = pattern.segments.index("**")
    return segments[cut : len(segments) - (len(pattern.segments) - cut - 1)]


def _segment(template: Template, text: Callable[[FieldRef], str]) -> bytes:
    made = "".join([part if isinstance(part, str) else quote(text(part), safe=_SAFE) for part in template.parts])
    if made in {"", ".", ".."}:
        raise Refusal(
            Code.SECRET_MALFORMED, "The secret does not fit into a path: it would be an empty or dot segment."
        )
    return made.encode("ascii")
