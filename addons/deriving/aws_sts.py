"""`aws_assume_role:` and `aws_web_identity:`: short-lived keys of a role, by the query API of AWS STS
(https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html). The first is signed with the keys of who takes
the role, by the signer that routes use; the second is proven by its token alone.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlencode

from addons.credentials import Credential
from addons.deriving.asking import Ask, Reply
from addons.deriving.aws_answer import texts_of
from addons.deriving.made import Made, judged, life_until, text, token_text
from addons.head import RequestHead
from addons.refusal import Code, Refusal
from addons.signing.aws import sign_aws
from addons.signing.aws_scope import Scope
from addons.signing.outgoing import Outgoing
from policies.derive import AWS_FIELDS, AwsAssumeRole, AwsWebIdentity
from policies.sign import AwsSigV4Signer
from vault.secret import Secret

_FORM: Final = (b"Content-Type", b"application/x-www-form-urlencoded; charset=utf-8")
_NAMES: Final = {
    "access_key_id": "AccessKeyId",
    "secret_access_key": "SecretAccessKey",
    "session_token": "SessionToken",
}
_CODE: Final = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")
_PASSING: Final = frozenset({"Throttling", "ThrottlingException", "RequestLimitExceeded", "IDPCommunicationError"})
"""Errors of status 400 that pass."""


def ask_role(grant: AwsAssumeRole, credential: Credential, now_s: float) -> Ask:
    pairs = _pairs("AssumeRole", grant, credential)
    if grant.external_id is not None:
        pairs.append(("ExternalId", text(grant.external_id, credential)))
    body = urlencode(pairs).encode("ascii")
    host = grant.endpoint.host.encode("ascii")
    signer = AwsSigV4Signer(
        grant.access_key_id, grant.secret_access_key, (grant.region,), ("sts",), grant.session_token
    )
    head = RequestHead("POST", b"/", (), http2=False)
    request = Outgoing("POST", "https", host, b"/", (_FORM,), body, head, http2=False)
    sign_aws(signer, Scope(grant.region, "sts"), "held", request, credential, now_s, chunk_bytes=0)
    return Ask(grant.endpoint, body, tuple(request.fields))


def ask_web_identity(grant: AwsWebIdentity, credential: Credential, _now_s: float) -> Ask:
    pairs = _pairs("AssumeRoleWithWebIdentity", grant, credential)
    pairs.append(("WebIdentityToken", text(grant.token, credential)))
    return Ask(grant.endpoint, urlencode(pairs).encode("ascii"), (_FORM,))


def _pairs(action: str, grant: AwsAssumeRole | AwsWebIdentity, credential: Credential) -> list[tuple[str, str]]:
    return [
        ("Action", action),
        ("Version", "2011-06-15"),
        ("RoleArn", text(grant.role_arn, credential)),
        ("RoleSessionName", grant.session_name),
        ("DurationSeconds", str(int(grant.duration_s))),
    ]


def made(grant: AwsAssumeRole | AwsWebIdentity, reply: Reply, now_s: float) -> Made:
    host = grant.endpoint.host
    if reply.status == 400 and (code := _CODE.search(reply.body)) and code[1].decode("ascii") in _PASSING:
        raise Refusal(Code.SECRET_UNAVAILABLE, f"The token endpoint {host} is busy.", retry_after_s=1.0)
    judged(reply, host)
    found = texts_of(reply.body, frozenset({*_NAMES.values(), "Expiration"}), host)
    values = {name: Secret(token_text(found.get(_NAMES[name]), host)) for name in sorted(AWS_FIELDS)}
    return Made(values, life_until(found.get("Expiration"), now_s, host))
