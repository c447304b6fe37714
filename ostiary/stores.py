"""Opens what a process keeps its facts in: the secret store and the state store."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from addons.clock import Clock
from addons.state import StateError, StateStore, StateUnavailable, open_state
from addons.telemetry import Metrics
from ostiary.settings.model import Settings
from vault.sealed import SealedFile, SealedFileError, SealedStore, read_key
from vault.store import SecretStore, StoreError

if TYPE_CHECKING:
    from vault.hashicorp.handed import Ask  # hvac is loaded only where Vault is used

_log = logging.getLogger("ostiary.serve")


class StoreFailed(Exception):
    """A store cannot be opened with these settings."""


def open_store(settings: Settings, environ: Mapping[str, str], metrics: Metrics, ask: Ask | None = None) -> SecretStore:
    """The secret store of the settings, not yet logged in; `ask` gives Vault's login where another process has it.

    Raises:
        StoreFailed: the embedded store does not open.
    """
    if settings.store == "vault" and settings.vault is not None:
        from vault.hashicorp.store import VaultStore

        return VaultStore(settings.vault, metrics, ask)
    if settings.secrets_file is None or settings.secrets_key is None:
        raise StoreFailed("the settings name no secret store")
    try:
        file = SealedFile(settings.secrets_file, read_key(settings.secrets_key, environ))
        file.check()
    except SealedFileError as error:
        raise StoreFailed(str(error)) from None
    return SealedStore(file)


async def open_state_of(settings: Settings, clock: Clock, metrics: Metrics) -> StateStore | None:
    """The state store of the settings. A server that is down does not keep the process from starting; a file that cannot
    be used does.

    Raises:
        StoreFailed: with what to do.
    """
    if settings.state is None:
        return None
    try:
        state = await open_state(settings.state, clock, metrics)
    except StateUnavailable as error:
        raise StoreFailed(f"state: {error.reason}") from None
    try:
        await state.probe()
    except StateError as error:
        _log.error("state: %s; it is asked until it works", error.reason)
    return state


async def log_in(store: SecretStore) -> None:
    """Logs in to Vault. A Vault that is down does not keep the process from starting: it is not ready until Vault is
    there.
    """
    start = getattr(store, "start", None)
    if start is None:
        return
    try:
        await start()
    except StoreError as error:
        _log.error("%s; requests are refused until it works", error.reason)
