"""Who calls: caller keys, the 407 round on one connection, listeners that name a workload, Unix sockets."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable

import pytest

from tests.harness.canaries import canary
from tests.harness.client import Raw, get, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Upstream

KEYED = """
workloads:
  billing: {proofs: [{key_hash: "sha256:HASH"}]}
  reports: {proofs: [{any: true}]}
  local: {proofs: [{peer: {uid: UID}}]}
routes:
  api: {match: {host: api.test}, allow: [billing, reports, local], secret: {path: secret/egress/api, field: key}, inject: {bearer: "{secret}"}}
"""
LISTEN = '[{name: sidecar, bind: "127.0.0.1:0"}, {name: one, bind: "127.0.0.1:0", workload: reports}, {name: sock, bind: "unix:proxy.sock"}]'


def basic(user: str, password: str) -> str:
    return "Proxy-Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def keyed(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> tuple[Ostiary, Upstream, str]:
    key, api = "ost_" + canary("caller"), upstream()
    policy = KEYED.replace("HASH", hashlib.sha256(key.encode()).hexdigest()).replace("UID", str(os.getuid()))
    proxy = ostiary(
        policy, listen=LISTEN, upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}}
    )
    proxy.canaries.append(key)
    return proxy, api, key


def test_c3_the_407_round_on_one_connection(keyed: tuple[Ostiary, Upstream, str]) -> None:
    proxy, api, key = keyed
    with Raw(proxy.address("sidecar")) as raw:
        first = raw.connect("api.test:443")
        assert (first.status, first.code) == (407, "proof_required")
        assert [challenge.split()[0] for challenge in first.all("Proxy-Authenticate")] == ["Basic", "Bearer"]
        # A differently written authority on the retry, as some clients send it.
        assert raw.connect("API.test:443", basic("x", key)).status == 200
        raw.tls(proxy.ca, "api.test")
        assert (
            raw.request("GET / HTTP/1.1\r\nHost: api.test\r\nProxy-Authorization: Basic c3BvbzpmOnk=\r\n\r\n").status
            == 200
        )
    assert api.requests[0].get("Proxy-Authorization") is None
    assert proxy.wait_audit("credential.opened")[0]["proof"] == "key_hash"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "basic", "colons"])
def test_keys_as_bearer_and_basic(keyed: tuple[Ostiary, Upstream, str], scheme: str) -> None:
    proxy, _, key = keyed
    proofs = {"basic": basic("anyone", key), "colons": basic("", key)}
    proof = proofs.get(scheme, f"Proxy-Authorization: {scheme} {key}")
    assert get(proxy.address("sidecar"), proxy.ca, proof=proof).status == 200


@pytest.mark.parametrize(
    "proof",
    [
        "Proxy-Authorization: Bearer ost_wrong",
        basic("x", "ost_wrong"),
        basic("x", "a:b:c"),
        "Proxy-Authorization: Basic !!!",
        "Proxy-Authorization: Digest x",
        "Proxy-Authorization: Bearer",
    ],
)
def test_c3_a_wrong_proof_is_challenged_again(keyed: tuple[Ostiary, Upstream, str], proof: str) -> None:
    proxy, api, key = keyed
    with Raw(proxy.address("sidecar")) as raw:
        answer = raw.connect("api.test:443", proof)
        assert answer.status == 407
        assert answer.code in {"proof_invalid", "proof_required"}
        assert raw.connect("api.test:443", basic("x", key)).status == 200
    assert api.connections == 0
    assert proxy.wait_audit("request.refused")[0]["code"] == answer.code


def test_c3_beyond_the_budget_each_guess_costs_a_connection(keyed: tuple[Ostiary, Upstream, str]) -> None:
    proxy, _, key = keyed
    with Raw(proxy.address("sidecar")) as raw:
        for _ in range(20):
            assert raw.connect("api.test:443", basic("x", "guess")).status == 407
        last = raw.connect("api.test:443", basic("x", "guess"))
        assert (last.status, last.get("Connection")) == (407, "close")
        assert raw.closed()
    # The right key still works from the same address.
    assert get(proxy.address("sidecar"), proxy.ca, proof=basic("x", key)).status == 200


def test_two_proofs_in_one_request_are_refused(keyed: tuple[Ostiary, Upstream, str]) -> None:
    proxy, _, key = keyed
    with Raw(proxy.address("sidecar")) as raw:
        assert (
            raw.connect("api.test:443", basic("x", key), f"Proxy-Authorization: Bearer {key}").code == "proof_invalid"
        )


def test_a_listener_that_names_a_workload_serves_that_one_alone(keyed: tuple[Ostiary, Upstream, str]) -> None:
    proxy, _, key = keyed
    assert get(proxy.address("one"), proxy.ca).status == 200
    assert proxy.wait_audit("credential.opened")[0]["workload"] == "reports"
    with Raw(proxy.address("one")) as raw:
        assert raw.connect("api.test:443", basic("x", key)).code == "proof_invalid"


def test_a_unix_socket_proves_by_its_peer(keyed: tuple[Ostiary, Upstream, str]) -> None:
    proxy, _, _ = keyed
    address = proxy.address("sock")
    assert address.startswith("unix:")
    assert oct((proxy.folder / "proxy.sock").stat().st_mode & 0o777) == "0o600"
    assert get(address, proxy.ca).status == 200
    (record,) = proxy.wait_audit("credential.opened")
    assert (record["workload"], record["proof"], record["source"]) == ("local", "peer", f"unix:uid={os.getuid()}")
    proxy.stop()
    assert not (proxy.folder / "proxy.sock").exists()


def test_g25_a_key_that_is_withdrawn_ends_open_tunnels(keyed: tuple[Ostiary, Upstream, str]) -> None:
    import signal

    proxy, api, key = keyed
    with tunnel(proxy.address("sidecar"), proxy.ca, "api.test:443", basic("x", key)) as raw:
        assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200
        (proxy.folder / "policy.yaml").write_text(KEYED.replace("HASH", "0" * 64).replace("UID", "0"))
        assert proxy.process is not None
        proxy.process.send_signal(signal.SIGHUP)
        proxy.wait_audit("policy.loaded", 2)
        answer = raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert (answer.status, answer.code) == (403, "proof_expired")
        assert raw.closed()
    assert len(api.requests) == 1


def test_g56_unproven_refusals_are_coalesced(keyed: tuple[Ostiary, Upstream, str]) -> None:
    proxy, _, _ = keyed
    with Raw(proxy.address("sidecar")) as raw:
        for _ in range(200):
            assert raw.connect("api.test:443").status == 407
    proxy.stop()
    records = proxy.audit("request.refused")
    assert len(records) == 2
    assert records[1]["count"] == 199
