"""`azure:`: client credentials of Microsoft Entra, by a secret or by an assertion signed with a certificate's key
(https://learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-client-creds-grant-flow,
https://learn.microsoft.com/en-us/entra/identity-platform/certificate-credentials).
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlencode

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from addons.credentials import Credential
from addons.deriving import jws
from addons.deriving.asking import Ask, Reply
from addons.deriving.made import Made, text
from addons.deriving.oauth import FORM, JWT_BEARER, access_token
from addons.refusal import Code, Refusal
from addons.signing.keys import malformed, the_secret
from policies.derive import Azure, Endpoint

_TENANT: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,126}[A-Za-z0-9])?")


def ask(grant: Azure, credential: Credential, now_s: float) -> Ask:
    tenant = text(grant.tenant, credential)
    if not _TENANT.fullmatch(tenant):
        # It becomes a part of the path.
        raise Refusal(Code.SECRET_MALFORMED, "The tenant is neither an id nor a domain.")
    endpoint = Endpoint(grant.endpoint.host, grant.endpoint.port, f"/{tenant}/oauth2/v2.0/token")
    client = text(grant.client_id, credential)
    pairs = [("grant_type", "client_credentials"), ("client_id", client), ("scope", grant.scope)]
    if grant.client_secret is not None:
        pairs.append(("client_secret", text(grant.client_secret, credential)))
    else:
        pairs += [
            ("client_assertion_type", JWT_BEARER),
            ("client_assertion", _assertion(grant, client, endpoint, credential, now_s)),
        ]
    return Ask(endpoint, urlencode(pairs).encode("ascii"), FORM)


def _assertion(grant: Azure, client: str, endpoint: Endpoint, credential: Credential, now_s: float) -> str:
    if grant.certificate is None:
        raise Refusal(Code.INTERNAL, "An Azure credential has neither secret nor certificate.")
    secret, reference = the_secret(grant.certificate, credential)

    def thumbprint(raw: bytes) -> str:
        try:
            found = x509.load_pem_x509_certificate(raw)
        except ValueError:
            raise malformed(reference, "holds no certificate in PEM") from None
        return jws.encoded(found.fingerprint(hashes.SHA256())).decode("ascii")

    claims = jws.assertion(client, client, endpoint.url, now_s)
    claims["nbf"] = claims["iat"]
    named = {"x5t#S256": secret.derive("x5t#S256", thumbprint)}
    return jws.signed(claims, "PS256", secret, f"in {{{reference.entry}}}", extra=named)


def made(grant: Azure, reply: Reply, _now_s: float) -> Made:
    found = access_token(grant.endpoint, reply)
    return Made(found.values, found.life_s)
