"""What comes of a call to Vault when it is no result: errors that keep the status and Vault's reasons, and nothing else."""

from __future__ import annotations

import re
from typing import Final

from vault.secret import Secret

_COUNTED: Final = re.compile(r"[0-9]+ errors? occurred:")
"""How Vault begins a list of reasons."""
_OPENING: Final = "will be unavailable for a brief period"
MAX_REASON_CHARACTERS: Final = 200


class VaultAnswer(Exception):
    """Vault answered with an error status. Holds its own short reasons, never the request."""

    def __init__(
        self,
        status: int,
        reasons: tuple[str, ...] = (),
        retry_after_s: float | None = None,
        location: str | None = None,
    ) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.reasons = reasons
        self.retry_after_s = retry_after_s
        self.location = location
        """Where a redirect leads. Followed to addresses of the settings alone."""

    @property
    def passing(self) -> bool:
        """Whether this node will serve in a moment: it has not yet what the active one wrote (412), or its KV version 2
        mount is still being opened after a start or an election, which Vault tells with 400 and a sentence.
        """
        return self.status == 412 or (
            self.status == 400 and any(_OPENING in reason.casefold() for reason in self.reasons)
        )

    @property
    def reason(self) -> str:
        """Vault's first reason in one short line, or the status."""
        return self.reason_without()

    def reason_without(self, *sent: Secret | None) -> str:
        """The same, should Vault quote what was sent to it, without that."""
        lines = (line.strip().removeprefix("* ") for reason in self.reasons for line in reason.splitlines())
        text = next((line for line in lines if line and not _COUNTED.fullmatch(line)), "")
        for secret in sent:
            if secret is not None and (value := secret.reveal()):
                text = text.replace(value, "…")
        # Vault quotes paths and policies here, no material; control characters would still break a log line.
        shown = "".join(char for char in text if char.isprintable())[:MAX_REASON_CHARACTERS]
        return shown or f"status {self.status}"


class DetectionRefused(VaultAnswer):
    """Vault did not tell the KV version of a mount (403)."""


class VaultUnreachable(Exception):
    """No usable answer: connection, TLS, deadline, or an answer that is no JSON. The message says which."""


class VaultBusy(VaultUnreachable):
    """The call never left: every thread is busy. Says nothing about Vault."""


class VaultResting(VaultUnreachable):
    """The call never left: no address answered lately, and the next probe is not due for `wait_s` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("it did not answer lately, and is asked again in a moment")
        self.wait_s = wait_s
