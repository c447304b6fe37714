"""Recomputes signatures of requests with the code of Akamai's, Alibaba Cloud's and Tencent Cloud's own SDK.

Reads one JSON object a line: first the key, then requests as they arrived; writes one line for each: an empty string, or
what is wrong with it.
"""

import base64
import hashlib
import json
import re
import sys
from datetime import UTC, datetime
from types import SimpleNamespace
from urllib.parse import parse_qsl

from akamai.edgegrid.edgegrid import EdgeGridAuthHeaders
from alibabacloud_tea_openapi.utils import Utils
from requests.structures import CaseInsensitiveDict
from tencentcloud.common.abstract_client import AbstractClient
from tencentcloud.common.sign import Sign

EDGEGRID = re.compile(
    r"EG1-HMAC-SHA256 client_token=([^;]+);access_token=([^;]+);timestamp=([^;]+);nonce=([^;]+);signature=\S+"
)
ACS3 = re.compile(r"ACS3-HMAC-SHA256 Credential=([^,]+),SignedHeaders=([^,]+),Signature=[0-9a-f]{64}")
TC3 = re.compile(
    r"TC3-HMAC-SHA256 Credential=([^/]+)/([0-9-]+)/([a-z]+)/tc3_request, SignedHeaders=([^,]+), Signature=([0-9a-f]{64})"
)
SKEW_S = 900


def judge(key, seen):
    headers = {}
    for name, value in seen["headers"]:
        headers.setdefault(name.lower(), []).append(value)
    headers["host"] = [seen["host"]]
    if len(headers.get("authorization", [])) != 1:
        return "it is not signed once"
    request = SimpleNamespace(
        method=seen["method"], path=seen["target"].partition("?")[0], query=seen["target"].partition("?")[2],
        target=seen["target"], host=seen["host"], headers=headers, body=base64.b64decode(seen["body"]),
    )  # fmt: skip
    sent = headers["authorization"][0]
    if sent.startswith("EG1"):
        made, moment = edgegrid(key, request, sent)
    elif sent.startswith("ACS3"):
        made, moment = acs3(key, request, sent)
    else:
        made, moment = tc3(key, request, sent)
    if abs((datetime.now(UTC) - moment).total_seconds()) > SKEW_S and not key.get("any_time"):
        return "its time is not now"
    return "" if made == sent else f"the SDK signs {made}, not {sent}"


def edgegrid(key, request, sent):
    _, _, timestamp, nonce = EDGEGRID.fullmatch(sent).groups()
    signer = EdgeGridAuthHeaders(
        key["id"], key["secret"], key["token"], headers_to_sign=key.get("headers", []), max_body=131_072
    )
    plain = SimpleNamespace(
        method=request.method, url=f"https://{request.host}{request.target}", body=request.body,
        headers=CaseInsensitiveDict({name: ",".join(values) for name, values in request.headers.items()}),
    )  # fmt: skip
    moment = datetime.strptime(timestamp, "%Y%m%dT%H:%M:%S%z")
    return signer.make_auth_header(plain, timestamp, nonce), moment


def acs3(key, request, sent):
    _, names = ACS3.fullmatch(sent).groups()
    signed = names.split(";")
    unsigned = [name for name in request.headers if name.startswith("x-acs-") and name not in signed]
    if unsigned or "host" not in signed or ("content-type" in request.headers and "content-type" not in signed):
        raise ValueError(f"not signed: {unsigned} {signed}")
    if request.headers.get("x-acs-security-token") != ([key["token"]] if key.get("token") else None):
        raise ValueError("another token")
    plain = SimpleNamespace(
        method=request.method, pathname=request.path, query=dict(parse_qsl(request.query, keep_blank_values=True)),
        headers={name: request.headers[name][0] for name in signed},
    )  # fmt: skip
    payload = hashlib.sha256(request.body).hexdigest()
    if request.headers["x-acs-content-sha256"] != [payload]:
        raise ValueError("another body")
    moment = datetime.strptime(request.headers["x-acs-date"][0], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return Utils.get_authorization(plain, "ACS3-HMAC-SHA256", payload, key["id"], key["secret"]), moment


def tc3(key, request, sent):
    _, day, service, names, _ = TC3.fullmatch(sent).groups()
    if request.headers.get("x-tc-token") != ([key["token"]] if key.get("token") else None):
        raise ValueError("another token")
    stamp = request.headers["x-tc-timestamp"][0]
    if day != datetime.fromtimestamp(int(stamp), UTC).strftime("%Y-%m-%d"):
        raise ValueError("another day")
    kind = request.headers["content-type"][0]
    plain = SimpleNamespace(
        method=request.method, uri=request.path, data=request.query if request.method == "GET" else request.body,
        header={"Content-Type": kind, "Host": request.host, "X-TC-Timestamp": stamp},
    )  # fmt: skip
    if names == "content-type;host":
        signature = AbstractClient._get_tc3_signature(None, {}, plain, day, service, key["secret"])
    elif names == "content-type;host;x-tc-action":
        # The SDK's own text has two fields; that of the documentation has the action too. Its chain of keys is used.
        action = request.headers["x-tc-action"][0].lower()
        lines = f"content-type:{kind}\nhost:{request.host}\nx-tc-action:{action}\n"
        sha256 = hashlib.sha256(request.body).hexdigest()
        text = f"{request.method}\n{request.path}\n{request.query}\n{lines}\n{names}\n{sha256}".encode()
        head = f"TC3-HMAC-SHA256\n{stamp}\n{day}/{service}/tc3_request\n{hashlib.sha256(text).hexdigest()}"
        signature = Sign.sign_tc3(key["secret"], day, service, head)
    else:
        raise ValueError(names)
    place = f"{key['id']}/{day}/{service}/tc3_request"
    moment = datetime.fromtimestamp(int(stamp), UTC)
    return f"TC3-HMAC-SHA256 Credential={place}, SignedHeaders={names}, Signature={signature}", moment


key = json.loads(sys.stdin.readline())
for line in sys.stdin:
    try:
        answer = judge(key, json.loads(line))
    except Exception as error:
        answer = repr(error)
    print(json.dumps(answer), flush=True)
