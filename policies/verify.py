"""What `verify:` means: the frozen model of what must be signed on the way in.

`load_verify.py` makes these from YAML, `addons/verifying` judges by them. None holds a secret, only references.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from policies.sign import (
    REQUEST_PARTS,
    Component,
    HmacSigner,
    KeyEncoding,
    MessageAlgorithm,
    TransitUse,
    transit_use,
)
from policies.template import FieldRef, Template

VERIFIED: Final = "verified"
"""Stands in `allow:` for whoever signed the request: the workload of a webhook's sender, which has no other proof."""
MAX_SKEW_S: Final = 300.0
"""How far a timestamp may be from our clock unless the policy says otherwise."""
SNS_MAX_SKEW_S: Final = 65 * 60.0
"""SNS dates a message when it is published and sends it again for up to an hour."""

type Scheme = Literal["stripe", "github", "slack", "twilio", "standard_webhooks"]
SCHEMES: Final[tuple[Scheme, ...]] = ("stripe", "github", "slack", "twilio", "standard_webhooks")


@dataclass(frozen=True, slots=True)
class HmacVerifier:
    """`hmac:`. `form` is the signer whose signatures are taken; its key is the first of `keys`, or one that stays in Vault:
    then there are no others.
    """

    keys: tuple[Template, ...]
    form: HmacSigner
    max_skew_s: float = MAX_SKEW_S

    @property
    def needs_state(self) -> bool:
        return self.form.nonce is not None


@dataclass(frozen=True, slots=True)
class MessageVerifier:
    """`http_message:` (RFC 9421)."""

    keys: tuple[tuple[str, Template], ...]
    """By key id."""
    algorithm: MessageAlgorithm
    components: tuple[Component, ...]
    """What a signature must cover; it may cover more."""
    label: str | None = None
    """None: the one signature that there is."""
    key_encoding: KeyEncoding = "utf8"
    nonce: bool = True
    """Whether it must have a nonce. One that is there is used up either way."""
    tag: str | None = None
    max_skew_s: float = MAX_SKEW_S

    needs_state = True


@dataclass(frozen=True, slots=True)
class WebhookVerifier:
    """A vendor's webhooks, signed with a key that both sides have."""

    scheme: Scheme
    keys: tuple[Template, ...]
    max_skew_s: float = MAX_SKEW_S
    """Nothing to GitHub and Twilio, which send no time."""
    origin: str | None = None
    """The origin that Twilio was given, where it is not the one that reaches the listener."""

    needs_state = False


@dataclass(frozen=True, slots=True)
class SnsVerifier:
    """Amazon SNS: signed with a key of AWS, so it is the topics that tell ours from anybody's."""

    topics: tuple[str, ...]
    max_skew_s: float = SNS_MAX_SKEW_S

    needs_state = False


type Verifier = HmacVerifier | MessageVerifier | WebhookVerifier | SnsVerifier


def keys_of(verifier: Verifier) -> tuple[Template, ...]:
    """Every key of a verifier."""
    match verifier:
        case HmacVerifier(keys=keys) | WebhookVerifier(keys=keys):
            return keys
        case MessageVerifier(keys=named):
            return tuple(key for _, key in named)
        case SnsVerifier():
            return ()


def verifying_use(verifier: Verifier | None) -> TransitUse | None:
    """What a verifier asks of a key that stays in Vault, if it has one."""
    return transit_use(verifier.form) if isinstance(verifier, HmacVerifier) else None


def references_of_verifier(verifier: Verifier | None) -> tuple[FieldRef, ...]:
    """Every secret field that it will ask for, each once."""
    if verifier is None:
        return ()
    found = [reference for key in keys_of(verifier) for reference in key.references]
    if isinstance(verifier, HmacVerifier) and verifier.form.template is not None:
        found += [one for one in verifier.form.template.references if one.entry not in REQUEST_PARTS]
    return tuple(dict.fromkeys(found))
