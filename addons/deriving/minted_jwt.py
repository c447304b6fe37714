"""`jwt:` (RFC 7519): signed here, asked of nobody."""

from __future__ import annotations

import secrets
from typing import Any

from addons.credentials import Credential
from addons.deriving.made import Made, text
from addons.deriving.oauth import sign
from policies.derive import TOKEN_FIELD, MintedJwt
from vault.secret import Secret


def mint(grant: MintedJwt, credential: Credential, now_s: float) -> Made:
    issued = int(now_s)
    claims: dict[str, Any] = {}
    if grant.issuer is not None:
        claims["iss"] = text(grant.issuer, credential)
    if grant.subject is not None:
        claims["sub"] = text(grant.subject, credential)
    if grant.audience:
        claims["aud"] = grant.audience[0] if len(grant.audience) == 1 else list(grant.audience)
    claims |= {"iat": issued, "exp": issued + int(grant.ttl_s), "jti": secrets.token_urlsafe(16)}
    for name, value in grant.claims:
        claims[name] = list(value) if isinstance(value, tuple) else text(value, credential)
    token = sign(claims, grant.algorithm, grant.key, grant.key_id, credential)
    return Made({TOKEN_FIELD: Secret(token)}, grant.ttl_s)
