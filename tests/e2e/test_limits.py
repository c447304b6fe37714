"""What `0` means for a deadline: that there is none, in every place that has one."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.harness.client import tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Upstream

POLICY = """
workloads: {billing: {proofs: [{any: true}]}}
routes:
  api:
    match: {host: localhost, port: PORT}
    allow: billing
    secret: {path: secret/egress/api, field: key}
    inject: {bearer: "{secret}"}
"""
NONE = "limits: {header_timeout: 0, connect_timeout: 0, first_byte_timeout: 0, idle_timeout: 0, drain_timeout: 0}\n"


def test_without_deadlines_a_name_is_resolved_and_a_slow_head_is_waited_for(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream(names=("localhost",))
    authority = f"localhost:{api.port}"
    proxy = ostiary(
        POLICY.replace("PORT", str(api.port)), settings=NONE, secrets={"secret/egress/api": {"key": "cnry-none"}}
    )
    with tunnel(proxy.address("sidecar"), proxy.ca, authority) as raw:
        raw.send(b"GET / HTTP/1.1\r\n")
        time.sleep(0.5)
        assert raw.request(f"Host: {authority}\r\n\r\n").status == 200
    assert len(api.requests) == 1
