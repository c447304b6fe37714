"""`google_service_account:` (https://developers.google.com/identity/protocols/oauth2/service-account): an assertion by the
key of the account for an access token, or with `target_audience` for an ID token.

The key file names a token endpoint too. It is not believed: the policy says where an assertion goes.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any
from urllib.parse import urlencode

from addons.credentials import Credential
from addons.deriving import jws
from addons.deriving.asking import Ask, Reply
from addons.deriving.jwt_bearer import GRANT
from addons.deriving.made import Made, json_of, life_of, one_token, parsed, text, token_text, unreadable
from addons.deriving.oauth import FORM
from addons.refusal import Refusal
from addons.signing.keys import malformed, the_secret
from policies.derive import GoogleServiceAccount
from policies.template import FieldRef
from vault.secret import Secret


def ask(grant: GoogleServiceAccount, credential: Credential, now_s: float) -> Ask:
    secret, reference = the_secret(grant.key_json, credential)
    email, key_id, key = secret.derive("google service account", lambda raw: _read(raw, reference))
    claims: dict[str, Any] = jws.assertion(email, email, grant.endpoint.url, now_s)
    # A subject says for whom it acts: an account that acts for itself sends none.
    del claims["sub"]
    if grant.subject is not None:
        claims["sub"] = text(grant.subject, credential)
    if grant.audience is not None:
        claims["target_audience"] = grant.audience
    else:
        claims["scope"] = " ".join(grant.scopes)
    signed = jws.signed(claims, "RS256", key, f"in {{{reference.entry}}}", key_id=key_id)
    return Ask(grant.endpoint, urlencode([("grant_type", GRANT), ("assertion", signed)]).encode("ascii"), FORM)


def _read(raw: bytes, reference: FieldRef) -> tuple[str, str | None, Secret]:
    """Address, key id and private key of the account."""
    try:
        found = parsed(raw)
    except (ValueError, RecursionError):
        raise malformed(
            reference, "is no key file of a service account: it is no JSON, or a name stands in it twice"
        ) from None
    found = found if isinstance(found, dict) else {}
    email, key, key_id = found.get("client_email"), found.get("private_key"), found.get("private_key_id")
    if found.get("type") != "service_account" or not isinstance(email, str) or not isinstance(key, str):
        raise malformed(reference, "is no key file of a service account: type, client_email and private_key are")
    return email, key_id if isinstance(key_id, str) else None, Secret(key)


def made(grant: GoogleServiceAccount, reply: Reply, now_s: float) -> Made:
    host = grant.endpoint.host
    answer = json_of(reply, host)
    if grant.audience is None:
        return one_token(answer.get("access_token"), host, life_of(answer, host))
    token = token_text(answer.get("id_token"), host)
    return one_token(token, host, _end(token, now_s, host) - now_s)


def _end(token: str, now_s: float, host: str) -> float:
    """The `exp` of an ID token. It is read, not verified: it came from the endpoint itself, over TLS.

    Raises:
        Refusal: `secret_malformed`; it has none, has ended, or is no time.
    """
    refusal: Refusal = unreadable(host, "with an ID token that has no end")
    parts = token.split(".")
    try:
        claims = parsed(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        end = claims["exp"] if isinstance(claims, dict) else None
    except (IndexError, binascii.Error, ValueError, KeyError, TypeError, RecursionError):
        raise refusal from None
    # JSON as Python reads it has NaN and Infinity, and integers that are no float.
    if isinstance(end, bool) or not isinstance(end, int | float) or not now_s < end < 1e12:
        raise refusal
    return float(end)
