"""`client_credentials:` (RFC 6749 section 4.4); `audience` is what several vendors ask for beside it."""

from __future__ import annotations

from addons.credentials import Credential
from addons.deriving.asking import Ask, Reply
from addons.deriving.made import Made
from addons.deriving.oauth import access_token, form_ask, scope_pair
from policies.derive import ClientCredentials


def ask(grant: ClientCredentials, credential: Credential, now_s: float) -> Ask:
    pairs = [("grant_type", "client_credentials"), *scope_pair(grant.scopes)]
    if grant.audience is not None:
        pairs.append(("audience", grant.audience))
    return form_ask(grant.endpoint, grant.client, pairs, credential, now_s)


def made(grant: ClientCredentials, reply: Reply, _now_s: float) -> Made:
    found = access_token(grant.endpoint, reply)
    return Made(found.values, found.life_s)  # section 4.4.3: a refresh token should not be there; it is not kept
