"""Over a real connection: what a token endpoint may do, and that the secret leaves to the right one alone."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from addons.client_certificate import ClientCertificate, read
from addons.clock import SystemClock
from addons.deriving.asking import MAX_ANSWER_BYTES, Ask, Asker, Way
from addons.egress import EgressRules, Forbidden, SystemResolver, networks
from addons.refusal import Code, Refusal
from ostiary.token_endpoints import contexts
from policies.derive import Endpoint
from policies.model import EgressSpec
from tests.harness.pki import Pki
from tests.harness.ports import refusing_port
from tests.harness.upstream import Seen, Upstream, Wire, serving
from vault.secret import Secret

SECRET = b"client_secret=very-secret"


async def asked(
    pki: Pki,
    port: int,
    *,
    allow: str = "127.0.0.0/8",
    rules: EgressRules | None = None,
    target: str = "/token",
    certificate: ClientCertificate | None = None,
) -> tuple[int, bytes]:
    asker = Asker(SystemResolver(SystemClock()), rules or EgressRules(), contexts(pki.ca_file))
    way = Way(networks((allow,)), EgressSpec((allow,), {"login.test:443": ("127.0.0.1", port)}))
    async with asyncio.timeout(20):
        reply = await asker.ask(
            Ask(Endpoint("login.test", 443, target), SECRET, ((b"X-A", b"b"),), certificate=certificate), way
        )
    return reply.status, reply.body


async def test_a_request_and_its_answer(
    upstream: Callable[..., Upstream], pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server = upstream(
        lambda _, wire: wire.send(
            b"HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        ),
        names=("login.test",),
    )
    assert await asked(pki, server.port, target="/token?a=1") == (200, b"ok")
    (seen,) = server.requests
    assert (seen.method, seen.target, seen.body, seen.get("Host"), seen.get("X-A")) == (
        "POST", "/token?a=1", SECRET, "login.test", "b",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 200 X\r\nContent-Length: 5\r\n\r\nab", Code.SECRET_UNAVAILABLE),
        (
            b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % (MAX_ANSWER_BYTES + 1) + b"a" * (MAX_ANSWER_BYTES + 1),
            Code.SECRET_MALFORMED,
        ),
        (b"HTTP/1.1 200 X\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nab", Code.SECRET_MALFORMED),
        (b"HTTP/1.1 100 X\r\n\r\n" * 20, Code.SECRET_MALFORMED),
        (b"very-secret\r\n\r\n", Code.SECRET_MALFORMED),
        (b"HTTP/1.1 200 X\r\n" + b"A: b\r\n" * 60_000 + b"\r\n", Code.SECRET_MALFORMED),
        (b"", Code.SECRET_UNAVAILABLE),
    ],
)
async def test_what_cannot_be_read(answer: bytes, code: Code, upstream: Callable[..., Upstream], pki: Pki) -> None:
    def script(_: Seen, wire: Wire) -> None:
        wire.send(answer)
        wire.close()

    server = upstream(script, names=("login.test",))
    with pytest.raises(Refusal) as refused:
        await asked(pki, server.port)
    # A server that closes with something unread resets the connection: what it said may be lost.
    assert refused.value.code is code or "did not answer" in refused.value.message
    assert "very-secret" not in refused.value.message
    assert len(server.requests) <= 1


async def test_a_redirect_is_not_followed(upstream: Callable[..., Upstream], pki: Pki) -> None:
    other = upstream(names=("login.test",))
    server = upstream(
        lambda _, wire: wire.answer(307, b"", (("Location", f"https://127.0.0.1:{other.port}/"),)),
        names=("login.test",),
    )
    assert (await asked(pki, server.port))[0] == 307
    assert other.connections == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"names": ("other.test",)},
        {"names": ("login.test",), "expired": True},
        {"names": ("login.test",), "self_signed": True},
    ],
)
async def test_nothing_is_said_to_one_that_does_not_prove_its_name(
    bad: dict[str, object], upstream: Callable[..., Upstream], pki: Pki
) -> None:
    server = upstream(**bad)
    with pytest.raises(Refusal) as refused:
        await asked(pki, server.port)
    assert refused.value.code is Code.SECRET_UNAVAILABLE
    assert "by TLS" in refused.value.message
    assert server.requests == []


def shown_by(pki: Pki) -> ClientCertificate:
    chain, key = pki.client("me")
    found = read(Secret(chain), Secret(key), "cert")
    assert isinstance(found, ClientCertificate)
    return found


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_certificate_is_shown_where_it_belongs(version: ssl.TLSVersion, pki: Pki, tmp_path: Path) -> None:
    """Whatever TLS version tells when: a certificate that is refused is no endpoint that is down."""
    good, other = (shown_by(one) for one in (pki, Pki.make(tmp_path / "other")))
    context = pki.asking("login.test")
    context.minimum_version = context.maximum_version = version
    with serving(Upstream(context)) as server:
        assert (await asked(pki, server.port, certificate=good))[0] == 200
        assert [seen.client for seen in server.requests] == ["me"]
        for shown in (other, None):
            with pytest.raises(Refusal) as refused:
                await asked(pki, server.port, certificate=shown)
            # A server that closes at once may reset the connection before its alert is read.
            down = any(what in refused.value.message for what in ("did not answer", "breaks off TLS"))
            assert refused.value.code is (Code.SECRET_UNAVAILABLE if down else Code.SECRET_DENIED)
        assert len(server.requests) == 1


async def test_addresses_are_vetted(upstream: Callable[..., Upstream], pki: Pki) -> None:
    server = upstream(names=("login.test",))
    own = EgressRules(forbidden=Forbidden(frozenset({("127.0.0.1", server.port)})))
    for allow, rules in (("10.0.0.0/8", None), ("127.0.0.0/8", own)):
        with pytest.raises(Refusal) as refused:
            await asked(pki, server.port, allow=allow, rules=rules)
        assert refused.value.code is Code.EGRESS_DENIED
    assert server.connections == 0
    with refusing_port() as port, pytest.raises(Refusal) as refused:
        await asked(pki, port)
    assert refused.value.code is Code.SECRET_UNAVAILABLE
