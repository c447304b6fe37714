"""V6: credentials that a real Vault lends, for users that it makes in a real database: lent to each route, replaced when
they are taken away, renewed before they end, and given back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.admin import Token, block, call
from tests.harness.client import get
from tests.harness.lending import MAY, PASSWORD, asks, connect, role, users
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.ostiary_process import Ostiary, command
from tests.harness.upstream import Upstream
from tests.harness.valkey import Valkey

POLICY = """
workloads: {billing: {proofs: {any: true}}}
credentials:
  reports:
    secret: {engine: database, path: database/creds/egress-ro}
routes:
  one:
    match: {host: api.test, paths: "/one/**"}
    allow: billing
    credential: reports
    inject: {basic: {username: "{secret.username}", password: "{secret.password}"}}
  two:
    match: {host: api.test, paths: "/two/**"}
    allow: billing
    credential: reports
    inject: {basic: {username: "{secret.username}", password: "{secret.password}"}}
  brief:
    match: {host: api.test, paths: "/brief/**"}
    allow: billing
    secret: {engine: database, path: creds/egress-brief, mount: database}
    inject: {basic: {username: "{secret.username}", password: "{secret.password}"}}
  denied:
    match: {host: api.test, paths: "/denied/**"}
    allow: billing
    secret: {engine: database, path: database/static/egress}
    inject: {basic: {username: "{secret.username}", password: "{secret.password}"}}
  nobody:
    match: {host: api.test, paths: "/nobody/**"}
    allow: billing
    secret: {engine: database, path: database/creds/egress-nobody}
    inject: {basic: {username: "{secret.username}", password: "{secret.password}"}}
