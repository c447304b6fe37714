"""Checks of the shared state: its file opens, or its server answers, takes the login and forgets nothing."""

from __future__ import annotations

import os

from addons.clock import SystemClock
from addons.state import StateConfig, StateError, open_state
from addons.state.store import SilentState
from ostiary.doctor.finding import Finding, Setup

_ID = "state.reachable"


async def reachable(setup: Setup) -> list[Finding]:
    """The store can serve now. A file that is not there yet is left to `run` to make, whose user shall own it."""
    settings, _ = setup.loaded
    config = settings.state
    if config is None:
        return [Finding(_ID, "skip", "the settings name no state")]
    if config.kind == "memory":
        return [Finding(_ID, "ok", "state lives in the memory of one process, and ends with it")]
    if config.path is not None and not config.path.exists():
        folder = config.path.parent
        if os.access(folder, os.W_OK | os.X_OK):
            return [Finding(_ID, "ok", f"{config.path} is made at the first start")]
        return [Finding(_ID, "fail", f"{config.path} cannot be made", f"make {folder}, and let this user write there")]
    try:
        store = await open_state(config, SystemClock(), SilentState())
        try:
            await store.probe()
        finally:
            await store.close()
    except StateError as error:
        return [Finding(_ID, "fail", error.reason, _mend(config, error))]
    return [Finding(_ID, "ok", f"{config} can be read and written")]


def _mend(config: StateConfig, error: StateError) -> str:
    if config.kind == "sqlite":
        return f"is {config.path} whole, on a local disk, mode 0600, and owned by the user of ostiary run?"
    if "login" in error.reason:
        return "look at state.username and state.password, and at what the server lets that user do"
    if "noeviction" in error.reason:
        return f"set maxmemory-policy noeviction at {config}, or use a server of its own"
    return f"is the server running at {config}, let through, and does state.ca_file hold its CA?"
