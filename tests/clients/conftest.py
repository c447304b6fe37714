"""A proxy that asks for a key, in front of one scripted upstream."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.harness.canaries import canary
from tests.harness.ostiary_process import Ostiary, command
from tests.harness.two_ways import ROOT, Served
from tests.harness.upstream import Script, Upstream

WORKLOAD = 'workloads:\n  billing: {proofs: [{key_hash: "sha256:HASH"}, {any: true}]}\n'
SECRET = "secret: {path: secret/egress/api, field: key}"


@pytest.fixture(scope="session")
def caller() -> tuple[str, str]:
    """A caller key and its hash."""
    minted = json.loads(command("key", "mint", "--workload", "billing", cwd=ROOT).stdout)
    return minted["key"], minted["hash"]


@pytest.fixture
def served(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], caller: tuple[str, str]
) -> Callable[..., Served]:
    """Makes a proxy whose routes are `routes`, or one route for all hosts with `inject`.

    The listener `sidecar` asks for the key; `open` knows the workload by itself.
    """

    def make(
        script: Script | None,
        *hosts: str,
        inject: str = '{bearer: "{secret}"}',
        routes: str | None = None,
        alpn: tuple[str, ...] = ("http/1.1",),
    ) -> Served:
        secret = canary()
        api = upstream(script, names=hosts, alpn=alpn)
        block = (
            routes or f"  api: {{match: {{host: [{', '.join(hosts)}]}}, allow: billing, {SECRET}, inject: {inject}}}"
        )
        proxy = ostiary(
            f"{WORKLOAD.replace('sha256:HASH', caller[1])}routes:\n{block}\n",
            listen='[{name: sidecar, bind: "127.0.0.1:0"}, {name: open, bind: "127.0.0.1:0", workload: billing}]',
            upstreams={f"{host}:443": api.port for host in hosts},
            secrets={"secret/egress/api": {"key": secret}},
        )
        proxy.canaries.append(caller[0])
        return Served(proxy, api, secret, caller[0])

    return make
