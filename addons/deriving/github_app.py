"""`github_app:`: a JWT by the key of the app for an installation token
(https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-an-installation-access-token-for-a-github-app).
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from addons.credentials import Credential
from addons.deriving.asking import Ask, Reply
from addons.deriving.jws import SKEW_S
from addons.deriving.made import Made, json_of, life_until, one_token, text
from addons.deriving.oauth import sign
from addons.refusal import Code, Refusal
from policies.derive import GithubApp

JWT_S: Final = 540.0
"""GitHub takes at most ten minutes, from a clock of its own."""
_INSTALLATION: Final = re.compile(r"[0-9]{1,20}")


def ask(grant: GithubApp, credential: Credential, now_s: float) -> Ask:
    installation = text(grant.installation_id, credential)
    if not _INSTALLATION.fullmatch(installation):
        # It becomes a part of the path.
        raise Refusal(Code.SECRET_MALFORMED, "The installation id of the GitHub App is no number.")
    issued = int(now_s - SKEW_S)
    claims = {"iat": issued, "exp": issued + int(JWT_S), "iss": text(grant.app_id, credential)}
    signed = sign(claims, "RS256", grant.private_key, None, credential)
    wanted: dict[str, Any] = {}
    if grant.repositories:
        wanted["repositories"] = list(grant.repositories)
    if grant.permissions:
        wanted["permissions"] = dict(grant.permissions)
    fields = (
        (b"Authorization", b"Bearer " + signed.encode("ascii")),
        (b"Accept", b"application/vnd.github+json"),
        (b"X-GitHub-Api-Version", b"2022-11-28"),
        (b"Content-Type", b"application/json"),
    )
    target = f"{grant.endpoint.target}/app/installations/{installation}/access_tokens"
    return Ask(grant.endpoint, json.dumps(wanted).encode(), fields, target)


def made(grant: GithubApp, reply: Reply, now_s: float) -> Made:
    host = grant.endpoint.host
    answer = json_of(reply, host)
    return one_token(answer.get("token"), host, life_until(answer.get("expires_at"), now_s, host))
