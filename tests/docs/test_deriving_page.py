"""Each example of docs/reference/deriving.md asks for a token as a server that believes nothing wants to be asked."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from addons.clock import SystemClock
from addons.credentials import Credential
from addons.deriving.asking import Ask, Reply
from addons.deriving.grants import ask, made
from addons.deriving.made import Made
from addons.refusal import Code, Refusal
from policies import load_policy
from policies.derive import ClientCredentials
from policies.keys import DERIVE, TABLES
from policies.load_derive import TABLE_OF
from policies.model import CredentialSpec, Route
from tests.harness.pki import Pki
from tests.harness.token_server import No, TokenServer, new_key, verified
from tests.harness.upstream import Seen
from vault.secret import Secret

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "deriving.md"
RSA, RSA_PEM = new_key()
EC, EC_PEM = new_key("ec")
KEY_FILE = json.dumps({
    "type": "service_account", "client_email": "orders@corp.iam.gserviceaccount.com", "private_key": RSA_PEM,
    "private_key_id": "k1", "token_uri": "https://evil.test/token",
})  # fmt: skip
FIELDS = {
    "client_id": "orders", "client_secret": "s:3 cret/+%", "private_key": EC_PEM, "refresh_token": "r-1", "token": "subject-1",
    "key_json": KEY_FILE, "app_id": "12345", "installation_id": "4711", "access_key_id": "AKIDEXAMPLE",
    "secret_access_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
}  # fmt: skip


def routes(tmp_path: Path) -> dict[str, Route]:
    found: dict[str, Route] = {}
    blocks = re.findall(r"^```yaml policy\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for number, text in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        found |= load_policy([path]).routes
    return found


def spec_of(route: Route) -> CredentialSpec:
    assert route.credential is not None
    return route.credential


def credential(spec: CredentialSpec, **other: str) -> Credential:
    fields = {name: Secret(value) for name, value in {**FIELDS, **other}.items()}
    return Credential(spec, dict.fromkeys(spec.secrets, fields))


def asked(route: Route, **other: str) -> Ask:
    spec = spec_of(route)
    assert spec.derive is not None
    found = ask(spec.derive, credential(spec, **other), SystemClock.wall_s())
    assert isinstance(found, Ask)
    return found


def seen(one: Ask) -> Seen:
    headers = [(name.decode(), value.decode()) for name, value in one.fields]
    return Seen("POST", one.target, headers, body=one.body)


def answered(route: Route, answer: Any, status: int = 200) -> Made:
    spec = spec_of(route)
    assert spec.derive is not None
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return made(spec.derive, Reply(status, body), SystemClock.wall_s())


def oauth(route: Route) -> None:
    server = TokenServer(
        secrets={"orders": FIELDS["client_secret"], "": FIELDS["token"]},
        keys={"orders": (EC.public_key(), "ES256")},
        refresh="r-1",
    )
    one = asked(route)
    assert (one.endpoint.host, one.target) == ("login.test", "/token")
    found = answered(route, server.answer(seen(one)))
    assert found.values["token"].reveal() == server.given[0]
    assert found.life_s == 3600
    assert (found.refresh is not None) == (route.name == "refresh-token")
    if route.name in {"private-key-jwt", "jwt-bearer"}:
        with pytest.raises(No, match="used twice"):
            server.answer(seen(one))
    # The server takes no other secret and no other key.
    _, other = new_key("ec")
    with pytest.raises(No):
        server.answer(seen(asked(route, client_secret="other", private_key=other, refresh_token="r-0", token="other")))


def by_certificate(route: Route) -> None:
    assert route.tls is not None
    spec = spec_of(route)
    assert set(spec.secrets) == {"derive.client_cert", "tls.client_cert"}
    one, two = spec.secrets.values()
    assert one == two
    with TemporaryDirectory() as folder:
        pki = Pki.make(Path(folder))
        chain, key = pki.client("orders")
        _, other = pki.client("orders")
    found = asked(route, cert_pem=chain, key_pem=key)
    assert found.certificate is not None
    assert found.certificate.chain_pem().decode() == chain
    assert parse_qs(found.body.decode()) == {"grant_type": ["client_credentials"], "client_id": ["orders"]}
    assert not any(name.lower() == b"authorization" for name, _ in found.fields)
    server = TokenServer(certificates={"orders": "orders"})
    with pytest.raises(No, match="certificate of None"):
        server.answer(seen(found))
    assert answered(route, server.answer(replace(seen(found), client="orders"))).life_s == 3600
    with pytest.raises(Refusal) as refused:
        asked(route, cert_pem=chain, key_pem=other)
    assert refused.value.code is Code.SECRET_MALFORMED


def google(route: Route) -> None:
    server = TokenServer(
        keys={"orders@corp.iam.gserviceaccount.com": (RSA.public_key(), "RS256")},
        audience="https://oauth2.googleapis.com/token",
    )
    one = asked(route)
    # The endpoint that the key file names is not believed.
    assert one.endpoint.host == "oauth2.googleapis.com"
    found = answered(route, server.answer(seen(one)))
    assert found.values["token"].reveal() == server.given[0]
    assert 3500 < found.life_s <= 3601


def github_app(route: Route) -> None:
    server = TokenServer(keys={"12345": (RSA.public_key(), "12345")})
    found = answered(route, server.answer(seen(asked(route, private_key=RSA_PEM))), 201)
    assert found.values["token"].reveal() == server.given[0]
    assert server.forms == [{"repositories": ["one"], "permissions": {"contents": "read"}}]
    with pytest.raises(Refusal) as refused:
        asked(route, private_key=RSA_PEM, installation_id="1/../2")
    assert refused.value.code is Code.SECRET_MALFORMED


def minted(route: Route) -> None:
    spec = spec_of(route)
    assert spec.derive is not None
    now_s = SystemClock.wall_s()
    found = ask(spec.derive, credential(spec), now_s)
    assert isinstance(found, Made)
    head, claims = verified(found.values["token"].reveal(), EC.public_key(), "ES256")
    assert head == {"alg": "ES256", "typ": "JWT", "kid": "key-1"}
    assert claims.pop("jti")
    assert claims == {
        "iss": "billing", "sub": "billing", "aud": "api", "iat": int(now_s), "exp": int(now_s) + 600, "env": "prod",
        "roles": ["reader", "writer"],
    }  # fmt: skip


def sts(body: bytes = b"") -> bytes:
    ends = dt.datetime.fromtimestamp(int(SystemClock.wall_s()) + 900, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    return body + (
        b'<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>'
        b"<AccessKeyId>ASIAX</AccessKeyId><SecretAccessKey>a/b+c&#61;</SecretAccessKey><SessionToken>tok==</SessionToken>"
        b"<Expiration>" + ends + b"</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    )


def keys_of_role(route: Route) -> None:
    found = answered(route, sts())
    assert {name: value.reveal() for name, value in found.values.items()} == {
        "access_key_id": "ASIAX", "secret_access_key": "a/b+c=", "session_token": "tok==",
    }  # fmt: skip
    assert 890 < found.life_s <= 901
    # No document type is read past, whatever it declares.
    for bad in (b'<!DOCTYPE a [<!ENTITY x "y">]>', b"<?xml-stylesheet href='x'?>", b"<a>" * 20, b"\xff"):
        with pytest.raises(Refusal) as refused:
            answered(route, sts(bad))
        assert refused.value.code is Code.SECRET_MALFORMED
    for status, code, word in (
        (400, Code.SECRET_UNAVAILABLE, b"Throttling"),
        (403, Code.SECRET_DENIED, b"AccessDenied"),
    ):
        with pytest.raises(Refusal) as refused:
            answered(route, b"<ErrorResponse><Error><Code>" + word + b"</Code></Error></ErrorResponse>", status)
        assert refused.value.code is code


def assume_role(route: Route) -> None:
    one = asked(route)
    assert one.endpoint.host == "sts.eu-west-1.amazonaws.com"
    form = parse_qs(one.body.decode(), strict_parsing=True)
    assert form == {
        "Action": ["AssumeRole"], "Version": ["2011-06-15"], "RoleArn": ["arn:aws:iam::123456789012:role/reader"],
        "RoleSessionName": ["billing"], "DurationSeconds": ["900"], "ExternalId": ["x-1"],
    }  # fmt: skip
    # Recomputed by hand, as AWS's page on signing tells it.
    fields = {name.decode().lower(): value.decode() for name, value in one.fields}
    found = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/(\d{8})/eu-west-1/sts/aws4_request, SignedHeaders=([a-z;-]+), Signature=([0-9a-f]{64})",
        fields["authorization"],
    )
    assert found is not None
    day, names, signature = found.groups()
    assert {"host", "content-type", "x-amz-date"} <= set(names.split(";"))
    fields["host"] = one.endpoint.host
    lines = "".join(f"{name}:{fields[name]}\n" for name in names.split(";"))
    canonical = f"POST\n/\n\n{lines}\n{names}\n{hashlib.sha256(one.body).hexdigest()}"
    text = f"AWS4-HMAC-SHA256\n{fields['x-amz-date']}\n{day}/eu-west-1/sts/aws4_request\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = b"AWS4" + FIELDS["secret_access_key"].encode()
    for part in (day, "eu-west-1", "sts", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    assert signature == hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    keys_of_role(route)


def web_identity(route: Route) -> None:
    one = asked(route)
    form = parse_qs(one.body.decode(), strict_parsing=True)
    assert (form["Action"], form["WebIdentityToken"]) == (["AssumeRoleWithWebIdentity"], ["subject-1"])
    assert not any(name.lower() == b"authorization" for name, _ in one.fields)
    keys_of_role(route)


def azure_secret(route: Route) -> None:
    one = asked(route)
    assert (one.endpoint.host, one.target) == ("login.microsoftonline.com", "/contoso.example/oauth2/v2.0/token")
    form = parse_qs(one.body.decode(), strict_parsing=True)
    assert form == {
        "grant_type": ["client_credentials"], "client_id": ["orders"], "client_secret": [FIELDS["client_secret"]],
        "scope": ["https://vault.azure.net/.default"],
    }  # fmt: skip
    found = answered(route, {"token_type": "Bearer", "expires_in": 3599, "access_token": "e.y.J"})
    assert found.values["token"].reveal() == "e.y.J"


def azure_certificate(route: Route) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "orders")])
    now = dt.datetime.now(dt.UTC)
    cert = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(RSA.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1)).sign(RSA, hashes.SHA256())
    )  # fmt: skip
    one = asked(route, pem=RSA_PEM + cert.public_bytes(Encoding.PEM).decode())
    form = parse_qs(one.body.decode(), strict_parsing=True)
    head, claims = verified(form["client_assertion"][0], RSA.public_key(), "PS256")
    thumbprint = base64.urlsafe_b64encode(cert.fingerprint(hashes.SHA256())).rstrip(b"=").decode()
    assert head == {"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint}
    assert claims["aud"] == "https://login.microsoftonline.com/contoso.example/oauth2/v2.0/token"
    assert claims["iss"] == claims["sub"] == "orders"
    with pytest.raises(Refusal):
        asked(route, pem=RSA_PEM)


CHECKS: dict[str, Callable[[Route], None]] = {
    "client-credentials": oauth,
    "private-key-jwt": oauth,
    "post": oauth,
    "mtls": by_certificate,
    "refresh-token": oauth,
    "jwt-bearer": oauth,
    "token-exchange": oauth,
    "google": google,
    "google-id-token": google,
    "github-app": github_app,
    "minted": minted,
    "assume-role": assume_role,
    "web-identity": web_identity,
    "azure-secret": azure_secret,
    "azure-certificate": azure_certificate,
}


@pytest.mark.parametrize("name", CHECKS)
def test_an_example_is_taken(name: str, tmp_path: Path) -> None:
    CHECKS[name](routes(tmp_path)[name])


def test_every_example_is_one_of_these(tmp_path: Path) -> None:
    assert set(routes(tmp_path)) == set(CHECKS)


def test_every_key_is_on_the_page() -> None:
    text = PAGE.read_text()
    for kind in DERIVE:
        assert f"`{kind}`" in text
        for key in TABLES[TABLE_OF[kind]]:
            assert f"`{key}`" in text or f"{key}:" in text, f"{kind}.{key}"


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (401, b'{"error": "invalid_client", "error_description": "s:3 cret"}', Code.SECRET_DENIED),
        (400, b"not JSON: s:3 cret", Code.SECRET_DENIED),
        (302, b"", Code.SECRET_MALFORMED),
        (500, b"s:3 cret", Code.SECRET_UNAVAILABLE),
        (429, b"", Code.SECRET_UNAVAILABLE),
        (200, b"[]", Code.SECRET_MALFORMED),
        (200, b"[" * 100_000, Code.SECRET_MALFORMED),
        (200, b"{}", Code.SECRET_MALFORMED),
        (200, b'{"access_token": "a b"}', Code.SECRET_MALFORMED),
        (200, b'{"access_token": "a", "access_token": "a"}', Code.SECRET_MALFORMED),
        (200, b'{"access_token": "a", "expires_in": -1}', Code.SECRET_MALFORMED),
        (200, b'{"access_token": "a", "expires_in": true}', Code.SECRET_MALFORMED),
        (200, b'{"access_token": "a", "expires_in": NaN}', Code.SECRET_MALFORMED),
        (200, b'{"access_token": "a", "token_type": "mac"}', Code.SECRET_MALFORMED),
    ],
)
def test_what_an_endpoint_may_answer(status: int, body: bytes, code: Code, tmp_path: Path) -> None:
    route = routes(tmp_path)["client-credentials"]
    with pytest.raises(Refusal) as refused:
        answered(route, body, status)
    assert refused.value.code is code
    assert "cret" not in refused.value.message


def test_basic_is_encoded_as_a_form_first(tmp_path: Path) -> None:
    """RFC 6749 section 2.3.1: its own example, `s6BhdRkqt3:7Fjfp0ZBr1KtDRbnfVdmIw`."""
    route = routes(tmp_path)["client-credentials"]
    fields = dict(asked(route, client_id="s6BhdRkqt3", client_secret="7Fjfp0ZBr1KtDRbnfVdmIw").fields)
    assert fields[b"Authorization"] == b"Basic czZCaGRSa3F0Mzo3RmpmcDBaQnIxS3REUmJuZlZkbUl3"
    fields = dict(asked(route, client_id="a:b", client_secret="c d%").fields)
    assert base64.b64decode(fields[b"Authorization"][6:]) == b"a%3Ab:c%20d%25"


def test_nothing_shows_what_it_holds(tmp_path: Path) -> None:
    route = routes(tmp_path)["client-credentials"]
    one = asked(route)
    assert repr(one) == "Ask(…)"
    derive = spec_of(route).derive
    assert isinstance(derive, ClientCredentials)
    assert "cret/" not in repr(replace(derive, audience="x"))
    assert "tok-1" not in repr(answered(route, {"access_token": "tok-1"}))
    assert "tok-1" not in repr(Reply(200, b"tok-1"))
