"""A user's own addon, as the stages drive it: its name, its hooks, and how long one of them may take.

Rules:
- The hooks of an addon are a closed list. Each hook that is missing here is missing for a reason, told to whoever
  defines it (`NOT_OFFERED`): a hook that would never be called is a check that is never made.
- An addon never sees a credential: it runs before the secret is opened, and what leaves is never on the flow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

FLOW_HOOKS: Final = ("requestheaders", "responseheaders", "response", "error")
LIFE_HOOKS: Final = ("running", "done")
HOOKS: Final = FLOW_HOOKS + LIFE_HOOKS

DEFAULT_TIMEOUT_S: Final = 5.0
MAX_TIMEOUT_S: Final = 25.0
"""Below the engine's own deadline for the whole pipeline, so that a late addon is named."""

_OPENED: Final = "what is before the policy is not an addon's to see; use requestheaders"
NOT_OFFERED: Final[Mapping[str, str]] = {
    "request": "bodies are streamed and the request has left by then; use requestheaders",
    "load": "options are passed to the constructor; write options: in the settings",
    "configure": "options are passed to the constructor; write options: in the settings",
    "http_connect": _OPENED,
    "http_connected": _OPENED,
    "http_connect_error": _OPENED,
    "client_connected": _OPENED,
    "websocket_start": "frames pass unread; the handshake is seen in requestheaders and responseheaders",
    "websocket_message": "frames pass unread; the handshake is seen in requestheaders and responseheaders",
    "websocket_end": "frames pass unread; the handshake is seen in requestheaders and responseheaders",
}
"""Why a hook of mitmproxy is none of ours, where there is more to say than that."""


@dataclass(frozen=True, slots=True)
class UserAddon:
    """One addon of the settings, made."""

    name: str
    """As the settings name it; records and logs do too."""
    hooks: Mapping[str, Callable[..., Any]]
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Seconds that one call of one hook may wait."""
