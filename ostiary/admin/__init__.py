"""The admin listener: the API behind tokens, and three probes that need none.

A request is judged by its head (`judge.py`) against one table of operations (`table.py`), from which the OpenAPI document
is made too; operations reach the proxy through `control.py` alone.
"""

from ostiary.admin.control import (
    AdminRefusal,
    Control,
    Readiness,
    Refreshed,
    Rejected,
    Reloaded,
    Routes,
    RouteSummary,
    SecretFailed,
    SecretStatus,
    Use,
)
from ostiary.admin.health import Health
from ostiary.admin.listeners import Listeners, start_listeners

__all__ = [
    "AdminRefusal",
    "Control",
    "Health",
    "Listeners",
    "Readiness",
    "Refreshed",
    "Rejected",
    "Reloaded",
    "RouteSummary",
    "Routes",
    "SecretFailed",
    "SecretStatus",
    "Use",
    "start_listeners",
]
