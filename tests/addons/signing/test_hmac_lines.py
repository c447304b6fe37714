"""The HMAC profile exactly as it is written down, and templates against vendors' own examples."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Any

import pytest

from addons.credentials import Credential
from addons.refusal import Code, Refusal
from addons.signing.hmac_lines import profile_text, sign_hmac
from addons.signing.outgoing import Outgoing
from policies.sign import HmacSigner, SentName
from policies.template import parse_template
from tests.harness.signing import credential, outgoing

KEY = "s1-key-0123456789"
NOW_S = 1_767_225_600.9
BODY = b'{"amount": 1}'


def signed_hmac(signer: HmacSigner, request: Outgoing, held: Credential, now_s: float) -> Outgoing:
    sign_hmac(signer, request, held, now_s)
    return request


def signer(**given: Any) -> HmacSigner:
    return HmacSigner(
        **{
            "key": parse_template("{secret}"),
            "signature": SentName("header", "X-Signature"),
            "timestamp": SentName("header", "X-Timestamp"),
            "nonce": None,
            **given,
        }
    )


def mac(text: bytes, key: bytes = KEY.encode(), digest: str = "sha256") -> bytes:
    return hmac.new(key, text, digest).digest()


def test_the_profile_as_it_is_written() -> None:
    made = signed_hmac(signer(), outgoing("POST", b"/v1/x?b=2&a=%20", body=BODY), credential({"key": KEY}), NOW_S)
    text = f"POST\n/v1/x?b=2&a=%20\nx-timestamp:1767225600\n{hashlib.sha256(BODY).hexdigest()}"
    assert made.values(b"x-timestamp") == [b"1767225600"]
    assert made.values(b"x-signature") == [b"sha256=" + mac(text.encode()).hex().encode()]


def test_every_line_of_the_profile() -> None:
    one = signer(
        headers=("content-type", "x-absent", "x-twice"), host=True, nonce=SentName("header", "X-Once"),
        signature=SentName("header", "X-Sig"), timestamp=SentName("header", "X-Time"), prefix="v1,", encoding="base64", algorithm="sha512",
    )  # fmt: skip
    fields = [(b"Content-Type", b" text/plain "), (b"X-Twice", b"1"), (b"x-twice", b"2 ")]
    made = signed_hmac(one, outgoing("PUT", b"/", fields, b""), credential({"key": KEY}), NOW_S)
    (nonce,) = made.values(b"x-once")
    assert re.fullmatch(rb"[0-9a-f]{32}", nonce)
    text = b"\n".join([
        b"PUT", b"/", b"host:api.test", b"content-type:text/plain", b"x-absent:", b"x-twice:1,2", b"x-timestamp:1767225600",
        b"x-nonce:" + nonce, hashlib.sha256(b"").hexdigest().encode(),
    ])  # fmt: skip
    assert made.values(b"x-sig") == [b"v1," + base64.b64encode(mac(text, digest="sha512"))]
    again = signed_hmac(one, outgoing("PUT", b"/", fields, b""), credential({"key": KEY}), NOW_S)
    assert again.values(b"x-once") != [nonce]


def test_a_signature_in_the_query_does_not_sign_itself() -> None:
    one = signer(signature=SentName("query", "sig&n"), timestamp=SentName("query", "t"), prefix="")
    made = signed_hmac(one, outgoing("GET", b"/a?x=1", body=b""), credential({"key": KEY}), NOW_S)
    text = f"GET\n/a?x=1&t=1767225600\nx-timestamp:1767225600\n{hashlib.sha256(b'').hexdigest()}"
    assert made.target == b"/a?x=1&t=1767225600&sig%26n=" + mac(text.encode()).hex().encode()


@pytest.mark.parametrize(
    ("encoding", "stored", "key"),
    [
        ("utf8", "k", b"k"),
        ("hex", "00fF", b"\x00\xff"),
        ("base64", "AP8=", b"\x00\xff"),
    ],
)
def test_keys_are_stored_in_several_ways(encoding: str, stored: str, key: bytes) -> None:
    made = signed_hmac(signer(key_encoding=encoding), outgoing("GET", b"/"), credential({"key": stored}), NOW_S)
    text = profile_text(outgoing("GET", b"/"), "1767225600", "", (), host=False)
    assert made.values(b"x-signature") == [b"sha256=" + mac(text, key).hex().encode()]


@pytest.mark.parametrize(
    ("encoding", "stored"),
    [
        ("utf8", ""),
        ("utf8", "k\n"),
        ("utf8", "a\0b"),
        ("hex", "abc"),
        ("hex", "zz"),
        ("base64", "%"),
        ("base64", "a\n"),
        ("hex", ""),
    ],
)
def test_a_key_that_is_none_is_malformed(encoding: str, stored: str) -> None:
    with pytest.raises(Refusal) as caught:
        sign_hmac(signer(key_encoding=encoding), outgoing("GET", b"/"), credential({"key": stored}), NOW_S)
    assert caught.value.code is Code.SECRET_MALFORMED


def test_a_body_that_is_not_there_is_never_signed() -> None:
    with pytest.raises(Refusal) as caught:
        sign_hmac(signer(), outgoing("POST", b"/", body=None), credential({"key": KEY}), NOW_S)
    assert caught.value.code is Code.INTERNAL


# developers.binance.com/docs/binance-spot-api-docs/rest-api/request-security (read 2026-11): key, parameters and signatures.
BINANCE_KEY = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"
BINANCE_NOW_S = 1_499_827_319.559


def binance() -> HmacSigner:
    return signer(
        template=parse_template("{query}{body}"), prefix="", timestamp_form="milliseconds",
        signature=SentName("query", "signature"), timestamp=SentName("query", "timestamp"),
    )  # fmt: skip


def test_the_example_of_binance() -> None:
    parameters = b"symbol=LTCBTC&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1&recvWindow=5000"
    request = outgoing("POST", b"/api/v3/order?" + parameters, body=b"")
    made = signed_hmac(binance(), request, credential({"key": BINANCE_KEY}), BINANCE_NOW_S)
    assert made.target.endswith(
        b"&recvWindow=5000&timestamp=1499827319559&signature=c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71"
    )


def test_a_template_reads_every_part_of_the_request() -> None:
    template = (
        "{method} {target} {path} {query} {host} {timestamp} {nonce} {body} {body_sha256} {header.X-A} {secret.id} {{}}"
    )
    one = signer(
        template=parse_template(template),
        prefix="",
        nonce=SentName("header", "n"),
        timestamp_form="rfc3339",
        encoding="base64url",
    )
    request = outgoing("PATCH", b"/p?q=1", [(b"x-a", b" v ")], BODY)
    made = signed_hmac(one, request, credential({"key": KEY, "id": "app"}), NOW_S)
    (nonce,) = made.values(b"n")
    text = f"PATCH /p?q=1 /p q=1 api.test 2026-01-01T00:00:00Z {nonce.decode()} {BODY.decode()} {hashlib.sha256(BODY).hexdigest()} v app {{}}"
    assert made.values(b"x-signature") == [base64.urlsafe_b64encode(mac(text.encode())).rstrip(b"=")]
    assert one.reads_body
    assert one.binds_host
