"""Tokens against endpoints that lie about lives, and credentials that differ in nothing but a field."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import cast

import pytest

from addons.deriving import google_service_account
from addons.deriving.asking import Ask, Reply, Way
from addons.refusal import Code, Refusal
from policies import load_policy
from policies.derive import GoogleServiceAccount
from policies.model import CredentialSpec
from tests.addons.deriving.test_tokens import CLIENT, REF, REFRESH, Bench, stored
from vault.sealed import SealedFile, SealedStore
from vault.secret import Secret

ID_TOKEN = 'google_service_account: {key_json: "{secret.key}", audience: "https://a.test"}'
TWO = """
workloads: {w: {proofs: {any: true}}}
routes:
  a:
    match: {host: a.test}
    allow: w
    secret: {path: secret/egress/crm, field: one}
    derive: {jwt: {algorithm: HS256, key: "{secret}", ttl: 60s}}
    inject: {bearer: "{token}"}
  b:
    match: {host: b.test}
    allow: w
    secret: {path: secret/egress/crm, field: two}
    derive: {jwt: {algorithm: HS256, key: "{secret}", ttl: 60s}}
    inject: {bearer: "{token}"}
"""


@pytest.fixture
def file(tmp_path: Path) -> SealedFile:
    file = SealedFile.create(tmp_path / "secrets.sealed", tmp_path / "secrets.key")
    for name, value in (
        ("client_id", "crm"),
        ("client_secret", "secret-1"),
        ("one", "1" * 32),
        ("two", "2" * 32),
        ("key", "{}"),
        ("refresh_token", "refresh-0"),
    ):
        file.set(REF.path, name, Secret(value))
    return file


async def test_credentials_of_one_path_and_two_fields_share_no_token(file: SealedFile, tmp_path: Path) -> None:
    bench = Bench(SealedStore(file), CLIENT, tmp_path)
    path = tmp_path / "two.yaml"
    path.write_text(TWO)
    sources = []
    for route in load_policy([path]).routes.values():
        bench.spec = cast("CredentialSpec", route.credential)
        sources.append((bench.spec, bench.again()))
    tokens = []
    for bench.spec, source in sources:
        tokens.append(await bench.token(source))
    assert tokens[0] != tokens[1]
    assert len(bench.tokens) == 2
    await bench.deriving.close()


@pytest.mark.parametrize(
    "end", ["NaN", "Infinity", "-Infinity", "1" + "0" * 400, "1e400", "0", "-5", "1000", "true", '"2"']
)
def test_an_id_token_whose_end_is_none(end: str, file: SealedFile, tmp_path: Path) -> None:
    bench = Bench(SealedStore(file), ID_TOKEN, tmp_path)
    claims = base64.urlsafe_b64encode(b'{"exp": %b}' % end.encode()).rstrip(b"=").decode()
    reply = Reply(200, json.dumps({"id_token": f"a.{claims}.c"}).encode())
    with pytest.raises(Refusal) as refused:
        google_service_account.made(cast("GoogleServiceAccount", bench.spec.derive), reply, 1000.0)
    assert refused.value.code is Code.SECRET_MALFORMED


async def test_a_token_that_ended_on_its_way_is_a_failure_that_is_remembered(file: SealedFile, tmp_path: Path) -> None:
    bench = Bench(SealedStore(file), CLIENT, tmp_path)
    answered = bench.endpoint.ask

    async def slow(ask: Ask, _way: Way) -> Reply:
        reply = await answered(ask, _way)
        bench.clock.now_s += 2.0
        return Reply(reply.status, json.dumps(json.loads(reply.body) | {"expires_in": 1}).encode())

    bench.endpoint.ask = slow  # type: ignore[method-assign] # the slow one in its place
    for _ in range(5):
        with pytest.raises(Refusal) as refused:
            await bench.derived.read("w")
        assert refused.value.code is Code.SECRET_UNAVAILABLE
    assert bench.endpoint.asked == 1
    assert bench.observed.results == ["secret_unavailable"]
    await bench.deriving.close()


@pytest.mark.parametrize(
    "answer",
    [
        b'{"access_token": "a", "access_token": "b", "expires_in": 9}',
        b'{"access_token": "a", "expires_in": 9, "expires_in": 99999}',
        b'{"access_token": "a", "more": [{"x": 1, "x": 2}]}',
        b'{"access_token": "a", "access\\u005ftoken": "b"}',
    ],
)
async def test_an_answer_in_which_a_name_stands_twice_is_none(answer: bytes, file: SealedFile, tmp_path: Path) -> None:
    bench = Bench(SealedStore(file), CLIENT, tmp_path)

    async def twice(ask: Ask, _way: Way) -> Reply:
        assert ask.body
        return Reply(200, answer)

    bench.endpoint.ask = twice  # type: ignore[method-assign] # the odd one in its place
    with pytest.raises(Refusal) as refused:
        await bench.derived.read("w")
    assert refused.value.code is Code.SECRET_MALFORMED
    await bench.deriving.close()


async def test_a_new_refresh_token_is_kept_where_another_name_stands_twice(file: SealedFile, tmp_path: Path) -> None:
    """The endpoint has spent the old one. One that stands twice itself is nobody's."""
    bench = Bench(SealedStore(file), REFRESH, tmp_path)
    for answer, kept in (
        (b'{"access_token": "a", "access_token": "b", "refresh_token": "refresh-1"}', "refresh-1"),
        (b'{"access_token": "a", "refresh_token": "refresh-2", "refresh_token": "refresh-3"}', "refresh-1"),
    ):

        async def twice(ask: Ask, _way: Way, answer: bytes = answer) -> Reply:
            assert ask.body
            return Reply(200, answer)

        bench.endpoint.ask = twice  # type: ignore[method-assign] # the odd one in its place
        with pytest.raises(Refusal) as refused:
            await bench.derived.read("w")
        assert refused.value.code is Code.SECRET_MALFORMED
        assert stored(file, "refresh_token") == kept
        bench.clock.now_s += 100
    await bench.deriving.close()


@pytest.mark.parametrize("bad", [{"expires_in": 0}, {"access_token": "a\r\nb"}, {"token_type": "mac"}])
async def test_a_new_refresh_token_is_kept_whatever_else_is_wrong(
    bad: dict[str, object], file: SealedFile, tmp_path: Path
) -> None:
    bench = Bench(SealedStore(file), REFRESH, tmp_path)
    answered = bench.endpoint.ask

    async def odd(ask: Ask, _way: Way) -> Reply:
        reply = await answered(ask, _way)
        return Reply(reply.status, json.dumps(json.loads(reply.body) | bad).encode())

    bench.endpoint.ask = odd  # type: ignore[method-assign] # the odd one in its place
    with pytest.raises(Refusal) as refused:
        await bench.derived.read("w")
    assert refused.value.code is Code.SECRET_MALFORMED
    assert stored(file, "refresh_token") != "refresh-0"
    assert bench.audit.closed[-1]["code"] == "secret_malformed"
    assert len(bench.audit.closed) == len(bench.audit.opened)
    bench.endpoint.ask = answered  # type: ignore[method-assign] # as before
    bench.clock.now_s += 100
    assert await bench.token()
    await bench.deriving.close()
