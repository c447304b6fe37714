"""P6: the real process derives tokens, renews them, and keeps them from everyone."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.harness.client import Answer, get
from tests.harness.ostiary_process import Ostiary
from tests.harness.token_server import TokenServer, new_key
from tests.harness.upstream import Upstream

POLICY = """
workloads: {billing: {proofs: {any: true}}}
credentials:
  orders:
    secret: {path: secret/egress/orders, field: client_secret, ttl: 0}
    derive:
      client_credentials: {token_url: "https://login.test/token", client_id: "{secret.client_id}", client_secret: "{secret}", scopes: [read, write]}
routes:
  api: {match: {host: api.test, paths: ["/v1/**"]}, allow: billing, credential: orders, inject: {bearer: "{token}"}}
  other: {match: {host: api.test, paths: ["/other/**"]}, allow: billing, credential: orders, inject: {header: X-Api-Key, value: "{token}"}}
  github:
    match: {host: api.github.com}
    allow: billing
    secret: {path: secret/ci/github, field: private_key}
    derive: {github_app: {app_id: "{secret.app_id}", installation_id: "4711", private_key: "{secret}", permissions: {contents: read}, repositories: [one]}}
    inject: {bearer: "{token}"}
  minted:
    match: {host: minted.test}
    allow: billing
    secret: {path: secret/egress/minted, field: key}
    derive: {jwt: {algorithm: HS256, key: "{secret}", issuer: billing, audience: minted}}
    inject: {bearer: "{token}"}
