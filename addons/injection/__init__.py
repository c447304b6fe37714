"""Puts a credential into a request head: where credentials stand (`places`), how values become text (`render`), and the
one build (`build`).

Everything here is a function of values. Heads are built aside and handed to the engine in one piece, so a failure
half-way leaves nothing behind.
"""

from addons.injection.body import Content, reads_body
from addons.injection.build import build_forward, build_with_credential
from addons.injection.places import Plan, applicable, brought, plan_for, references, reject_caller_credentials

__all__ = [
    "Content",
    "Plan",
    "applicable",
    "brought",
    "build_forward",
    "build_with_credential",
    "plan_for",
    "reads_body",
    "references",
    "reject_caller_credentials",
]
