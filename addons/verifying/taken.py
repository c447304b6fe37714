"""What of the caller's request ends here once its signature has been judged: the signature itself, and what it is made of.

Ids and times of webhooks go on, for receivers tell doubles by them.
"""

from __future__ import annotations

from typing import Final

from addons.signing.taken import taken_headers, taken_parameters
from policies.verify import HmacVerifier, MessageVerifier, Scheme, Verifier, WebhookVerifier

SIGNATURE_FIELDS: Final[dict[Scheme, tuple[str, ...]]] = {
    "stripe": ("Stripe-Signature",),
    "github": ("X-Hub-Signature-256", "X-Hub-Signature"),
    "slack": ("X-Slack-Signature",),
    "twilio": ("X-Twilio-Signature",),
    "standard_webhooks": ("webhook-signature",),
}
"""The first of each must stand there once."""


def ended_headers(verifier: Verifier | None, *, changes_body: bool) -> frozenset[bytes]:
    """Lower-case names of fields that end here.

    Args:
        verifier: of the route.
        changes_body: whether the body leaves as another: then a digest of it would be wrong.
    """
    match verifier:
        case HmacVerifier(form=form):
            return taken_headers([form])
        case MessageVerifier():
            return frozenset({b"signature", b"signature-input"} | ({b"content-digest"} if changes_body else set()))
        case WebhookVerifier(scheme=scheme):
            return frozenset(name.lower().encode() for name in SIGNATURE_FIELDS[scheme])
        case _:
            return frozenset()


def ended_parameters(verifier: Verifier | None) -> frozenset[bytes]:
    """Names of query parameters that end here."""
    return taken_parameters([verifier.form]) if isinstance(verifier, HmacVerifier) else frozenset()
