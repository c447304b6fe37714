"""What a grant makes of an answer, and the parts that several grants share: texts of templates, statuses, JSON, lives."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn, final

from addons.credentials import Credential
from addons.deriving.asking import Reply
from addons.injection.render import plain_value
from addons.refusal import Code, Refusal
from policies.derive import TOKEN_FIELD
from policies.template import Template
from vault.secret import Secret

UNSAID_LIFE_S: Final = 300.0
"""Where an endpoint does not say how long its token lives (RFC 6749 section 5.1 only recommends it)."""
MAX_LIFE_S: Final = 24 * 3600.0
"""However long an endpoint says."""
MAX_TOKEN: Final = 64 * 1024
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
_PASSING: Final = frozenset({408, 425, 429})
_ERRORS: Final = frozenset({
    "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
    "access_denied", "invalid_target", "interaction_required",
})  # fmt: skip
"""Words of RFC 6749 section 5.2 and RFC 8693 section 2.2.2: these alone are repeated, whatever else is said."""


@final
class Made:
    """A token. Without a repr.

    Args:
        values: by the names that templates have for them.
        life_s: from when it was asked for.
        refresh: a refresh token that takes the place of the one that was used.
        refusal: there is no token, only the refresh token of an answer that is of no other use.
    """

    __slots__ = ("life_s", "refresh", "refusal", "values")

    def __init__(
        self,
        values: Mapping[str, Secret],
        life_s: float,
        refresh: Secret | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        self.values = values
        self.life_s = min(life_s, MAX_LIFE_S)
        self.refresh = refresh
        self.refusal = refusal

    def __repr__(self) -> str:
        return "Made(…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("tokens are not serialised")


def text(template: Template, credential: Credential) -> str:
    """A template's text: anything but control characters.

    Raises:
        Refusal: `secret_malformed` or `secret_missing`.
    """
    return plain_value(template, credential)


def token_text(value: object, host: str) -> str:
    """A value that can stand in a header.

    Raises:
        Refusal: `secret_malformed`.
    """
    if not isinstance(value, str) or len(value) > MAX_TOKEN or not _TOKEN.fullmatch(value):
        raise unreadable(host, "without a token")
    return value


def one_token(value: object, host: str, life_s: float) -> Made:
    """What most grants make."""
    return Made({TOKEN_FIELD: Secret(token_text(value, host))}, life_s)


def judged(reply: Reply, host: str) -> None:
    """Ends here what is no success.

    Raises:
        Refusal: `secret_unavailable` (5xx, 429 and the like), `secret_denied` (4xx), `secret_malformed` (a redirect).
    """
    status = reply.status
    if 200 <= status < 300:
        return
    if status >= 500 or status in _PASSING:
        raise Refusal(
            Code.SECRET_UNAVAILABLE,
            f"The token endpoint {host} answers {status}.",
            retry_after_s=reply.retry_after_s or 1.0,
        )
    if 300 <= status < 400:
        raise unreadable(host, f"with a redirect ({status}), which is not followed")
    word = _error(reply)
    said = f"{status} {word}" if word else str(status)
    raise Refusal(Code.SECRET_DENIED, f"The token endpoint {host} refuses: {said}.")


def parsed(raw: str | bytes, *, keep_once: bool = False) -> object:
    """JSON in which no name of an object stands twice: two readers could take two values (RFC 8259 section 4).

    Args:
        raw: the text.
        keep_once: such names are left out, and the others read, instead of refusing all of it.

    Raises:
        ValueError, RecursionError: it is none.
    """
    return json.loads(raw, object_pairs_hook=_kept_once if keep_once else _each_once)


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _kept_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    seen = Counter(name for name, _ in pairs)
    return {name: value for name, value in pairs if seen[name] == 1}


def _error(reply: Reply) -> str:
    try:
        answer = parsed(reply.body)
    except (ValueError, RecursionError):
        return ""
    word = answer.get("error") if isinstance(answer, dict) else None
    return word if isinstance(word, str) and word in _ERRORS else ""


def json_of(reply: Reply, host: str, *, keep_once: bool = False) -> dict[str, Any]:
    """The answer of a success. `keep_once` as in `parsed`.

    Raises:
        Refusal: as `judged`; `secret_malformed` where it is no JSON object, or one in which a name stands twice.
    """
    judged(reply, host)
    try:
        answer = parsed(reply.body, keep_once=keep_once)
    except (ValueError, RecursionError):
        raise unreadable(host, "what is no JSON, or JSON in which a name stands twice") from None
    if not isinstance(answer, dict):
        raise unreadable(host, "what is no JSON object")
    return answer


def life_of(answer: Mapping[str, Any], host: str) -> float:
    """`expires_in` (RFC 6749 section 5.1); some endpoints write the number as a text.

    Raises:
        Refusal: `secret_malformed`.
    """
    said = answer.get("expires_in")
    if said is None:
        return UNSAID_LIFE_S
    if isinstance(said, str) and said.isdecimal() and len(said) < 12:
        said = int(said)
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 < said < 1e12:
        raise unreadable(host, "with a life that is none")
    return float(said)


def life_until(instant: object, now_s: float, host: str) -> float:
    """The life of what ends at an RFC 3339 instant.

    Raises:
        Refusal: `secret_malformed`.
    """
    if not isinstance(instant, str) or not _INSTANT.fullmatch(instant):
        raise unreadable(host, "without an end of life")
    try:
        life_s = dt.datetime.fromisoformat(instant).timestamp() - now_s
    except (ValueError, OverflowError):
        raise unreadable(host, "with an end of life that is none") from None
    if life_s <= 0:
        raise unreadable(host, "with a token that has ended")
    return life_s


def unreadable(host: str, what: str) -> Refusal:
    return Refusal(Code.SECRET_MALFORMED, f"The token endpoint {host} answers {what}.")
