"""State on a Valkey or Redis server, shared by a fleet. The only module that imports redis-py.

Rules:
- One key prefix holds everything (`{ostiary}:` unless the settings name another). The braces keep all keys in one slot;
  a sharded cluster is not asked for more.
- Time is the server's, inside scripts and in its expiry.
- A server that evicts is refused by `probe`: it would forget used nonces. Its memory bound must answer with an error.
- Replies and errors of the server are never passed on: an error is told by its code word.
- Nothing is repeated here: a script whose answer was lost may have run.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redis import exceptions as refused
from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from addons.state import valkey_scripts as scripts
from addons.state.bounds import (
    check_amount,
    check_bucket,
    check_expect,
    check_key,
    check_prefix,
    check_ttl,
    check_value,
)
from addons.state.bucket import ROUNDING
from addons.state.store import (
    MAX_AMOUNT,
    MAX_KEPT,
    MAX_KEPT_BYTES,
    Added,
    Item,
    Listing,
    StateConflict,
    StateError,
    StateFull,
    StateUnavailable,
    StoreName,
    Taken,
)
from vault.secret import Secret

MAX_CONNECTIONS: Final = 32
_CODE: Final = re.compile(r"[A-Z]{2,20}")
_KEEPS: Final = "noeviction"


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is and how it is spoken to."""

    host: str
    port: int
    database: int = 0
    tls: bool = False
    ca_file: Path | None = None
    username: str | None = None
    password: Secret | None = None
    prefix: str = "ostiary"


