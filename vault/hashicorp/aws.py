"""Login by AWS IAM: a signed request to STS that Vault sends on, and the keys that sign it.

Vault is handed a `GetCallerIdentity` request, signed here and never sent by us. It sends it to the STS of its own settings,
and believes what that answers about who signed it (https://developer.hashicorp.com/vault/docs/auth/aws#iam-auth-method,
https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html). Whoever has the request can log in with it
for a quarter of an hour, so it is hidden like a secret. `X-Vault-AWS-IAM-Server-ID` is signed too: it keeps a request that
was made for another Vault from being taken by this one.

The keys are found as AWS SDKs find them, in the environment first and else in the shared credentials file
(https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html), which is read at each login. Web identity, containers
and instance metadata are not asked: each is another service to trust on the way to a login.
"""

from __future__ import annotations

import configparser
import datetime as dt
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vault.secret import Secret
from vault.store import SecretUnavailable

BODY: Final = "Action=GetCallerIdentity&Version=2011-06-15"
SERVER_ID: Final = "X-Vault-AWS-IAM-Server-ID"
GLOBAL_REGION: Final = "us-east-1"
"""What the global endpoint of STS is signed for."""
MAX_FILE_BYTES: Final = 1024 * 1024
_ALGORITHM: Final = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class AwsKeys:
    """What signs a request to AWS."""

    access_key_id: str
    secret_access_key: Secret = field(repr=False)
    session_token: Secret | None = field(default=None, repr=False)
    """Of keys that end."""


@dataclass(frozen=True, slots=True)
class AwsProfile:
    """Keys in a shared credentials file."""

    file: Path
    profile: str = "default"


@dataclass(frozen=True, slots=True)
class IdentityRequest:
    """A signed request. `headers` hold what must not be shown."""

    url: str
    headers: Mapping[str, str] = field(repr=False)


def endpoint(region: str | None) -> tuple[str, str]:
    """Host of the STS of a region, and the region that requests to it are signed for. Without a region: the global one."""
    if region is None:
        return "sts.amazonaws.com", GLOBAL_REGION
    return f"sts.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}", region


def identity_request(keys: AwsKeys, region: str | None, server_id: str | None, now: dt.datetime) -> IdentityRequest:
    """Signs `GetCallerIdentity` with AWS Signature Version 4
    (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).

    Args:
        keys: of the caller.
        region: of the STS that Vault asks; None for the global one.
        server_id: what Vault wants to see in `X-Vault-AWS-IAM-Server-ID`, if it does.
        now: in UTC. AWS refuses what is 15 minutes away from its own.
    """
    host, scope_region = endpoint(region)
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {
        "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
        "Host": host,
        "X-Amz-Date": stamp,
    }
    if keys.session_token is not None:
        headers["X-Amz-Security-Token"] = keys.session_token.reveal()
    if server_id is not None:
        headers[SERVER_ID] = server_id
    lines = sorted((name.lower(), value) for name, value in headers.items())
    signed = ";".join(name for name, _ in lines)
    fields = "".join(f"{name}:{value}\n" for name, value in lines)
    canonical = f"POST\n/\n\n{fields}\n{signed}\n{_sha256(BODY)}"
    scope = f"{stamp[:8]}/{scope_region}/sts/aws4_request"
    key = b"AWS4" + keys.secret_access_key.reveal_bytes()
    for part in scope.split("/"):
        key = _hmac(key, part)
    signature = _hmac(key, f"{_ALGORITHM}\n{stamp}\n{scope}\n{_sha256(canonical)}").hex()
    headers["Authorization"] = (
        f"{_ALGORITHM} Credential={keys.access_key_id}/{scope}, SignedHeaders={signed}, Signature={signature}"
    )
    return IdentityRequest(f"https://{host}/", headers)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode("utf-8"), "sha256")


def read_profile(source: AwsProfile) -> AwsKeys:
    """The keys of a profile. Reads the disk.

    Raises:
        SecretUnavailable: there are none, with what is missing and never with what is there.
    """
    where = f"the AWS credentials file {source.file}"
    try:
        with source.file.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SHARED_CREDENTIALS_FILE"
        raise SecretUnavailable("", f"{where} cannot be read: {error.strerror} ({hint})") from None
    if len(raw) > MAX_FILE_BYTES:
        raise SecretUnavailable("", f"{where} is larger than {MAX_FILE_BYTES} bytes")
    parser = configparser.RawConfigParser(strict=False, default_section="")
    try:
        parser.read_string(raw.decode("utf-8"))
    except (configparser.Error, UnicodeDecodeError):
        # What it says may quote a line.
        raise SecretUnavailable("", f"{where} is not written as AWS credentials are") from None
    if not parser.has_section(source.profile):
        raise SecretUnavailable("", f"{where} has no profile {source.profile}")
    profile = parser[source.profile]
    access, secret = profile.get("aws_access_key_id", ""), profile.get("aws_secret_access_key", "")
    for name, value in (("aws_access_key_id", access), ("aws_secret_access_key", secret)):
        if not value:
            raise SecretUnavailable("", f"profile {source.profile} in {where} has no {name}")
    token = profile.get("aws_session_token", "")
    return keys_of(access, secret, token, f"profile {source.profile} in {where}")


def keys_of(access: str, secret: str, token: str, where: str) -> AwsKeys:
    """Keys that may stand in a header.

    Raises:
        SecretUnavailable: they may not.
    """
    if not all(text.isascii() and text.isprintable() and " " not in text for text in (access, secret, token)):
        raise SecretUnavailable("", f"{where} holds something that no AWS key is")
    return AwsKeys(access, Secret(secret), Secret(token) if token else None)