"""


def asked(proxy: Ostiary, path: str = "/v1/x", authority: str = "api.test:443", *headers: str) -> Answer:
    return get(proxy.address("sidecar"), proxy.ca, path, *headers, authority=authority)


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def flights(proxy: Ostiary) -> list[dict[str, Any]]:
    return [one for one in proxy.audit("credential.closed") if one.get("reason", "").startswith("derive ")]


def test_a_token_lives_its_life(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    server = TokenServer(secrets={"or:ders": "s3/cret&1 +%"})
    key, pem = new_key()
    app = TokenServer(keys={"12345": (key.public_key(), "12345")})
    login = upstream(server, names=("login.test",))
    api = upstream(server.api, names=("api.test", "minted.test"))

    def github(seen: Any, wire: Any) -> None:
        (app if "/app/" in seen.target else app.api)(seen, wire)

    hub = upstream(github, names=("api.github.com",))
    proxy = ostiary(
        POLICY,
        upstreams={
            "login.test:443": login.port,
            "api.test:443": api.port,
            "minted.test:443": api.port,
            "api.github.com:443": hub.port,
        },
        secrets={
            "secret/egress/orders": {"client_id": "or:ders", "client_secret": "s3/cret&1 +%"},
            "secret/ci/github": {"app_id": "12345", "private_key": pem},
            "secret/egress/minted": {"key": "k" * 40},
        },
    )
    # --- used, by one flight for many and for both routes; what the API shows of it is taken out
    with ThreadPoolExecutor(8) as crowd:
        answers = list(crowd.map(lambda _: asked(proxy), range(8)))
    assert {answer.status for answer in answers} == {200}, (answers, server.refused)
    assert len(server.given) == 1
    (token,) = server.given
    proxy.canaries.append(token)
    for answer in answers:
        assert token.encode() not in answer.body
        assert answer.body.startswith(b"hello ")
        assert token not in str(answer.headers)
    assert api.requests[-1].get("Authorization") == f"Bearer {token}"
    asked(proxy, "/other/x")
    assert api.requests[-1].get("X-Api-Key") == token
    assert len(server.given) == 1
    assert server.forms[0] == {"scope": "read write"}
    # --- the flight is a use of the secret, and so is each request
    (flight,) = flights(proxy)
    assert (flight["secret"], flight["secret_version"], flight["host"], flight["path"], flight["status"], flight["outcome"]) == (
        "secret/egress/orders", "2", "login.test", "/token", 200, "ok",
    )  # fmt: skip
    opened = [one for one in proxy.audit("credential.opened") if one.get("route") == "api"]
    assert len(opened) == 8
    assert {(one["secret"], one["secret_version"]) for one in opened} == {("secret/egress/orders", "2")}
    # --- rejected: made anew once, and the request sent again
    server.dead.add(token)
    assert asked(proxy).status == 200
    assert len(server.given) == 2
    proxy.canaries.append(server.given[-1])
    # --- and not again within the cooldown
    server.dead.add(server.given[-1])
    assert asked(proxy).status == 401
    assert len(server.given) == 2
    server.dead.clear()
    # --- the client secret is rotated: the old token serves until the new one is there
    server.secrets["or:ders"] = "another one"
    proxy.set_secret("secret/egress/orders", "client_secret", "another one")
    assert asked(proxy).status == 200
    until(lambda: len(server.given) == 3)
    proxy.canaries.append(server.given[-1])
    until(lambda: asked(proxy).status == 200 and api.requests[-1].get("Authorization") == f"Bearer {server.given[-1]}")
    until(
        lambda: bool(
            [
                one
                for one in proxy.audit("credential.opened")
                if one.get("route") == "api" and one["secret_version"] == "3"
            ]
        )
    )
    # --- a wrong one is refused by the endpoint; what it says of the request is not repeated
    proxy.set_secret("secret/egress/orders", "client_secret", "a wrong one")
    assert asked(proxy).status == 200
    until(lambda: len(server.refused) == 1)
    assert len(server.given) == 3
    # --- GitHub App: permissions and repositories are asked for
    answer = asked(proxy, "/repos/a/one", "api.github.com:443", "Authorization: Bearer placeholder")
    assert answer.status == 200, app.refused
    proxy.canaries.append(app.given[0])
    assert app.given[0].encode() not in answer.body
    assert app.forms == [{"repositories": ["one"], "permissions": {"contents": "read"}}]
    # --- minted here: asked of nobody
    asked(proxy, "/v1/x", "minted.test:443")
    minted = (api.requests[-1].get("Authorization") or "").removeprefix("Bearer ")
    assert minted.count(".") == 2
    proxy.canaries.append(minted)
    assert 'ostiary_tokens_made_total{grant="client_credentials",result="ok"} 3.0' in proxy.get("/metrics")[1].decode()


def test_what_goes_wrong_at_the_endpoint(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    server = TokenServer(secrets={"orders": "right"}, down=True)
    login = upstream(server, names=("login.test",))
    api = upstream(server.api)
    route = POLICY.partition("  other:")[0]
    proxy = ostiary(
        route,
        upstreams={"login.test:443": login.port, "api.test:443": api.port},
        secrets={"secret/egress/orders": {"client_id": "orders", "client_secret": "wrong-secret"}},
    )
    answer = asked(proxy)
    assert (answer.status, answer.code) == (503, "secret_unavailable")
    assert answer.get("Retry-After") is not None
    server.down = False
    until(lambda: (asked(proxy).code) == "secret_denied")
    answer = asked(proxy)
    assert answer.status == 502
    assert b"invalid_client" in answer.body
    assert b"wrong-secret" not in answer.body
    # Remembered: a crowd does not reach the endpoint.
    refused = len(server.refused)
    for _ in range(5):
        assert asked(proxy).code == "secret_denied"
    assert len(server.refused) <= refused + 1
    # Mended: another version is tried at once.
    proxy.set_secret("secret/egress/orders", "client_secret", "right")
    server.broken = b'{"access_token": "two\\nlines"}'
    assert (asked(proxy).status, asked(proxy).code) == (502, "secret_malformed")
    server.broken = None
    until(lambda: asked(proxy).status == 200)
    proxy.canaries.append(server.given[-1])
    assert {one["outcome"] for one in flights(proxy)} == {"upstream_error", "ok"}
    assert not any(seen.target != "/v1/x" for seen in api.requests)
    assert len(proxy.audit("credential.opened")) == len(proxy.wait_audit("credential.closed"))
