"""Signers of single vendors against their own examples (vectors/README.md)."""

from __future__ import annotations

import calendar
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from addons.refusal import Code, Refusal
from addons.signing.acs3 import sign_acs3
from addons.signing.apply import Signing
from addons.signing.edgegrid import sign_edgegrid
from addons.signing.outgoing import Outgoing
from addons.signing.tc3 import service_of, sign_tc3
from policies.sign import Acs3Signer, EdgeGridSigner, Signer, Tc3Signer
from policies.template import parse_template
from tests.harness.signing import credential, outgoing

AKAMAI = json.loads((Path(__file__).parent / "vectors" / "edgegrid.json").read_text())
ID, KEY, TOKEN = (parse_template(f"{{secret.{name}}}") for name in ("id", "key", "token"))


def one(request: Outgoing, name: bytes) -> str:
    (value,) = request.values(name)
    return value.decode()


def at(text: str, form: str = "%Y-%m-%dT%H:%M:%SZ") -> float:
    return float(calendar.timegm(time.strptime(text, form)))


# --- Akamai ---


@pytest.mark.parametrize("case", AKAMAI["tests"], ids=lambda case: case["testName"])
def test_akamai(case: dict[str, Any]) -> None:
    asked = case["request"]
    signer = EdgeGridSigner(
        ID, KEY, TOKEN, tuple(name.lower() for name in AKAMAI["headers_to_sign"]), AKAMAI["max_body"]
    )
    fields = [(name.encode(), value.encode()) for field in asked.get("headers", []) for name, value in field.items()]
    host = AKAMAI["base_url"].split("/")[2].encode()
    request = outgoing(
        asked["method"], asked["path"].encode(), [one for one in fields if one[0] != b"Host"],
        asked.get("data", "").encode(), host=host,
    )  # fmt: skip
    held = credential({"id": AKAMAI["client_token"], "key": AKAMAI["client_secret"], "token": AKAMAI["access_token"]})
    sign_edgegrid(signer, request, held, at(AKAMAI["timestamp"], "%Y%m%dT%H:%M:%S+0000"), AKAMAI["nonce"])
    assert one(request, b"authorization") == case["expectedAuthorization"]


def test_akamai_covers_the_body_of_a_post_alone() -> None:
    signer = EdgeGridSigner(ID, KEY, TOKEN)
    signing = Signing([signer], 1)
    assert signing.judge(outgoing("POST", b"/").caller).reads_body
    assert not signing.judge(outgoing("PUT", b"/").caller).reads_body
    # A body that streams is never signed as if there were none.
    with pytest.raises(Refusal):
        sign_edgegrid(signer, outgoing("POST", b"/", body=None), credential({"id": "i", "key": "k", "token": "t"}), 1.0)
    made = [outgoing("PUT", b"/", body=None) for _ in range(2)]
    for request in made:
        sign_edgegrid(signer, request, credential({"id": "i", "key": "k", "token": "t"}), 1.0)
    assert one(made[0], b"authorization") != one(made[1], b"authorization"), "each has a nonce of its own"


# --- Alibaba Cloud: the fixed example of "V3 request structure and signature", read 2026-11 ---

ALIBABA = b"/?ImageId=win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd&RegionId=cn-shanghai"
ALIBABA_SIGNED = "06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"


def test_alibaba_cloud() -> None:
    request = outgoing(
        "POST", ALIBABA, [(b"x-acs-action", b"RunInstances"), (b"x-acs-version", b"2014-05-26")],
        host=b"ecs.cn-shanghai.aliyuncs.com",
    )  # fmt: skip
    held = credential({"id": "YourAccessKeyId", "key": "YourAccessKeySecret"})
    sign_acs3(Acs3Signer(ID, KEY), request, held, at("2023-10-26T10:22:32Z"), "3156853299f313e23d1673dc12e1703d")
    assert one(request, b"authorization") == (
        "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;"
        f"x-acs-signature-nonce;x-acs-version,Signature={ALIBABA_SIGNED}"
    )
    assert one(request, b"x-acs-content-sha256") == hashlib.sha256(b"").hexdigest()


