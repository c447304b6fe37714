"""State that must survive or be shared: limit counters, used nonces, kills. One interface, a file a store."""

from addons.state.open import StateConfig, open_state
from addons.state.store import (
    Added,
    Item,
    Listing,
    StateConflict,
    StateError,
    StateFull,
    StateMisuse,
    StateObserver,
    StateStore,
    StateUnavailable,
    Taken,
)

__all__ = [
    "Added",
    "Item",
    "Listing",
    "StateConfig",
    "StateConflict",
    "StateError",
    "StateFull",
    "StateMisuse",
    "StateObserver",
    "StateStore",
    "StateUnavailable",
    "Taken",
    "open_state",
]
