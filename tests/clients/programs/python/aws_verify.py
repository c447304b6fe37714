"""Recomputes signatures of requests with botocore's own code.

Reads one JSON object a line: first the key, then requests as they arrived; writes one line for each: an empty string, or
what is wrong with it.
"""

import json
import re
import sys
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, SignedHeaders=([^,]+), Signature=([0-9a-f]{64})"
)
SKEW_S = 900


def judge(key, seen):
    url = f"https://{seen['host']}{seen['target']}"
    query = parse_qs(urlsplit(url).query, keep_blank_values=True)
    headers = {}
    for name, value in seen["headers"]:
        headers.setdefault(name.lower(), []).append(value)
    presigned = "X-Amz-Signature" in query
    if presigned:
        if "authorization" in headers:
            return "it is signed twice"
        access, day, region, service, _ = query["X-Amz-Credential"][0].split("/")
        names, signature, stamp = (query[f"X-Amz-{name}"][0] for name in ("SignedHeaders", "Signature", "Date"))
        token = query.get("X-Amz-Security-Token", [None])[0]
        url = url.replace(f"&X-Amz-Signature={signature}", "")
        kind = S3SigV4QueryAuth if service == "s3" else SigV4QueryAuth
    else:
        match = AUTHORIZATION.fullmatch(headers.get("authorization", [""])[0])
        if match is None or len(headers["authorization"]) > 1:
            return "it is not signed"
        access, day, region, service, names, signature = match.groups()
        stamp = headers["x-amz-date"][0]
        token = headers.get("x-amz-security-token", [None])[0]
        kind = S3SigV4Auth if service == "s3" else SigV4Auth
    if access != key["access"] or token != key.get("token"):
        return "it is signed by another key"
    if not stamp.startswith(day):
        return "its scope is of another day"
    signed = names.split(";")
    unsigned = [name for name in headers if name.startswith("x-amz-") and name not in signed]
    if unsigned or "host" not in signed or signed != sorted(signed):
        return f"not signed, or not in order: {unsigned} {signed}"
    moment = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if abs((datetime.now(UTC) - moment).total_seconds()) > SKEW_S and not key.get("any_time"):
        return "its time is not now"
    claim = headers.get("x-amz-content-sha256", [None])[0]
    if claim and re.fullmatch("[0-9a-f]{64}", claim) and claim != seen["sha256"]:
        return "its body is not what was signed"
    request = AWSRequest(method=seen["method"], url=url)
    for name in signed:
        if name != "host" and name not in headers:
            return f"{name} is signed and is not there"
        for value in headers.get(name, []) if name != "host" else [seen["host"]]:
            request.headers.add_header(name, value)
    request.context["timestamp"] = stamp
    signer = kind(Credentials(key["access"], key["secret"], key.get("token")), service, region)
    if kind is not S3SigV4QueryAuth:
        signer.payload = lambda _: seen["sha256"]
    text = signer.canonical_request(request)
    found = signer.signature(signer.string_to_sign(request, text), request)
    return "" if found == signature else f"botocore signs {found}, not {signature}, over\n{text}"


key = json.loads(sys.stdin.readline())
for line in sys.stdin:
    try:
        answer = judge(key, json.loads(line))
    except Exception as error:
        answer = repr(error)
    print(json.dumps(answer), flush=True)
