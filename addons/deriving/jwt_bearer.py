"""`jwt_bearer:`: an assertion signed here for an access token (RFC 7523 section 2.1)."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

from addons.credentials import Credential
from addons.deriving import jws
from addons.deriving.asking import Ask, Reply
from addons.deriving.made import Made, text
from addons.deriving.oauth import FORM, access_token, scope_pair, sign
from policies.derive import JwtBearer

GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"


def ask(grant: JwtBearer, credential: Credential, now_s: float) -> Ask:
    issuer = text(grant.issuer, credential)
    subject = text(grant.subject, credential) if grant.subject is not None else issuer
    claims = jws.assertion(issuer, subject, grant.audience or grant.endpoint.url, now_s)
    signed = sign(claims, grant.algorithm, grant.key, grant.key_id, credential)
    pairs = [("grant_type", GRANT), ("assertion", signed), *scope_pair(grant.scopes)]
    return Ask(grant.endpoint, urlencode(pairs).encode("ascii"), FORM)


def made(grant: JwtBearer, reply: Reply, _now_s: float) -> Made:
    found = access_token(grant.endpoint, reply)
    return Made(found.values, found.life_s)
