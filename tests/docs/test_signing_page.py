"""Each example of docs/reference/signing.md signs, and what it signs is what the vendor's page says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from addons.signing.apply import Signing
from addons.signing.outgoing import Outgoing
from policies import load_policy
from policies.keys import ACS3, AWS_SIGV4, DPOP, EDGEGRID, HMAC, HTTP_MESSAGE, NAMES_SENT, TC3, TRANSIT
from policies.model import Route
from policies.sign import TransitUse
from tests.harness.signing import credential, outgoing

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "signing.md"
BODY = b'{"size": 1}'
NOW_S = 1_499_827_319.559
PRIVATE = Ed25519PrivateKey.generate()
PEM = PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def routes(tmp_path: Path) -> dict[str, Route]:
    found: dict[str, Route] = {}
    for number, text in enumerate(
        re.findall(r"^```yaml policy\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    ):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        found |= load_policy([path]).routes
    return found


def signed(route: Route, request: Outgoing, secret: dict[str, str]) -> Outgoing:
    signing = Signing(route.sign, 1 << 20)
    signing.sign(signing.judge(request.caller), request, credential(secret), NOW_S)
    return request


def one(request: Outgoing, name: str) -> str:
    (value,) = request.values(name.encode())
    return value.decode()


def mac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def profile(route: Route) -> None:
    made = signed(route, outgoing("POST", b"/v1?a=1", [(b"Content-Type", b"a/b")], BODY), {"key": "k"})
    text = f"POST\n/v1?a=1\nhost:api.test\ncontent-type:a/b\nx-timestamp:1499827319\nx-nonce:{one(made, 'x-nonce')}\n{hashlib.sha256(BODY).hexdigest()}"
    assert one(made, "x-signature") == "sha256=" + mac(b"k", text).hex()


def binance(route: Route) -> None:
    # The key, request and signature of the vendor's own example.
    secret = {"secret_key": "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j", "key": "x"}
    target = b"/api/v3/order?symbol=LTCBTC&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1&recvWindow=5000"
    secret["key"] = secret["secret_key"]
    made = signed(route, outgoing("POST", target), secret)
    assert (
        made.target
        == target
        + b"&timestamp=1499827319559&signature=c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71"
    )


def coinbase(route: Route) -> None:
    # The page: base64 of the HMAC, by the decoded secret, of timestamp + method + requestPath + body.
    made = signed(route, outgoing("POST", b"/orders?x=1", body=BODY), {"key": base64.b64encode(b"s3").decode()})
    text = f"{one(made, 'cb-access-timestamp')}POST/orders?x=1{BODY.decode()}"
    assert one(made, "cb-access-sign") == base64.b64encode(mac(b"s3", text)).decode()


def other(route: Route) -> None:
    made = signed(route, outgoing("POST", b"/p?q=1", [(b"Content-Type", b"a/b")], BODY), {"key": "k"})
    nonce = one(made, "x-auth-nonce")
    text = f"KEY k\nPOST\napi.test\n/p\nq=1\na/b\n{nonce}\n1499827319559\n{hashlib.sha256(BODY).hexdigest()}"
    assert one(made, "x-auth-signature") == mac(b"k", text).hex()


def datadog(route: Route) -> None:
    assert not route.sign
    assert len(route.inject) == 2


def aws(route: Route) -> None:
    caller = [
        (
            b"Authorization",
            b"AWS4-HMAC-SHA256 Credential=A/20260101/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=00",
        )
    ]
    secret = {"access_key_id": "AKIA1", "secret_access_key": "s", "key": "s"}
    made = signed(route, outgoing("GET", b"/k", caller=caller), secret)
    assert one(made, "authorization").startswith(
        "AWS4-HMAC-SHA256 Credential=AKIA1/20170712/eu-west-1/s3/aws4_request, "
    )


def aws_session(route: Route) -> None:
    secret = {"access_key_id": "AKIA1", "secret_access_key": "s", "session_token": "t", "key": "s"}
    made = signed(route, outgoing("POST", b"/", body=BODY), secret)
    assert one(made, "x-amz-security-token") == "t"
    assert "/eu-west-1/dynamodb/aws4_request, SignedHeaders=host;x-amz-date;x-amz-security-token, " in one(
        made, "authorization"
    )


def messages(route: Route) -> None:
    secret = {"private_key": PEM, "key": PEM, "key_id": "k1"}
    made = signed(route, outgoing("POST", b"/x", [(b"Content-Type", b"a/b")], BODY), secret)
    params = one(made, "signature-input").removeprefix("sig1=")
    digest = "sha-256=:" + base64.b64encode(hashlib.sha256(BODY).digest()).decode() + ":"
    base = f'"@method": POST\n"@target-uri": https://api.test/x\n"content-type": a/b\n"content-digest": {digest}\n"@signature-params": {params}'
    signature = base64.b64decode(one(made, "signature").removeprefix("sig1=:").removesuffix(":"))
    PRIVATE.public_key().verify(signature, base.encode())


def messages_hmac(route: Route) -> None:
    made = signed(route, outgoing("GET", b"/x?y", body=None), {"key": base64.b64encode(b"k").decode()})
    params = one(made, "signature-input").removeprefix("shop=")
    assert params.endswith(';alg="hmac-sha256";keyid="shop-1";tag="orders"')
    base = f'"@method": GET\n"@authority": api.test\n"@path": /x\n"@query": ?y\n"@signature-params": {params}'
    assert one(made, "signature") == "shop=:" + base64.b64encode(mac(b"k", base)).decode() + ":"


def in_vault(route: Route) -> Outgoing:
    """Signed by a key that a Vault of this test keeps."""
    request = outgoing("POST", b"/x", [(b"Content-Type", b"a/b")], BODY)

    async def ask(use: TransitUse, text: bytes) -> bytes:
        assert use.key.mount == "transit"
        return hmac.digest(use.path.encode(), text, "sha256")

    async def beside[T](work: Callable[[], T]) -> T:
        return work()

    asyncio.run(Signing(route.sign, 1 << 20).sign_remotely(request, credential({}), NOW_S, ask, beside))
    return request


def transit_hmac(route: Route) -> None:
    made = in_vault(route)
    text = f"POST\n/x\nhost:api.test\nx-timestamp:1499827319\nx-nonce:{one(made, 'x-nonce')}\n{hashlib.sha256(BODY).hexdigest()}"
    assert one(made, "x-signature") == "sha256=" + mac(b"transit/hmac/egress-stripe", text).hex()


def transit_messages(route: Route) -> None:
    made = in_vault(route)
    params = one(made, "signature-input").removeprefix("sig1=")
    digest = "sha-256=:" + base64.b64encode(hashlib.sha256(BODY).digest()).decode() + ":"
    base = (
        f'"@method": POST\n"@target-uri": https://api.test/x\n"content-digest": {digest}\n"@signature-params": {params}'
    )
    wanted = base64.b64encode(mac(b"transit/sign/egress-bank", base)).decode()
    assert one(made, "signature") == f"sig1=:{wanted}:"


def everywhere(route: Route) -> None:
    secret = {"access_key_id": "AKIA1", "secret_access_key": "s", "key": "s"}
    made = signed(route, outgoing("GET", b"/k"), secret)
    assert one(made, "x-amz-region-set") == "*"
    assert one(made, "authorization").startswith("AWS4-ECDSA-P256-SHA256 Credential=AKIA1/20170712/s3/aws4_request, ")


def akamai(route: Route) -> None:
    made = signed(
        route, outgoing("POST", b"/v1?a", body=BODY), {"client_token": "c", "client_secret": "s", "access_token": "a"}
    )
    head, _, signature = one(made, "authorization").rpartition("signature=")
    stamp = "20170712T02:41:59+0000"
    assert f";timestamp={stamp};nonce=" in head
    key = base64.b64encode(mac(b"s", stamp))
    content = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
    assert signature == base64.b64encode(mac(key, f"POST\thttps\tapi.test\t/v1?a\t\t{content}\t{head}")).decode()


def alibaba(route: Route) -> None:
    made = signed(route, outgoing("POST", b"/?b=1&a=2", body=BODY), {"access_key_id": "i", "access_key_secret": "s"})
    names = "host;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce"
    lines = "".join(f"{name}:{'api.test' if name == 'host' else one(made, name)}\n" for name in names.split(";"))
    canonical = f"POST\n/\na=2&b=1\n{lines}\n{names}\n{hashlib.sha256(BODY).hexdigest()}"
    wanted = mac(b"s", "ACS3-HMAC-SHA256\n" + hashlib.sha256(canonical.encode()).hexdigest()).hex()
    assert one(made, "authorization") == f"ACS3-HMAC-SHA256 Credential=i,SignedHeaders={names},Signature={wanted}"


def tencent(route: Route) -> None:
    made = signed(
        route, outgoing("POST", b"/", [(b"Content-Type", b"a/b")], BODY), {"secret_id": "i", "secret_key": "s"}
    )
    canonical = f"POST\n/\n\ncontent-type:a/b\nhost:api.test\n\ncontent-type;host\n{hashlib.sha256(BODY).hexdigest()}"
    text = "TC3-HMAC-SHA256\n1499827319\n2017-07-12/cvm/tc3_request\n" + hashlib.sha256(canonical.encode()).hexdigest()
    key = mac(mac(mac(b"TC3s", "2017-07-12"), "cvm"), "tc3_request")
    assert one(made, "authorization").endswith(f"Signature={mac(key, text).hex()}")


def bound(route: Route) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    made = signed(route, outgoing("POST", b"/x?q", body=None), {"private_key": pem, "key": "token"})
    text, _, signature = one(made, "dpop").rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    key.public_key().verify(der, text.encode(), ec.ECDSA(hashes.SHA256()))
    assert b'"htu":"https://api.test/x"' in base64.urlsafe_b64decode(text.split(".")[1] + "===")


CHECKS: dict[str, Callable[[Route], None]] = {
    "profile": profile,
    "binance": binance,
    "coinbase": coinbase,
    "bitstamp-like": other,
    "datadog": datadog,
    "aws": aws,
    "aws-session": aws_session,
    "messages": messages,
    "messages-hmac": messages_hmac,
    "transit-hmac": transit_hmac,
    "aws-everywhere": everywhere,
    "akamai": akamai,
    "alibaba": alibaba,
    "tencent": tencent,
    "bound-token": bound,
    "transit-messages": transit_messages,
}


@pytest.mark.parametrize("name", CHECKS)
def test_an_example_signs(name: str, tmp_path: Path) -> None:
    CHECKS[name](routes(tmp_path)[name])


def test_every_example_is_one_of_these(tmp_path: Path) -> None:
    assert set(routes(tmp_path)) == set(CHECKS)


def test_every_key_is_on_the_page() -> None:
    text = PAGE.read_text()
    for table in (HMAC, NAMES_SENT, AWS_SIGV4, HTTP_MESSAGE, TRANSIT, EDGEGRID, ACS3, TC3, DPOP):
        for key in table:
            assert f"`{key}`" in text or f"{key}:" in text, key