def test_alibaba_cloud_with_temporary_keys_and_a_body() -> None:
    body = b'{"a": 1}'
    request = outgoing("POST", b"/clusters", [(b"Content-Type", b" application/json ")], body)
    sign_acs3(Acs3Signer(ID, KEY, TOKEN), request, credential({"id": "i", "key": "k", "token": "t"}), 1.0)
    assert one(request, b"x-acs-security-token") == "t"
    assert "SignedHeaders=content-type;host;x-acs-content-sha256;x-acs-date;x-acs-security-token;x-acs-signature-nonce," in one(request, b"authorization")  # fmt: skip
    assert one(request, b"x-acs-content-sha256") == hashlib.sha256(body).hexdigest()


# --- Tencent Cloud: the example of "Signature v3" (CVM, DescribeInstances) with the keys that its page once printed ---

TENCENT = {"id": "AKIDz8krbsJ5yKBZQpn74WFkmLPx3EXAMPLE", "key": "Gu5t9xGARNpq86cd98joQYCN3EXAMPLE"}
TENCENT_BODY = b'{"Limit": 1, "Filters": [{"Values": ["\\u672a\\u547d\\u540d"], "Name": "instance-name"}]}'
TENCENT_SIGNED = "72e494ea809ad7a8c8f7a4507b9bddcbaa8e581f516e8da2f66e2c5a96525168"


def test_tencent_cloud() -> None:
    request = outgoing(
        "POST", b"/", [(b"Content-Type", b"application/json; charset=utf-8")], TENCENT_BODY,
        host=b"cvm.tencentcloudapi.com",
    )  # fmt: skip
    sign_tc3(Tc3Signer(ID, KEY, ("cvm",)), "cvm", request, credential(TENCENT), 1_551_113_065.0)
    assert one(request, b"authorization") == (
        "TC3-HMAC-SHA256 Credential=AKIDz8krbsJ5yKBZQpn74WFkmLPx3EXAMPLE/2019-02-25/cvm/tc3_request, "
        f"SignedHeaders=content-type;host, Signature={TENCENT_SIGNED}"
    )
    assert one(request, b"x-tc-timestamp") == "1551113065"


def test_tencent_cloud_takes_the_service_from_the_sdk() -> None:
    signer = Tc3Signer(ID, KEY, ("cvm", "sts"), TOKEN)
    signed = b"TC3-HMAC-SHA256 Credential=PLACEHOLDER/2026-02-25/sts/tc3_request, SignedHeaders=content-type;host;x-tc-action, Signature=00"
    fields = [(b"Content-Type", b"application/json"), (b"X-TC-Action", b"GetCallerIdentity")]
    request = outgoing("POST", b"/", fields, b"{}", caller=[(b"Authorization", signed), *fields])
    signing = Signing([signer], 1)
    signing.sign(signing.judge(request.caller), request, credential({**TENCENT, "token": "t"}), 1_551_113_065.0)
    assert "/2019-02-25/sts/tc3_request, SignedHeaders=content-type;host;x-tc-action, " in one(
        request, b"authorization"
    )
    assert one(request, b"x-tc-token") == "t"
    for value, code in (
        (signed.replace(b"/sts/", b"/cos/"), Code.ACCESS_DENIED),
        (b"TC3-HMAC-SHA256 nothing", Code.BAD_REQUEST),
        (None, Code.BAD_REQUEST),
    ):
        caller = [(b"Authorization", value)] if value is not None else []
        with pytest.raises(Refusal) as refusal:
            service_of(signer, outgoing("POST", b"/", caller=caller).caller)
        assert refusal.value.code == code
    # Without a Content-Type nothing is signed.
    with pytest.raises(Refusal) as refusal:
        sign_tc3(signer, "sts", outgoing("GET", b"/"), credential({**TENCENT, "token": "t"}), 1.0)
    assert refusal.value.code == Code.BAD_REQUEST


@pytest.mark.parametrize("key", ["", "two words", "ends in a line end\n", "ä"])
@pytest.mark.parametrize(
    "signer",
    [EdgeGridSigner(ID, KEY, ID), Acs3Signer(ID, KEY), Tc3Signer(ID, KEY, ("cvm",))],
    ids=["eg", "acs3", "tc3"],
)
def test_a_key_of_another_shape(signer: Signer, key: str) -> None:
    request = outgoing("POST", b"/", [(b"Content-Type", b"a/b")], b"x")
    signing = Signing([signer], 1)
    with pytest.raises(Refusal) as refusal:
        signing.sign(signing.judge(request.caller), request, credential({"id": "i", "key": key}), 1.0)
    assert refusal.value.code == Code.SECRET_MALFORMED
    assert not request.values(b"authorization")
