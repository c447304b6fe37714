"""G10, G11, G33, G34, G45, G52: paths never widen a grant, ties do not start, and each workload gets its own key."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.canaries import canary
from tests.harness.client import get, tunnel
from tests.harness.ostiary_process import Ostiary, command
from tests.harness.upstream import Upstream

NARROW = """
workloads:
  billing: {proofs: [{any: true}]}
routes:
  api:
    match: {host: api.test, methods: [GET, POST], paths: ["/v1/charges", "/v1/charges/**"]}
    allow: billing
    deny: [{paths: "/v1/charges/*/refund/**"}]
    secret: {path: secret/egress/api, field: key}
    inject: {bearer: "{secret}"}
"""


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin",
        "/v1/charges/../../admin",
        "/v1/charges/%2e%2e/admin",
        "/v1/charges/%2E%2E/admin",
        "/v1/charges/.%2e/admin",
        "/v1%2Fcharges",
        "/v1/charges%2fx",
        "/v1/charges;p=1",
        "/v1/charges/%3bp",
        "/v1/charges/%252e%252e/admin",
        "/v1/charges//x",
        "//v1/charges",
        "/v1/charges/x\\y",
        "/v1/charges/%5cx",
        "/v1/charges/%00",
        "/v1/charges/%c0%ae%c0%ae/admin",
        "/v1/charges/%ff",
        "/v1/charges/%zz",
        "/v1/charges/ch_1/refund",
        "/v1/charges/ch_1/refund/",
        "/v1/charges/ch_1/%72efund/x",
        "/V1/charges",
        "/v1/charge",
        "/v2/charges",
    ],
)
def test_g10_ambiguous_or_foreign_paths_get_nothing(ostiary_narrow: tuple[Ostiary, Upstream], path: str) -> None:
    proxy, api = ostiary_narrow
    before = api.connections
    answer = get(proxy.address("sidecar"), proxy.ca, path)
    assert answer.code in {"path_denied", "bad_request"}
    assert answer.status in {403, 400}
    assert api.connections == before


@pytest.fixture(scope="module")
def ostiary_narrow(
    tmp_path_factory: pytest.TempPathFactory, pki_narrow: tuple[Ostiary, Upstream]
) -> tuple[Ostiary, Upstream]:
    return pki_narrow


@pytest.fixture(scope="module")
def pki_narrow(tmp_path_factory: pytest.TempPathFactory, pki):  # type: ignore[no-untyped-def]  # one process for the whole table above
    api = Upstream(pki.context("api.test"))
    folder = tmp_path_factory.mktemp("narrow")
    proxy = Ostiary(
        folder,
        NARROW,
        ca_file=pki.ca_file,
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/api": {"key": canary()}},
    ).start()
    assert get(proxy.address("sidecar"), proxy.ca, "/v1/charges/ch_1").status == 200
    yield proxy, api
    leaks = proxy.leaks()
    proxy.stop()
    api.stop()
    assert not leaks, leaks


def test_g52_methods_and_overrides(ostiary_narrow: tuple[Ostiary, Upstream]) -> None:
    proxy, api = ostiary_narrow
    for method in ("DELETE", "TRACE", "PUT"):
        assert get(proxy.address("sidecar"), proxy.ca, "/v1/charges", method=method).code == "method_denied"
    assert (
        get(
            proxy.address("sidecar"),
            proxy.ca,
            "/v1/charges",
            "X-HTTP-Method-Override: DELETE",
            "X-Original-URL: /admin",
        ).status
        == 200
    )
    seen = api.requests[-1]
    assert seen.get("X-HTTP-Method-Override") is None
    assert seen.get("X-Original-URL") is None


def test_g11_the_single_encoded_slash_of_npm(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    policy = NARROW.replace('["/v1/charges", "/v1/charges/**"]', '["/@acme%2fwidget", "/-/**"]')
    api = upstream()
    proxy = ostiary(policy, upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}})
    for path in ("/@acme%2fwidget", "/@acme%2Fwidget"):
        assert get(proxy.address("sidecar"), proxy.ca, path).status == 200
        assert api.requests[-1].target == path
    for path in ("/@acme%2fother", "/@acme/widget", "/-/..%2f@acme%2fwidget", "/-/a%2fb", "/@acme%252fwidget"):
        assert get(proxy.address("sidecar"), proxy.ca, path).code == "path_denied"


def test_g33_two_equally_specific_routes_do_not_start(ostiary: Callable[..., Ostiary]) -> None:
    tie = NARROW + "  twin:\n    match: {host: api.test, methods: GET, paths: /v1/charges}\n    allow: billing\n"
    proxy = ostiary(tie, start=False)
    done = command("run", "--config", "ostiary.yaml", cwd=proxy.folder)
    assert done.returncode == 78
    assert b"policy.yaml:11:3: route 'twin' ties with route 'api'" in done.stderr
    assert done.stdout == b""


TWO = """
workloads:
  billing: {proofs: [{key_hash: "sha256:HASH1"}]}
  reports: {proofs: [{key_hash: "sha256:HASH2"}]}
credentials:
  first: {secret: {path: secret/egress/one, field: key}}
  second: {secret: {path: secret/egress/two, field: key}}
routes:
  api:
    match: {host: api.test}
    allow: [{workload: billing, credential: first}, {workload: reports, credential: second}]
    inject: {bearer: "{secret}"}
"""


def test_g34_the_workload_decides_which_key(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    import hashlib

    keys = {"billing": canary("caller-1"), "reports": canary("caller-2")}
    hashes = [hashlib.sha256(key.encode()).hexdigest() for key in keys.values()]
    api, one, two = upstream(), canary("one"), canary("two")
    proxy = ostiary(
        TWO.replace("HASH1", hashes[0]).replace("HASH2", hashes[1]),
        listen='[{name: sidecar, bind: "127.0.0.1:0"}]',
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/one": {"key": one}, "secret/egress/two": {"key": two}},
    )
    proxy.canaries += keys.values()
    proofs = {name: f"Proxy-Authorization: Bearer {key}" for name, key in keys.items()}
    with (
        tunnel(proxy.address("sidecar"), proxy.ca, "api.test:443", proofs["billing"]) as first,
        tunnel(proxy.address("sidecar"), proxy.ca, "api.test:443", proofs["reports"]) as second,
    ):
        for _ in range(3):
            assert first.request("GET /1 HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200
            assert second.request("GET /2 HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200
    for seen in api.requests:
        assert seen.get("Authorization") == f"Bearer {one if seen.target == '/1' else two}"
        assert seen.get("Proxy-Authorization") is None
    assert {record["workload"]: record["secret"] for record in proxy.audit("credential.opened")} == {
        "billing": "secret/egress/one",
        "reports": "secret/egress/two",
    }
