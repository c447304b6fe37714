"""Login by AWS IAM: signatures that botocore's own code recomputes, and a real Vault whose STS is a server that does."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.test_aws import Verifier, verifying
from tests.harness.canaries import canary
from tests.harness.installed import python_with
from tests.harness.openbao import OpenBao
from tests.harness.scripted_vault import scripted, send
from tests.harness.two_ways import ROOT
from tests.harness.vault_binary import needs_aws
from tests.vault.test_logins import READ, Heard, alive, reads, store, token_of
from vault.hashicorp.aws import BODY, AwsKeys, AwsProfile, endpoint, identity_request, read_profile
from vault.hashicorp.config import AwsAuth
from vault.secret import Secret
from vault.store import SecretDenied, SecretUnavailable

ACCESS = "AKIAOSTIARYLOGSIN"
ARN = "arn:aws:iam::123456789012:user/ostiary"
SERVER_ID = "vault.egress.test"
ANSWER = f"""<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<GetCallerIdentityResult><Arn>{ARN}</Arn><UserId>AIDAOSTIARY</UserId><Account>123456789012</Account></GetCallerIdentityResult>
<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></GetCallerIdentityResponse>"""


@pytest.fixture(scope="session")
def python() -> Path:
    """botocore in an environment of its own."""
    return python_with("python", ROOT / "requirements" / "clients.txt")


def keys(secret: str, token: str | None = None, access: str = ACCESS) -> AwsKeys:
    return AwsKeys(access, Secret(secret), Secret(token) if token is not None else None)


def judged(verifier: Verifier, url: str, headers: dict[str, str], body: str = BODY) -> str:
    host = headers.get("Host", "")
    assert url == f"https://{host}/"
    return verifier.judge("POST", host, "/", list(headers.items()), hashlib.sha256(body.encode()).hexdigest())


def test_signatures_are_those_of_botocore(python: Path) -> None:
    secret, token = canary("aws/+="), canary("session/+=")
    now = dt.datetime.now(dt.UTC)
    with verifying(python, access=ACCESS, secret=secret, token=token) as verifier:
        for region in (None, "eu-west-1", "cn-north-1", "us-gov-west-1"):
            for server_id in (None, SERVER_ID, "~!@ odd".replace(" ", "")):
                made = identity_request(keys(secret, token), region, server_id, now)
                assert judged(verifier, made.url, dict(made.headers)) == ""
                # What Vault insists on: its own name is among what is signed.
                assert ("x-vault-aws-iam-server-id" in made.headers["Authorization"]) == (server_id is not None)
                assert endpoint(region)[1] in made.headers["Authorization"]
                assert secret not in repr(made) + json.dumps(dict(made.headers))
                assert token not in repr(made)
        # The oracle sees what is wrong.
        made = identity_request(keys(secret, token), None, SERVER_ID, now)
        assert judged(verifier, made.url, {**made.headers, "X-Vault-AWS-IAM-Server-ID": "other"}) != ""
        assert judged(verifier, made.url, dict(made.headers), BODY + "&X=1") != ""
        made = identity_request(keys(canary(), token), None, SERVER_ID, now)
        assert judged(verifier, made.url, dict(made.headers)) != ""
    with verifying(python, access=ACCESS, secret=secret, token=None) as verifier:
        made = identity_request(keys(secret), "ap-southeast-2", None, now)
        assert judged(verifier, made.url, dict(made.headers)) == ""
        assert "X-Amz-Security-Token" not in made.headers
    assert endpoint(None) == ("sts.amazonaws.com", "us-east-1")
    assert endpoint("cn-north-1") == ("sts.cn-north-1.amazonaws.com.cn", "cn-north-1")


def test_the_credentials_file(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    text = "[default]\naws_access_key_id = AKID1\naws_secret_access_key=cnry%s1\n\n[egress]\nAWS_ACCESS_KEY_ID=AKID2\naws_secret_access_key = cnry2\naws_session_token = cnry3==\n"
    file.write_text(text)
    one, two = read_profile(AwsProfile(file)), read_profile(AwsProfile(file, "egress"))
    assert (one.access_key_id, one.secret_access_key.reveal(), one.session_token) == ("AKID1", "cnry%s1", None)
    assert two.session_token is not None
    assert (two.access_key_id, two.secret_access_key.reveal(), two.session_token.reveal()) == (
        "AKID2",
        "cnry2",
        "cnry3==",
    )
    assert "cnry" not in repr(two)
    for content, said in (
        ("[other]\n", "has no profile default"),
        ("[default]\naws_access_key_id = cnry\n", "has no aws_secret_access_key"),
        (
            "[default]\naws_access_key_id = cnry\naws_secret_access_key = cnry\n  cnry\n",
            "holds something that no AWS key is",
        ),
        ("[default]\ncnry\n", "is not written as AWS credentials are"),
        ("cnry = 1\n", "is not written as AWS credentials are"),
        ("[default]\nx = " + "cnry" * 300_000, "is larger than 1048576 bytes"),
    ):
        file.write_text(content)
        with pytest.raises(SecretUnavailable, match=said) as caught:
            read_profile(AwsProfile(file))
        assert "cnry" not in str(caught.value)
    file.write_bytes(b"[default]\n\xff")
    with pytest.raises(SecretUnavailable, match="is not written as"):
        read_profile(AwsProfile(file))
    with pytest.raises(SecretUnavailable, match=r"cannot be read: .*set AWS_ACCESS_KEY_ID"):
        read_profile(AwsProfile(tmp_path / "none"))


async def test_what_vault_and_sts_say_is_told_without_what_was_sent(tmp_path: Path) -> None:
    """STS answers a wrong signature with what it should have been made over, token and all, and Vault passes it on."""
    secret, token = canary("aws"), canary("session")
    bodies: list[dict[str, Any]] = []
    said = ["error making upstream request: received error code 403 from STS: {headers}"]

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        bodies.append(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
        shown = json.loads(base64.b64decode(bodies[-1]["iam_request_headers"]))
        text = said[0].format(headers=f"{token} {shown['Authorization']} {bodies[-1]['iam_request_headers']} {secret}")
        send(handler, 400, {"errors": [text]})

    file = tmp_path / "credentials"
    file.write_text(
        f"[default]\naws_access_key_id={ACCESS}\naws_secret_access_key={secret}\naws_session_token={token}\n"
    )
    with scripted(answer) as (address, seen):
        auth = AwsAuth("egress", AwsProfile(file), "eu-west-1", SERVER_ID, "clouds/aws")
        async with store(address, auth) as vault:
            with pytest.raises(SecretDenied, match="refused the AWS login at auth/clouds/aws as role egress") as caught:
                await vault.start()
        assert "received error code 403 from STS: … … … …" in str(caught.value)
        assert [path for path, _ in seen] == ["/v1/auth/clouds/aws/login"]
        # An STS that is away, or ill, is an outage and no refusal.
        for one in (
            "error making upstream request: dial tcp: i/o timeout",
            "error making upstream request: received error code 503 from STS: x",
        ):
            said[0] = one
            async with store(address, auth) as vault:
                with pytest.raises(SecretUnavailable, match="error making upstream request"):
                    await vault.start()
    body = bodies[0]
    assert {key: body[key] for key in ("role", "iam_http_request_method")} == {
        "role": "egress",
        "iam_http_request_method": "POST",
    }
    assert base64.b64decode(body["iam_request_url"]) == b"https://sts.eu-west-1.amazonaws.com/"
    assert base64.b64decode(body["iam_request_body"]).decode() == BODY
    assert secret not in json.dumps(body)


# --- a real Vault ---


class Sts(http.server.BaseHTTPRequestHandler):
    """Knows one key, and recomputes what was signed with it."""

    verifier: Verifier
    judged: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        sent = [
            (name, value)
            for name, value in self.headers.items()
            if name.lower() not in {"host", "accept-encoding", "user-agent"}
        ]
        wrong = self.verifier.judge("POST", self.headers["Host"], self.path, sent, hashlib.sha256(body).hexdigest())
        if not wrong and body.decode() != BODY:
            wrong = "it asks for something else"
        self.judged.append(wrong)
        raw = (f"<ErrorResponse>{wrong}</ErrorResponse>" if wrong else ANSWER).encode()
        self.send_response(403 if wrong else 200)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def sts(verifier: Verifier) -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (Sts,), {"verifier": verifier, "judged": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.judged  # type: ignore[attr-defined]  # of the class just made
    finally:
        server.shutdown()
        server.server_close()


@needs_aws
async def test_vault_takes_what_sts_vouches_for(openbao: OpenBao, python: Path, tmp_path: Path) -> None:
    secret, token = canary("aws/+="), canary("session/+=")
    openbao.policy("logins", READ)
    openbao.put("egress/logins", key="x")
    openbao.enable("aws")
    role = {"auth_type": "iam", "bound_iam_principal_arn": ARN, "resolve_aws_unique_ids": False, "token_policies": ["logins"], "token_ttl": "1h", "token_no_default_policy": True}  # fmt: skip
    openbao.api("POST", "auth/aws/role/egress", role)
    openbao.api("POST", "auth/aws/role/others", {**role, "bound_iam_principal_arn": ARN.replace("ostiary", "other")})
    with verifying(python, access=ACCESS, secret=secret, token=token) as verifier, sts(verifier) as (where, judged_):
        config = {"sts_endpoint": where, "sts_region": "eu-west-1", "iam_server_id_header_value": SERVER_ID}
        openbao.api("POST", "auth/aws/config/client", config)
        file = tmp_path / "credentials"
        profile = f"[egress]\naws_access_key_id={ACCESS}\naws_secret_access_key={secret}\naws_session_token={token}\n"
        file.write_text(profile)
        auth = AwsAuth("egress", AwsProfile(file, "egress"), "eu-west-1", SERVER_ID)
        async with store(openbao.address, auth, heard := Heard()) as vault:
            assert await reads(vault)
            first = await token_of(vault)
            # A dead token: the keys are read again and log in again.
            openbao.api("POST", "auth/token/revoke", {"token": first})
            assert await reads(vault)
            second = await token_of(vault)
            assert second != first
        assert not alive(openbao, second)
        assert heard.logins == ["ok", "ok"]
        # Vault asks more than once for each login.
        assert set(judged_) == {""}
        async with store(openbao.address, AwsAuth("egress", keys(secret, token), "eu-west-1", SERVER_ID)) as vault:
            assert await reads(vault)
        for given, region, server_id, name, said in (
            (keys(canary(), token), "eu-west-1", SERVER_ID, "egress", "received error code 403 from STS"),
            (keys(secret, token), "eu-west-1", "vault.other.test", "egress", 'expected "vault.egress.test" but got'),
            (keys(secret, token), "eu-west-1", None, "egress", "missing header"),
            (keys(secret, token), "eu-west-1", SERVER_ID, "others", "does not belong to the role"),
        ):  # fmt: skip
            async with store(openbao.address, AwsAuth(name, given, region, server_id)) as vault:
                with pytest.raises(SecretDenied, match=said) as caught:
                    await vault.start()
                assert token not in str(caught.value)
    # STS is away: no refusal, and tried again soon.
    async with store(openbao.address, auth, deadline_s=20.0) as vault:
        with pytest.raises(SecretUnavailable, match="error making upstream request"):
            await vault.start()
