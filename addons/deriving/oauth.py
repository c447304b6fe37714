"""What requests to OAuth 2.0 token endpoints share: the form, and how the client proves itself (RFC 6749 section 2.3,
RFC 7523 section 2.2, RFC 8705 section 2).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote, urlencode

from addons import client_certificate
from addons.credentials import Credential
from addons.deriving import jws
from addons.deriving.asking import Ask, Reply
from addons.deriving.made import Made, json_of, life_of, one_token, text, token_text, unreadable
from addons.signing.keys import the_secret
from policies.derive import CLIENT_CERT, Client, Endpoint, JwtAlgorithm
from policies.template import Template
from vault.secret import Secret

type Pairs = Sequence[tuple[str, str]]

JWT_BEARER: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
FORM: Final = ((b"Content-Type", b"application/x-www-form-urlencoded"), (b"Accept", b"application/json"))


def form_ask(endpoint: Endpoint, client: Client, pairs: Pairs, credential: Credential, now_s: float) -> Ask:
    """A POST of these pairs, with the client's proof.

    Raises:
        Refusal: `secret_malformed` or `secret_missing`.
    """
    fields, proof = _proof(endpoint, client, credential, now_s)
    body = urlencode([*pairs, *proof]).encode("ascii")
    shown = client.certificate
    if shown is None:
        return Ask(endpoint, body, (*FORM, *fields))
    name = f"for the token endpoint {endpoint.host}"
    certificate = client_certificate.opened(shown, CLIENT_CERT, credential, name, now_s)
    return Ask(endpoint, body, (*FORM, *fields), certificate=certificate)


def _proof(
    endpoint: Endpoint, client: Client, credential: Credential, now_s: float
) -> tuple[tuple[tuple[bytes, bytes], ...], Pairs]:
    """Header fields and pairs of the form."""
    if client.client_id is None:
        return (), ()
    client_id = text(client.client_id, credential)
    match client.auth:
        case "basic" if client.client_secret is not None:
            # Encoded as a form first, so that a colon is none (RFC 6749 section 2.3.1 and appendix B). A space as %20: servers that
            # decode it take that, and some of them do not take the plus.
            pair = ":".join(quote(one, safe="") for one in (client_id, text(client.client_secret, credential)))
            return ((b"Authorization", b"Basic " + base64.b64encode(pair.encode("ascii"))),), ()
        case "post" if client.client_secret is not None:
            return (), (("client_id", client_id), ("client_secret", text(client.client_secret, credential)))
        case "private_key_jwt" if client.assertion is not None:
            made = client.assertion
            claims = jws.assertion(client_id, client_id, made.audience or endpoint.url, now_s)
            signed = sign(claims, made.algorithm, made.key, made.key_id, credential)
            return (), (("client_id", client_id), ("client_assertion_type", JWT_BEARER), ("client_assertion", signed))
        case _:
            # Proven by its certificate, in the form by its name alone (RFC 8705 section 2); or by nothing.
            return (), (("client_id", client_id),)


def sign(
    claims: dict[str, object],
    algorithm: JwtAlgorithm,
    key: Template,
    key_id: Template | None,
    credential: Credential,
) -> str:
    """A JWT by a key that a template names.

    Raises:
        Refusal: `secret_malformed` or `secret_missing`.
    """
    secret, reference = the_secret(key, credential)
    what = f"{{{reference.entry}.{reference.field}}}" if reference.field else f"{{{reference.entry}}}"
    named = text(key_id, credential) if key_id is not None else None
    return jws.signed(claims, algorithm, secret, what, key_id=named)


def scope_pair(scopes: Sequence[str]) -> Pairs:
    return [("scope", " ".join(scopes))] if scopes else []


def access_token(endpoint: Endpoint, reply: Reply) -> Made:
    """The successful answer of RFC 6749 section 5.1. Only bearer tokens can be sent by a template.

    Raises:
        Refusal: as `judged`, or `secret_malformed`.
    """
    answer = json_of(reply, endpoint.host)
    kind = answer.get("token_type", "Bearer")
    if not isinstance(kind, str) or kind.lower() not in {"bearer", "n_a"}:
        raise unreadable(endpoint.host, "with a token that is no bearer token")
    made = one_token(answer.get("access_token"), endpoint.host, life_of(answer, endpoint.host))
    if answer.get("refresh_token") is not None:
        return Made(made.values, made.life_s, Secret(token_text(answer["refresh_token"], endpoint.host)))
    return made