class ValkeyStore:
    """State on a server. Nothing is dialled before the first call.

    Args:
        server: its address and login.
        deadline_s: for dialling, and for each answer.
    """

    name: StoreName = "valkey"

    def __init__(self, server: Server, *, deadline_s: float = 0.25) -> None:
        self._where = f"{server.host}:{server.port}"
        self._prefix = f"{{{server.prefix}}}:"
        given: dict[str, Any] = {
            "host": server.host,
            "port": server.port,
            "db": server.database,
            "username": server.username,
            "password": None if server.password is None else server.password.reveal(),
            "socket_timeout": deadline_s,
            "socket_connect_timeout": deadline_s,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        if server.tls:
            given["ssl_cert_reqs"], given["ssl_check_hostname"] = "required", True
            given["ssl_ca_certs"] = None if server.ca_file is None else str(server.ca_file)
        pool = BlockingConnectionPool(
            max_connections=MAX_CONNECTIONS,
            timeout=deadline_s,
            connection_class=SSLConnection if server.tls else Connection,
            **given,
        )
        self._client: Redis = Redis.from_pool(pool)
        one, two = self._prefix + "life", self._prefix + "kept"
        self._kept = [one, two]
        self._scripts = {
            name: self._client.register_script(getattr(scripts, name))
            for name in ("ADD", "TAKE", "PUT", "GET", "DELETE", "CHANGES", "WRITABLE")
        }

    async def once(self, key: str, ttl_s: float) -> bool:
        check_key(key)
        check_ttl(ttl_s)
        name = f"{self._prefix}m:{key}"
        return bool(await self._ask(lambda: self._client.set(name, b"", px=_ms(ttl_s), nx=True)))

    async def add(self, key: str, amount: int, ttl_s: float, limit: int | None = None) -> Added:
        check_key(key)
        check_ttl(ttl_s)
        check_amount(amount, limit)
        most = MAX_AMOUNT if limit is None else limit
        value, added = await self._run("ADD", [f"{self._prefix}c:{key}"], amount, most, _ms(ttl_s))
        return Added(int(value), added=bool(added))

    async def take(self, key: str, cost: float, capacity: float, refill_per_s: float) -> Taken:
        check_key(key)
        check_bucket(cost, capacity, refill_per_s)
        given = (repr(cost), repr(capacity), repr(refill_per_s), repr(ROUNDING))
        allowed, wait_ms = await self._run("TAKE", [f"{self._prefix}b:{key}"], *given)
        return Taken(bool(allowed), int(wait_ms) / 1000)

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, expect: int | None = None) -> int:
        check_key(key)
        check_value(value)
        check_expect(expect)
        if ttl_s is not None:
            check_ttl(ttl_s)
        ttl_ms = 0 if ttl_s is None else _ms(ttl_s)
        wanted = "" if expect is None else str(expect)
        state, version = await self._run(
            "PUT", self._kept, key, value, ttl_ms, wanted, secrets.token_hex(8), MAX_KEPT, MAX_KEPT_BYTES
        )
        if state == -1:
            raise StateConflict(key, int(version))
        if state == -2:
            raise StateFull(f"{MAX_KEPT} items or {MAX_KEPT_BYTES} bytes are kept and none has expired")
        return int(version)

    async def get(self, key: str) -> Item | None:
        check_key(key)
        found = await self._run("GET", self._kept, key)
        return None if found is None else _item(key, *found)

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        check_key(key)
        check_expect(expect)
        state, told = await self._run("DELETE", self._kept, key, "" if expect is None else str(expect))
        if state == -1:
            raise StateConflict(key, int(told))
        return bool(told)

    async def items(self, prefix: str = "") -> Listing:
        check_prefix(prefix)
        found = await self._run("CHANGES", self._kept, "", prefix)
        return _listing(found)

    async def changes(self, since: str, prefix: str = "") -> Listing | None:
        check_prefix(prefix)
        found = await self._run("CHANGES", self._kept, since, prefix)
        return None if found is None else _listing(found)

    async def probe(self) -> None:
        await self._run("WRITABLE", [self._prefix + "probe"])
        memory = await self._ask(lambda: self._client.info("memory"))
        if memory.get("maxmemory", 0) and memory.get("maxmemory_policy") != _KEEPS:
            raise StateUnavailable(f"{self._where} evicts keys when it is full: set maxmemory-policy noeviction there")

    async def close(self) -> None:
        await self._client.aclose(close_connection_pool=True)

    async def _run(self, name: str, keys: list[str], *arguments: Any) -> Any:
        script = self._scripts[name]
        return await self._ask(lambda: script(keys=keys, args=arguments))

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call()
        except (StateError, asyncio.CancelledError):
            raise
        except refused.RedisError as error:
            raise _told(error, self._where) from None
        except (OSError, TimeoutError) as error:
            raise StateUnavailable(f"{self._where} is out of reach ({type(error).__name__})") from None
        except Exception as error:  # noqa: BLE001 - a broken answer is an outage too
            raise StateUnavailable(f"{self._where} gave no usable answer ({type(error).__name__})") from None


def _told(error: refused.RedisError, where: str) -> StateError:
    """What an error of redis-py means to us. Its text may repeat what was sent, so only the first word is looked at."""
    found = _CODE.match(str(error))
    code = found[0] if found is not None else ""
    if isinstance(error, refused.OutOfMemoryError) or code == "OOM":
        return StateFull(f"{where} has reached its memory bound")
    if isinstance(error, refused.AuthenticationError | refused.NoPermissionError) or code in {"WRONGPASS", "NOAUTH"}:
        return StateUnavailable(f"{where} does not take our login, or it may too little ({type(error).__name__})")
    if isinstance(error, refused.TimeoutError):
        return StateUnavailable(f"{where} did not answer in time")
    if isinstance(error, refused.ConnectionError):
        return StateUnavailable(f"{where} is out of reach ({type(error).__name__})")
    return StateUnavailable(f"{where} answered with an error ({code or type(error).__name__})")


def _ms(span_s: float) -> int:
    return max(1, math.ceil(span_s * 1000))


def _item(key: str, version: Any, left_ms: Any, value: bytes) -> Item:
    return Item(key, value, int(version), None if int(left_ms) < 0 else int(left_ms) / 1000)


def _listing(found: Any) -> Listing:
    revision, *items = found
    return Listing(revision.decode(), tuple(sorted((_item(key.decode(), *rest) for key, *rest in items), key=_key)))


def _key(item: Item) -> str:
    return item.key
