"""`refresh_token:` (RFC 6749 section 6). A new refresh token in the answer takes the place of the old one
(`rotating.py`), before the access token is used.
"""

from __future__ import annotations

from addons.credentials import Credential
from addons.deriving.asking import Ask, Reply
from addons.deriving.made import Made, text
from addons.deriving.oauth import access_token, form_ask, scope_pair
from policies.derive import RefreshToken


def ask(grant: RefreshToken, credential: Credential, now_s: float) -> Ask:
    pairs = [
        ("grant_type", "refresh_token"),
        ("refresh_token", text(grant.refresh_token, credential)),
        *scope_pair(grant.scopes),
    ]
    return form_ask(grant.endpoint, grant.client, pairs, credential, now_s)


def made(grant: RefreshToken, reply: Reply, _now_s: float) -> Made:
    return access_token(grant.endpoint, reply)
