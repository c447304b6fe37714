"""Files that hold what opens Vault: one line of a private file, and whether it changed since it was read."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vault.secret import Secret
from vault.store import SecretUnavailable

MAX_TOKEN_BYTES: Final = 16 * 1024


class LineFile:
    """A file with one line, read again by whoever finds it changed.

    Args:
        path: of the file.
        what: its name in messages, as the settings call it.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.what = what
        self._seen: tuple[int, int, int] | None = None

    def changed(self) -> bool:
        """Whether the file is another one than was read last. A file that is gone, or was never read, has no news."""
        stamp = self._stamp()
        return self._seen is not None and stamp is not None and stamp != self._seen

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> Secret:
        """The line, without its end.

        Raises:
            SecretUnavailable: it cannot be read, or holds anything else than one line of visible ASCII.
        """
        # Before the content: a file that is replaced between the two is read once too often, not once too seldom.
        self._seen = self._stamp()
        try:
            with self.path.open("rb") as file:
                raw = file.read(MAX_TOKEN_BYTES + 2)
        except OSError as error:
            raise SecretUnavailable("", f"the {self.what} {self.path} cannot be read: {error.strerror}") from None
        text = raw.strip()
        if text.startswith(b"{"):
            raise SecretUnavailable(
                "",
                f"the {self.what} {self.path} holds JSON: write the bare token there (an Agent's sink without wrap_ttl)",
            )
        if not text or len(text) > MAX_TOKEN_BYTES or not all(0x20 < byte < 0x7F for byte in text):
            raise SecretUnavailable("", f"the {self.what} {self.path} holds no one line of visible ASCII")
        return Secret(text)
