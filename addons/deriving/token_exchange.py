"""`token_exchange:` (RFC 8693): one token for another, in the name of its subject, or of an actor for it."""

from __future__ import annotations

from typing import Final

from addons.credentials import Credential
from addons.deriving.asking import Ask, Reply
from addons.deriving.made import Made, text
from addons.deriving.oauth import access_token, form_ask, scope_pair
from policies.derive import TokenExchange

GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"


def ask(grant: TokenExchange, credential: Credential, now_s: float) -> Ask:
    pairs = [
        ("grant_type", GRANT),
        ("subject_token", text(grant.subject_token, credential)),
        ("subject_token_type", grant.subject_token_type),
    ]
    if grant.actor_token is not None and grant.actor_token_type is not None:
        pairs += [("actor_token", text(grant.actor_token, credential)), ("actor_token_type", grant.actor_token_type)]
    said = {
        "requested_token_type": grant.requested_token_type,
        "audience": grant.audience,
        "resource": grant.resource,
    }
    pairs += [(name, value) for name, value in said.items() if value is not None]
    return form_ask(grant.endpoint, grant.client, [*pairs, *scope_pair(grant.scopes)], credential, now_s)


def made(grant: TokenExchange, reply: Reply, _now_s: float) -> Made:
    found = access_token(grant.endpoint, reply)
    return Made(found.values, found.life_s)
