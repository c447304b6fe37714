"""What a route wants signed, compiled: what must stand in the head at all, and the claim."""

from __future__ import annotations

from addons.head import RequestHead
from addons.signing.outgoing import Outgoing
from addons.verifying.claim import Claim, invalid, only
from addons.verifying.hmac_lines import claim_hmac
from addons.verifying.http_message import claim_message
from addons.verifying.sns import CertificateClaim, claim_sns
from addons.verifying.taken import SIGNATURE_FIELDS
from addons.verifying.webhooks import claim_webhook
from policies.verify import HmacVerifier, MessageVerifier, SnsVerifier, Verifier, WebhookVerifier


class Verifying:
    """Judges requests of one route.

    Args:
        verifier: of the route.
    """

    __slots__ = ("_once", "verifier")

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier
        match verifier:
            case HmacVerifier(form=form):
                named = (form.signature, form.timestamp, form.nonce)
                self._once = tuple(one.name for one in named if one is not None and one.place == "header")
            case WebhookVerifier(scheme=scheme):
                self._once = SIGNATURE_FIELDS[scheme][:1]
            case _:
                self._once = ()

    def judge_head(self, head: RequestHead) -> None:
        """Refuses a request without a signature before its body is held.

        Raises:
            Refusal: `signature_invalid`.
        """
        for name in self._once:
            only(head, name)
        if isinstance(self.verifier, MessageVerifier):
            for name in ("Signature-Input", "Signature"):
                if not head.values(name.lower().encode()):
                    raise invalid(f"The request has no {name} field.")

    def claim(self, request: Outgoing, now_s: float) -> Claim | CertificateClaim:
        """What the request says of its signature.

        Args:
            request: as it came, body included.
            now_s: wall-clock seconds.

        Raises:
            Refusal: `signature_invalid`.
        """
        match self.verifier:
            case HmacVerifier() as own:
                return claim_hmac(own, request, now_s)
            case MessageVerifier() as own:
                return claim_message(own, request, now_s)
            case WebhookVerifier() as own:
                return claim_webhook(own, request, now_s)
            case SnsVerifier() as own:
                return claim_sns(own, request, now_s)
