"""Calls of Akamai's, Alibaba Cloud's and Tencent Cloud's own SDK with placeholder keys; prints one word of each answer.

`python clouds.py NAME`; proxy and roots come from the environment.
"""

import os
import sys

PLACEHOLDER = "ostiary-placeholder"


def akamai():
    import requests
    from akamai.edgegrid import EdgeGridAuth

    base = "https://akab-host.luna.akamaiapis.net"
    session = requests.Session()
    session.auth = EdgeGridAuth(PLACEHOLDER, PLACEHOLDER, PLACEHOLDER)
    yield session.get(f"{base}/identity-management/v3/user-profile", params={"actions": "true", "q": "a b/c~é"})
    yield session.post(f"{base}/papi/v1/properties", json={"productId": "p"}, headers={"X-Test1": "two   words"})
    yield session.post(f"{base}/ccu/v3/invalidate", data=b"x" * 60_000)
    yield session.put(f"{base}/papi/v1/properties/1", data=b"not signed by Akamai")


def alibaba():
    from alibabacloud_tea_openapi.client import Client
    from alibabacloud_tea_openapi.utils_models import Config, OpenApiRequest, Params
    from darabonba.runtime import RuntimeOptions

    runtime = RuntimeOptions(ca=os.environ["SSL_CERT_FILE"])
    client = Client(
        Config(
            access_key_id=PLACEHOLDER, access_key_secret=PLACEHOLDER, security_token=os.environ.get("CLOUD_TOKEN"),
            endpoint="ecs.cn-shanghai.aliyuncs.com",
        )
    )  # fmt: skip
    for style, method, path, kind, request in (
        ("RPC", "POST", "/", "formData", OpenApiRequest(query={"RegionId": "cn-shanghai", "Name": "a b+c/d~é"})),
        ("RPC", "POST", "/", "formData", OpenApiRequest(body={"RegionId": "cn-shanghai", "Name": "é"})),
        ("ROA", "POST", "/clusters/c-1", "json", OpenApiRequest(body={"name": "é"}, query={"Empty": ""})),
        ("ROA", "GET", "/api/v1/clusters", "json", OpenApiRequest(query={"page": "1"})),
    ):
        params = Params(
            action="DescribeIt", version="2014-05-26", protocol="HTTPS", method=method, auth_type="AK", style=style,
            pathname=path, req_body_type=kind, body_type="json",
        )  # fmt: skip
        yield client.call_api(params, request, runtime)["body"]["word"]


def tencent():
    from tencentcloud.common.common_client import CommonClient
    from tencentcloud.common.credential import Credential
    from tencentcloud.common.profile.client_profile import ClientProfile
    from tencentcloud.common.profile.http_profile import HttpProfile

    held = Credential(PLACEHOLDER, PLACEHOLDER, os.environ.get("CLOUD_TOKEN"))
    for method in ("POST", "GET"):
        # It verifies with the roots of certifi unless it is told others.
        http = HttpProfile(reqMethod=method, certification=os.environ["SSL_CERT_FILE"])
        client = CommonClient("cvm", "2017-03-12", held, "ap-guangzhou", ClientProfile(httpProfile=http))
        yield client.call_json("DescribeZones", {"Name": "a b/c~é"})["Response"]["word"]


for answer in globals()[sys.argv[1]]():
    print(answer if isinstance(answer, str) else answer.json()["word"])
