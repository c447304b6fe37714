"""A route that waits longer than the process does: its deadline counts, and nothing of the process's cuts it short."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.harness.canaries import canary
from tests.harness.client import tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, Upstream, Wire

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  model:
    match: {host: api.test}
    allow: billing
    secret: {path: secret/egress/api, field: key}
    inject: {bearer: "{secret}"}
    timeouts: {first_byte: 90s, idle: 90s}
"""
SILENCE_S = 36.0
"""Longer than the process's own second with the slack that a connection has on top."""


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_u2_a_patient_route_in_an_impatient_process(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    def thinks(seen: Seen, wire: Wire) -> None:
        time.sleep(SILENCE_S)
        wire.answer(200, b"thought")

    proxy = ostiary(
        POLICY,
        upstreams={"api.test:443": upstream(thinks).port},
        secrets={"secret/egress/api": {"key": canary()}},
        settings="limits: {first_byte_timeout: 1s, idle_timeout: 1s}\n",
    )
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.sock.settimeout(120)
        answer = raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
    assert (answer.status, answer.body) == (200, b"thought")
    (record,) = proxy.wait_audit("credential.closed")
    assert (record["outcome"], record["status"]) == ("ok", 200)
