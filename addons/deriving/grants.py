"""The table of grants: what each asks, and what it makes of an answer."""

from __future__ import annotations

from addons.credentials import Credential
from addons.deriving import (
    aws_sts,
    azure,
    client_credentials,
    github_app,
    google_service_account,
    jwt_bearer,
    minted_jwt,
    refresh_token,
    token_exchange,
)
from addons.deriving.asking import Ask, Reply
from addons.deriving.made import Made
from policies.derive import (
    AwsAssumeRole,
    AwsWebIdentity,
    Azure,
    ClientCredentials,
    Derivation,
    GithubApp,
    GoogleServiceAccount,
    JwtBearer,
    MintedJwt,
    RefreshToken,
    TokenExchange,
)


def ask(grant: Derivation, credential: Credential, now_s: float) -> Ask | Made:
    """What is asked, or the token itself where nobody is asked.

    Args:
        grant: of the policy.
        credential: opened.
        now_s: seconds since the epoch.

    Raises:
        Refusal: `secret_malformed` or `secret_missing`.
    """
    match grant:
        case ClientCredentials():
            return client_credentials.ask(grant, credential, now_s)
        case RefreshToken():
            return refresh_token.ask(grant, credential, now_s)
        case JwtBearer():
            return jwt_bearer.ask(grant, credential, now_s)
        case TokenExchange():
            return token_exchange.ask(grant, credential, now_s)
        case GoogleServiceAccount():
            return google_service_account.ask(grant, credential, now_s)
        case GithubApp():
            return github_app.ask(grant, credential, now_s)
        case MintedJwt():
            return minted_jwt.mint(grant, credential, now_s)
        case AwsAssumeRole():
            return aws_sts.ask_role(grant, credential, now_s)
        case AwsWebIdentity():
            return aws_sts.ask_web_identity(grant, credential, now_s)
        case Azure():
            return azure.ask(grant, credential, now_s)


def made(grant: Derivation, reply: Reply, now_s: float) -> Made:
    """What an answer means.

    Raises:
        Refusal: `secret_unavailable`, `secret_denied` or `secret_malformed`.
    """
    match grant:
        case ClientCredentials():
            return client_credentials.made(grant, reply, now_s)
        case RefreshToken():
            return refresh_token.made(grant, reply, now_s)
        case JwtBearer():
            return jwt_bearer.made(grant, reply, now_s)
        case TokenExchange():
            return token_exchange.made(grant, reply, now_s)
        case GoogleServiceAccount():
            return google_service_account.made(grant, reply, now_s)
        case GithubApp():
            return github_app.made(grant, reply, now_s)
        case AwsAssumeRole() | AwsWebIdentity():
            return aws_sts.made(grant, reply, now_s)
        case Azure():
            return azure.made(grant, reply, now_s)
        case MintedJwt():
            raise AssertionError("nobody is asked for a minted JWT")
