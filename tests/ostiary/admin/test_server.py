"""The server's bounds: connections, heads, bodies, times, failures of an operation, and failed tokens."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

from addons.clock import SystemClock
from ostiary.admin import (
    AdminRefusal,
    Control,
    Readiness,
    Refreshed,
    Rejected,
    Reloaded,
    Routes,
    SecretFailed,
    SecretStatus,
    Use,
    server,
    start_listeners,
)
from ostiary.settings.model import AdminToken
from policies.faults import Fault, Place

TOKEN = AdminToken("ci", hashlib.sha256(b"ost_right").hexdigest(), frozenset({"admin"}))
RIGHT = "Authorization: Bearer ost_right"


@dataclass
class Proxy:
    """A proxy that does as it is told, and what it was asked."""

    address: tuple[str, int] = ("", 0)
    refusals: list[AdminRefusal] = field(default_factory=list)
    refreshed: list[tuple[str, str]] = field(default_factory=list)
    reload: Callable[[str], Awaitable[Reloaded | Rejected]] | None = None
    connections: Callable[[], int] = lambda: 0

    def control(self) -> Control:
        async def reload(by: str) -> Reloaded | Rejected:
            assert self.reload is not None
            return await self.reload(by)

        async def readiness() -> Readiness:
            return Readiness("v1", ())

        async def routes() -> Routes:
            return Routes("v1", ())

        async def metrics(accept: str) -> tuple[bytes, str]:
            return f"# {accept}\n".encode() * 200_000, "text/plain"

        async def secrets() -> tuple[SecretStatus, ...]:
            return (SecretStatus("secret/a b", ("api",), version="2", before_last_use=Use("r", "billing", "api", 1.5)),)

        async def refresh(name: str, by: str) -> Refreshed | SecretFailed | None:
            self.refreshed.append((name, by))
            if name == "secret/x":
                return SecretFailed("sealed")
            return Refreshed(name, "2", changed=True) if name == "secret/a b" else None

        return Control(reload, routes, readiness, metrics, self.refusals.append, secrets, refresh)


@contextlib.asynccontextmanager
async def serving(**given: Any) -> AsyncIterator[Proxy]:
    proxy = Proxy(**given)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        proxy.address = bound.getsockname()
        listeners = start_listeners(bound, None, [TOKEN], proxy.control(), SystemClock())
        proxy.connections = lambda: len(listeners.servers[0]._connections)
        try:
            yield proxy
        finally:
            await listeners.end()
            assert proxy.connections() == 0


class Client:
    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(*self.proxy.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def send(self, first: str, *headers: str, body: bytes = b"") -> None:
        host, port = self.proxy.address
        self.writer.write("\r\n".join((f"{first} HTTP/1.1", f"Host: {host}:{port}", *headers, "", "")).encode() + body)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(10):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            return int(lines[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def ask(self, first: str, *headers: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        self.send(first, *headers, body=body)
        return await self.answer()

    async def ended(self) -> bytes:
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


def type_of(body: bytes) -> str:
    return str(json.loads(body)["type"]).rpartition(":")[2]


async def test_one_connection_serves_many_and_pipelined_requests() -> None:
    async with serving() as proxy, Client(proxy) as client:
        ids = set()
        for path, status in (("/healthz", 200), ("/nothing", 404), ("/routes", 200)):
            found, headers, _ = await client.ask(f"GET {path}", RIGHT)
            assert found == status
            ids.add(headers["x-request-id"])
        assert len(ids) == 3
        client.send("GET /healthz")
        client.send("GET /routes")
        assert [(await client.answer())[0] for _ in range(2)] == [200, 401]


async def test_an_operation_that_fails_is_told_by_its_type(caplog: pytest.LogCaptureFixture) -> None:
    async def reload(by: str) -> Reloaded:
        raise RuntimeError("cnry-in-an-exception")

    with caplog.at_level(logging.ERROR, "ostiary.admin"):
        async with serving(reload=reload) as proxy, Client(proxy) as client:
            status, _, body = await client.ask("POST /reload", RIGHT)
            assert (status, type_of(body)) == (500, "internal")
            assert (await client.ask("GET /healthz"))[0] == 200
    assert b"cnry" not in body
    assert "RuntimeError" in caplog.text
    assert "cnry" not in caplog.text


async def test_an_operation_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ANSWER_S", 0.05)

    async def reload(by: str) -> Reloaded:
        await asyncio.sleep(60)
        raise AssertionError

    async with serving(reload=reload) as proxy, Client(proxy) as client:
        status, _, body = await client.ask("POST /reload", RIGHT)
        assert (status, type_of(body)) == (503, "timeout")


async def test_a_caller_that_goes_away_stops_nothing() -> None:
    begun, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def reload(by: str) -> Reloaded:
        begun.set()
        await go.wait()
        ended.set()
        return Reloaded("v2", 1, changed=True)

    async with serving(reload=reload) as proxy:
        async with Client(proxy) as client:
            client.send("POST /reload", RIGHT)
            await begun.wait()
        go.set()
        async with asyncio.timeout(5):
            await ended.wait()
        async with Client(proxy) as client:
            assert (await client.ask("GET /healthz"))[0] == 200


async def test_faults_are_told() -> None:
    async def reload(by: str) -> Rejected:
        return Rejected("v1", (Fault(Place("p.yaml", 3, 7), "unknown key 'x'", "remove it"),))

    async with serving(reload=reload) as proxy, Client(proxy) as client:
        status, headers, body = await client.ask("POST /reload", RIGHT)
    assert (status, headers["content-type"]) == (422, "application/problem+json")
    shown = json.loads(body)
    assert shown["faults"] == ["p.yaml:3:7: unknown key 'x' (remove it)"]
    assert shown["policy"] == "v1"
    assert shown["detail"] == "1 fault; policy v1 stays in force."


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (("Content-Length: 2",), b"{}"),
        (("Transfer-Encoding: chunked",), b"2\r\n{}\r\n0\r\n\r\n"),
        (("Content-Length: 60000",), b"x" * 60_000),
    ],
)
async def test_a_body_that_nobody_wants_is_dropped(headers: tuple[str, ...], body: bytes) -> None:
    async with serving() as proxy, Client(proxy) as client:
        for token, status, kind in ((RIGHT, 413, "body_too_large"), ("X-None: 1", 401, "token_required")):
            found, _, shown = await client.ask("POST /reload", token, *headers, body=body)
            assert (found, type_of(shown)) == (status, kind)
        # Nothing of it was taken for another request.
        assert (await client.ask("GET /healthz"))[0] == 200


async def test_a_large_body_is_not_read() -> None:
    async with serving() as proxy:
        for given in ("Content-Length: 1000000", "Content-Length: " + "9" * 5000):
            async with Client(proxy) as client:
                status, _, body = await client.ask("POST /reload", RIGHT, given)
                assert (status, type_of(body)) == (413, "body_too_large")
                assert await client.ended() == b""
        async with Client(proxy) as client:
            client.send(
                "POST /reload",
                RIGHT,
                "Transfer-Encoding: chunked",
                body=b"10000\r\n" + b"x" * 65536 + b"\r\n9\r\n123456789\r\n",
            )
            assert (await client.answer())[0] == 413
            assert await client.ended() == b""


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost x\r\n\r\n",
        b"POST /reload HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /reload HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /reload HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST /reload HTTP/1.1\r\nHost: HOST\r\nContent-Length: \xb2\r\n\r\n",
        b"POST /reload HTTP/1.1\r\nHost: HOST\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
    ],
    ids=range(9),
)
async def test_what_is_no_request_ends_the_connection(raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with serving() as proxy, Client(proxy) as client:
        host, port = proxy.address
        client.writer.write(raw.replace(b"HOST", f"{host}:{port}".encode()))
        assert await client.ended() in {b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"}
        async with Client(proxy) as other:
            assert (await other.ask("GET /healthz"))[0] == 200
    assert caplog.records == []  # nobody fills the log from outside


async def test_slow_heads_and_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.1)
    monkeypatch.setattr(server, "BODY_S", 0.1)
    async with serving() as proxy:
        async with Client(proxy) as silent, Client(proxy) as head, Client(proxy) as body:
            head.writer.write(b"GET /healthz HTTP/1.1\r\nHo")
            body.send("POST /reload", RIGHT, "Content-Length: 10", body=b"x")
            for client in (silent, head, body):
                assert await client.ended() == b""
        assert proxy.refusals == []


async def test_an_answer_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "EXCHANGE_S", 0.2)
    async with serving() as proxy, Client(proxy) as client:
        client.send("GET /metrics", "Accept: " + "x" * 100)  # 20 MB, more than sockets buffer
        async with asyncio.timeout(5):
            while not proxy.connections():
                await asyncio.sleep(0.01)
            while proxy.connections():
                await asyncio.sleep(0.01)


async def test_at_the_cap_the_longest_idle_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    begun, go = asyncio.Event(), asyncio.Event()

    async def reload(by: str) -> Reloaded:
        begun.set()
        await go.wait()
        return Reloaded("v2", 1, changed=True)

    async with serving(reload=reload) as proxy, Client(proxy) as busy, Client(proxy) as first, Client(proxy) as second:
        busy.send("POST /reload", RIGHT)
        await begun.wait()
        assert (await first.ask("GET /healthz"))[0] == 200
        assert (await second.ask("GET /healthz"))[0] == 200
        async with Client(proxy) as late:
            assert (await late.ask("GET /healthz"))[0] == 200
            assert await first.ended() == b""
            assert (await second.ask("GET /healthz"))[0] == 200
            assert proxy.connections() == 3
        go.set()
        assert (await busy.answer())[0] == 200


async def test_at_the_cap_with_everybody_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
    begun, go = asyncio.Event(), asyncio.Event()

    async def reload(by: str) -> Reloaded:
        begun.set()
        await go.wait()
        return Reloaded("v2", 1, changed=True)

    async with serving(reload=reload) as proxy, Client(proxy) as busy:
        busy.send("POST /reload", RIGHT)
        await begun.wait()
        async with Client(proxy) as late:
            late.send("GET /healthz")
            assert await late.ended() == b""
        go.set()
        assert (await busy.answer())[0] == 200


async def test_failed_tokens_cost_a_connection_each_once_the_budget_is_spent() -> None:
    async with serving() as proxy:
        async with Client(proxy) as client:
            for _ in range(20):
                status, headers, body = await client.ask("GET /routes", "Authorization: Bearer ost_wrong")
                assert (status, type_of(body)) == (401, "token_invalid")
                assert headers["www-authenticate"] == 'Bearer realm="ostiary", error="invalid_token"'
                assert "connection" not in headers
            status, headers, _ = await client.ask("GET /routes", "Authorization: Bearer ost_wrong")
            assert (status, headers["connection"]) == (401, "close")
            assert await client.ended() == b""
        async with Client(proxy) as client:
            # A right token is never refused: several callers may share an address.
            assert (await client.ask("GET /routes", RIGHT))[0] == 200
        assert {(one.code, one.source, one.path, one.by) for one in proxy.refusals} == {
            ("token_invalid", "127.0.0.1", "/routes", "")
        }
        assert len(proxy.refusals) == 21
        assert "ost_" not in repr(proxy.refusals)


async def test_mistakes_are_not_recorded_and_attacks_are() -> None:
    async with serving() as proxy, Client(proxy) as client:
        await client.ask("GET /nothing", RIGHT)
        await client.ask("DELETE /routes", RIGHT)
        await client.ask("GET http://x/", RIGHT)
        assert proxy.refusals == []
        await client.ask("GET /routes?secret=1", "Origin: https://evil.test", RIGHT)
        (refusal,) = proxy.refusals
        assert (refusal.code, refusal.status, refusal.method, refusal.path) == ("cross_site", 403, "GET", "/routes")


async def test_the_ref_of_a_path_is_one_percent_encoded_segment() -> None:
    async with serving() as proxy, Client(proxy) as client:
        status, _, body = await client.ask("GET /secrets", RIGHT)
        assert (status, json.loads(body)) == (
            200,
            {
                "secrets": [
                    {
                        "secret": "secret/a b",
                        "routes": ["api"],
                        "version": "2",
                        "requests": 0,
                        "before_requests": 0,
                        "before_last_use": {
                            "request_id": "r",
                            "workload": "billing",
                            "route": "api",
                            "seconds_ago": 1.5,
                        },
                    }
                ]
            },
        )
        status, _, body = await client.ask("POST /secrets/secret%2Fa%20b/refresh", RIGHT)
        assert (status, json.loads(body)) == (200, {"secret": "secret/a b", "version": "2", "changed": True})
        for ref, expected in (
            ("secret%2Fx", "secret_failed"),
            ("other", "secret_unknown"),
            ("%7Bref%7D", "secret_unknown"),
        ):
            _, _, body = await client.ask(f"POST /secrets/{ref}/refresh", RIGHT)
            assert type_of(body) == expected
        asked = list(proxy.refreshed)
        assert asked == [("secret/a b", "ci"), ("secret/x", "ci"), ("other", "ci"), ("{ref}", "ci")]
        for path in (
            "secret/a/refresh",
            "%/refresh",
            "%ff/refresh",
            "%zz/refresh",
            "/refresh",
            "a/",
            "a" * 4000 + "/refresh",
        ):
            _, _, body = await client.ask(f"POST /secrets/{path}", RIGHT)
            assert type_of(body) == "not_found"
        _, headers, body = await client.ask("GET /secrets/a/refresh", RIGHT)
        assert (type_of(body), headers["allow"]) == ("method_not_allowed", "POST")
        _, _, body = await client.ask("POST /secrets/a/refresh")
        assert type_of(body) == "token_required"
        assert proxy.refreshed == asked
