"""Takes a new refresh token back to where the old one was read, before its access token is used.

Rules:
- By check-and-set over the version that was read; what else the version holds stays. If another version is there by now,
  it is read once more: where it still holds the token that was used, something else of it was changed, and the new token is
  written over that; where it holds another, others have replaced it, and theirs counts.
- What cannot be written is kept in this process and written before anything else is asked: until then no access token of
  it is used. A process that ends before has lost it; who must not lose it watches `secret_unavailable`.
"""

from __future__ import annotations

import logging
from typing import Final

from addons.deriving.entry import Entry, Pending
from vault.secret import Secret
from vault.store import SealedSecret, SecretRef, SecretSource, SecretUnavailable, SecretWriter, VersionConflict

_log = logging.getLogger("ostiary.deriving")

_TRIES: Final = 2


class Rotation:
    """Writes refresh tokens back.

    Args:
        writer: the store.
        secrets: the same, behind its cache.
    """

    def __init__(self, writer: SecretWriter, secrets: SecretSource) -> None:
        self._writer = writer
        self._secrets = secrets

    async def settle(self, entry: Entry, current: SealedSecret) -> bool:
        """Writes what an earlier flight could not; whether anything was written, so that the secret is to be read again.

        Raises:
            StoreError: it still cannot be written.
        """
        pending = entry.pending
        if pending is None:
            return False
        if not current.agrees(pending.used, (pending.field,)):
            entry.pending = None  # it is there after all, or others have replaced it
            return False
        return await self.replace(entry, pending.ref, pending.field, current, pending.made)

    async def replace(self, entry: Entry, ref: SecretRef, field: str, used: SealedSecret, made: Secret) -> bool:
        """Writes a new token in the place of the one that was used; False where others have put theirs there.

        Raises:
            StoreError: it could not be written. It is kept, and `settle` tries again.
        """
        wanted = used.derived({field: made})
        if wanted.agrees(used, (field,)):
            return True
        entry.pending = Pending(ref, field, used, made)
        over = used.version
        for _ in range(_TRIES):
            try:
                await self._writer.write(ref, {field: made}, over=over)
            except VersionConflict:
                now = await self._secrets.read(ref, ttl_s=0.0, max_stale_s=0.0, bypass=True)
                if not now.agrees(used, (field,)):
                    entry.pending = None
                    # Perhaps it is ours: a write that was thought to have failed.
                    return wanted.agrees(now, (field,))
                over = now.version
            else:
                entry.pending = None
                _log.info("a new refresh token is in %s", ref.name)
                return True
        raise SecretUnavailable(ref.name, "is written by others all the time")