"""


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with openbao_server(tmp_path_factory.mktemp("bao"), sealable=True) as server:
        server.policy("leases", MAY)
        yield server


@pytest.fixture
def database(bao: OpenBao, tmp_path: Path) -> Iterator[Valkey]:
    valkey = Valkey(tmp_path / "valkey", password=PASSWORD)
    try:
        connect(bao, valkey)
        role(bao, "egress-ro", "10m", "1h")
        yield valkey
    finally:
        valkey.kill()


def start(ostiary: Callable[..., Ostiary], bao: OpenBao, port: int) -> tuple[Ostiary, Token]:
    store = f'vault:\n  addresses: ["{bao.address}"]\n  auth: {{method: approle, role_id: "file:role-id", secret_id_file: secret-id}}'
    token = Token("security", "operator")
    proxy = ostiary(POLICY, start=False, upstreams={"api.test:443": port}, store=store, admin=block(token))
    role_id, secret_id = bao.approle("leases", "leases", token_no_default_policy=True)
    (proxy.folder / "role-id").write_text(role_id)
    (proxy.folder / "secret-id").write_text(secret_id)
    proxy.canaries += [secret_id, PASSWORD, token.value]
    return proxy.run(), token


def test_v6_lent_to_each_route_and_given_back(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao, database: Valkey
) -> None:
    api = upstream(asks(database))
    proxy, token = start(ostiary, bao, api.port)

    def ask(path: str) -> tuple[int, str]:
        answer = get(proxy.address("sidecar"), proxy.ca, path)
        return answer.status, answer.code or answer.body.decode()

    status, first = ask("/one/a")
    assert status == 200
    assert ask("/one/b") == (200, first), "one lease serves a route"
    status, second = ask("/two/a")
    assert (status, second == first) == (200, False), "each route has its own"
    assert users(database) == sorted([first, second])

    # What the audit says: which lease, never what it opens.
    opened = proxy.wait_audit("credential.opened", 3)
    assert {one["secret"] for one in opened} == {"database/creds/egress-ro"}
    assert [one["cache"] for one in opened] == ["miss", "hit", "miss"]
    assert opened[0]["lease"] == opened[1]["lease"] != opened[2]["lease"]
    assert opened[0]["lease"].startswith("database/creds/egress-ro/")
    found = bao.api("PUT", "sys/leases/lookup", {"lease_id": opened[0]["lease"]})["data"]
    assert found["id"] == opened[0]["lease"]

    # A path that Vault denies, and a role that there is not: typed, nothing is sent, and no lease of others is lost.
    reached = len(api.requests)
    assert ask("/denied/a") == (502, "secret_denied")
    assert ask("/nobody/a") == (502, "secret_missing")
    assert len(api.requests) == reached
    assert ask("/one/c") == (200, first)
    assert bao.api("PUT", "sys/leases/lookup", {"lease_id": opened[0]["lease"]})["data"]["id"]

    # Taken away behind our back: the caller's request is served by a new one.
    bao.api("PUT", "sys/leases/revoke", {"lease_id": opened[0]["lease"], "sync": True})
    assert users(database) == [second]
    status, third = ask("/one/d")
    assert (status, third not in {first, second}) == (200, True)
    assert ask("/two/b") == (200, second)

    # Who looks after it sees it, and may have another.
    secrets = call(proxy, "GET", "/secrets", token=token).json()["secrets"]
    mine = {one["routes"][0]: one for one in secrets if one["secret"] == "database/creds/egress-ro"}
    assert set(mine) == {"one", "two"}
    assert mine["one"]["lease"].startswith("database/creds/egress-ro/")
    assert 500 < mine["one"]["lease_seconds"] <= 600
    asked = ("secret", "refresh", "database/creds/egress-ro", "--admin", proxy.ready["admin"])
    done = command(*asked, cwd=proxy.folder, environ={"OSTIARY_ADMIN_TOKEN": token.value})
    assert done.returncode == 0, done.stderr
    status, fourth = ask("/one/e")
    assert (status, fourth not in {first, second, third}) == (200, True)

    # The end of Ostiary is the end of all it was lent.
    assert proxy.stop() == 0
    assert users(database) == []
    assert not proxy.leaks()


@pytest.mark.slow
def test_v6_renewed_replaced_and_through_an_outage(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao, database: Valkey
) -> None:
    """Leases of 4 s, of 8 s at most: no request fails while they change, nor while Vault is sealed for less than one."""
    role(bao, "egress-brief", "4s", "8s")
    proxy, _ = start(ostiary, bao, upstream(asks(database)).port)

    def until(end_s: float) -> list[tuple[int, str]]:
        answers = []
        while time.monotonic() < end_s:
            answer = get(proxy.address("sidecar"), proxy.ca, "/brief/a")
            answers.append((answer.status, answer.code or answer.body.decode()))
            time.sleep(0.05)
        return answers

    answers = until(time.monotonic() + 20)
    assert {status for status, _ in answers} == {200}
    names = list(dict.fromkeys(name for _, name in answers))
    assert 3 <= len(names) <= 6, "each was renewed once, then replaced before its max TTL"
    bao.seal()
    # The lease serves to its own end; then the answer is typed, and nothing is sent.
    last = until(time.monotonic() + 9)
    kinds = list(dict.fromkeys(last))
    assert [kind for kind in kinds if kind[0] == 200], "it served on"
    assert kinds[-1] == (503, "secret_unavailable")
    bao.unseal()
    end = time.monotonic() + 30
    while get(proxy.address("sidecar"), proxy.ca, "/brief/a").status != 200:
        assert time.monotonic() < end
        time.sleep(0.2)
    # A route that is gone needs no user: what was lent to it is given back long before it would have ended.
    role(bao, "egress-ro", "10m", "1h")
    assert get(proxy.address("sidecar"), proxy.ca, "/one/a").status == 200
    proxy.reload(
        POLICY.partition("routes:")[0] + "routes:" + POLICY.partition("routes:")[2].replace("  one:", "  other:")
    )
    end = time.monotonic() + 30
    while users(database):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert proxy.stop() == 0
    assert not proxy.leaks()
