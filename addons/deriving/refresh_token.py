"""`refresh_token:` (RFC 6749 section 6). A new refresh token in the answer takes the place of the old one
(`rotating.py`), before the access token is used.
"""

from __future__ import annotations

from addons.credentials import Credential
from addons.deriving.asking import Ask, Reply
from addons.deriving.made import Made, json_of, text, token_text
from addons.deriving.oauth import access_token, form_ask, scope_pair
from addons.refusal import Refusal
from policies.derive import RefreshToken
from vault.secret import Secret


def ask(grant: RefreshToken, credential: Credential, now_s: float) -> Ask:
    pairs = [
        ("grant_type", "refresh_token"),
        ("refresh_token", text(grant.refresh_token, credential)),
        *scope_pair(grant.scopes),
    ]
    return form_ask(grant.endpoint, grant.client, pairs, credential, now_s)


def made(grant: RefreshToken, reply: Reply, _now_s: float) -> Made:
    host = grant.endpoint.host
    try:
        return access_token(grant.endpoint, reply)
    except Refusal as refusal:
        # The endpoint has spent the old one: its successor is kept, whatever is wrong with the rest of the answer.
        if not 200 <= reply.status < 300:
            raise
        successor = json_of(reply, host, keep_once=True).get("refresh_token")
        if successor is None:
            raise
        return Made({}, 0.0, Secret(token_text(successor, host)), refusal)
