"""Calls to Vault: bounded threads, a total deadline, and errors that keep the status and nothing else.

hvac is synchronous and built on requests, so it runs in a small pool of threads, one session a thread. What its
defaults would do and must not: obey proxy variables and `.netrc`, follow redirects with the token, pick up
`~/.vault-token`, wait for ever on a server that drips, print URLs and bodies in exceptions.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import hvac
import requests
from hvac import adapters
from requests.adapters import HTTPAdapter
from urllib3 import PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from vault.hashicorp.config import VaultConfig
from vault.secret import Secret

_ELSEWHERE: Final = frozenset({472, 473, 474, 501, 503, 530})
"""Statuses of a node that cannot serve while another perhaps can; so does any redirect, which is never followed."""


_COUNTED: Final = re.compile(r"[0-9]+ errors? occurred:")
"""How Vault begins a list of reasons."""


class VaultAnswer(Exception):
    """Vault answered with an error status. Holds its own short reasons, never the request."""

    def __init__(self, status: int, reasons: tuple[str, ...] = (), retry_after_s: float | None = None) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.reasons = reasons
        self.retry_after_s = retry_after_s

    @property
    def reason(self) -> str:
        """Vault's first reason in one short line, or the status."""
        lines = (line.strip().removeprefix("* ") for reason in self.reasons for line in reason.splitlines())
        text = next((line for line in lines if line and not _COUNTED.fullmatch(line)), "")
        # Vault quotes paths and policies here, no material; control characters would still break a log line.
        return "".join(char for char in text if char.isprintable())[:200] or f"status {self.status}"


class DetectionRefused(VaultAnswer):
    """Vault did not tell the KV version of a mount (403)."""


class VaultUnreachable(Exception):
    """No usable answer: connection, TLS, deadline, or an answer that is no JSON. The message says which."""


class _Inflight(threading.local):
    """The connection this thread is busy on, so that a deadline can end it from outside."""

    call: _Call | None = None


@dataclass(slots=True)
class _Call:
    """One call in a worker thread."""

    deadline_s: float
    connection: HTTPConnection | None = None
    over: bool = False

    def left_s(self) -> float:
        return self.deadline_s - time.monotonic()

    def abort(self) -> None:
        """Wakes the thread out of any socket wait."""
        self.over = True
        connection = self.connection
        sock = getattr(connection, "sock", None)
        if isinstance(sock, socket.socket):
            # The plain call: that of an SSL socket would take the TLS state away under the reading thread.
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


_INFLIGHT: Final = _Inflight()


def _seize(connection: HTTPConnection) -> None:
    if _INFLIGHT.call is not None:
        _INFLIGHT.call.connection = connection


class _Http(HTTPConnection):
    def request(self, *args: Any, **kwargs: Any) -> None:
        _seize(self)
        super().request(*args, **kwargs)


class _Https(HTTPSConnection):
    def request(self, *args: Any, **kwargs: Any) -> None:
        _seize(self)
        super().request(*args, **kwargs)


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


class _Transport(HTTPAdapter):
    """requests' transport over connections that can be aborted; never retries."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        manager: PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}


class _Adapter(adapters.JSONAdapter):  # type: ignore[misc]  # hvac ships no types
    """hvac's adapter with our own request: deadline, size cap, no redirects, our errors."""

    max_answer_bytes = 4 * 1024 * 1024

    def request(
        self, method: str, url: str, headers: dict[str, str] | None = None, raise_exception: bool = True, **kwargs: Any
    ) -> Any:
        call = _INFLIGHT.call
        left_s = call.left_s() if call is not None else 2.0
        if left_s <= 0:
            raise VaultUnreachable("the deadline passed")
        sent = dict(headers or {})
        if (wrap_ttl := kwargs.pop("wrap_ttl", None)) is not None:
            sent["X-Vault-Wrap-TTL"] = str(wrap_ttl)
        if self.token:
            sent["X-Vault-Token"] = self.token
        if self.namespace:
            sent["X-Vault-Namespace"] = self.namespace
        sent["X-Vault-Request"] = "true"
        # Never compressed: a small answer must not grow behind the size cap.
        sent["Accept-Encoding"] = "identity"
        try:
            with self.session.request(
                method,
                self.urljoin(self.base_uri, url),
                headers=sent,
                stream=True,
                timeout=left_s,
                allow_redirects=False,
                **self._kwargs,
                **kwargs,
            ) as answer:
                body = self._body(answer, call)
        except requests.exceptions.SSLError:
            if call is not None and call.over:
                raise VaultUnreachable("the deadline passed") from None
            raise VaultUnreachable(
                "TLS with Vault failed: is ca_file the CA of its certificate, and the address the name in it?"
            ) from None
        except (requests.exceptions.RequestException, OSError, ValueError) as error:
            what = (
                "the deadline passed"
                if call is not None and (call.over or call.left_s() <= 0)
                else f"no connection ({type(error).__name__})"
            )
            raise VaultUnreachable(what) from None
        return self._judge(answer, body, raise_exception=raise_exception)

    def _body(self, answer: requests.Response, call: _Call | None) -> bytes:
        parts: list[bytes] = []
        size = 0
        while chunk := answer.raw.read1(65536, decode_content=False):
            size += len(chunk)
            if size > self.max_answer_bytes:
                raise ValueError("the answer is too large")
            if call is not None and call.left_s() <= 0:
                raise ValueError("the deadline passed")
            parts.append(chunk)
        return b"".join(parts)

    @staticmethod
    def _judge(answer: requests.Response, body: bytes, *, raise_exception: bool) -> Any:
        parsed: Any = None
        if body:
            try:
                parsed = json.loads(body)
            except (ValueError, RecursionError):
                parsed = None
        status = answer.status_code
        if raise_exception and status >= 300:
            errors = parsed.get("errors") if isinstance(parsed, dict) else None
            reasons = tuple(str(error) for error in errors) if isinstance(errors, list) else ()
            if status == 404 and isinstance(parsed, dict) and isinstance(parsed.get("data"), dict):
                reasons = ("deleted or destroyed",)
            raise VaultAnswer(status, reasons, _retry_after(answer))
        if status == 204 or not body:
            return answer
        if not isinstance(parsed, dict):
            raise VaultUnreachable("the answer is no JSON object")
        if not raise_exception:
            parsed = {**parsed, "_status": status}
        return parsed

    def get_login_token(self, response: Any) -> Any:
        return response["auth"]["client_token"]


def _retry_after(answer: requests.Response) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdigit() and len(text) < 6 else None


@dataclass(slots=True)
class _Clients(threading.local):
    """hvac clients of one thread, by address."""

    by_address: dict[str, hvac.Client] = field(default_factory=dict)


class VaultCalls:
    """Runs calls against one of several addresses, preferring the one that worked last."""

    def __init__(self, config: VaultConfig) -> None:
        self._config = config
        self._pool = ThreadPoolExecutor(max_workers=config.threads, thread_name_prefix="vault")
        self._clients = _Clients()
        self._preferred = 0

    def _client(self, address: str) -> hvac.Client:
        known = self._clients.by_address.get(address)
        if known is not None:
            return known
        config = self._config
        session = requests.Session()
        session.trust_env = False
        session.mount("http://", _Transport(max_retries=0))
        session.mount("https://", _Transport(max_retries=0))
        session.verify = str(config.ca_file) if config.ca_file is not None else True
        if config.client_cert is not None:
            session.cert = (
                (str(config.client_cert), str(config.client_key))
                if config.client_key is not None
                else str(config.client_cert)
            )
        # An empty token keeps hvac from looking for one in the environment and in the home folder.
        client = hvac.Client(
            url=address,
            token="",
            namespace=config.namespace,
            session=session,
            verify=session.verify,
            cert=session.cert,
            adapter=_Adapter,
            allow_redirects=False,
        )
        client.adapter._kwargs = {}  # noqa: SLF001 - verify, cert and timeouts are the session's and ours
        client.adapter.max_answer_bytes = config.max_answer_bytes
        self._clients.by_address[address] = client
        return client

    async def run[T](
        self,
        work: Callable[[hvac.Client], T],
        token: Secret | None,
        *,
        namespace: str | None = None,
        deadline_s: float | None = None,
    ) -> T:
        """Runs a call in a worker thread.

        Args:
            work: uses the client it is given, in the thread.
            token: sent with the call; None for a login.
            namespace: where the call goes; the configured one by default, the root for "".
            deadline_s: total, over all addresses; the configured one by default.

        Raises:
            VaultAnswer: Vault's own error.
            VaultUnreachable: there was no usable answer from any address.
        """
        total_s = deadline_s or self._config.deadline_s
        ends_s = time.monotonic() + total_s
        addresses = self._config.addresses
        namespace = self._config.namespace if namespace is None else namespace
        problem: VaultAnswer | VaultUnreachable = VaultUnreachable("no address is configured")
        # The next address once: a second failure is an outage.
        for attempt in range(min(2, len(addresses))):
            index = (self._preferred + attempt) % len(addresses)
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                break
            try:
                result = await self._in_thread(
                    work,
                    addresses[index],
                    token,
                    namespace,
                    ends_s if attempt or len(addresses) == 1 else time.monotonic() + left_s / 2,
                )
            except VaultAnswer as answer:
                if answer.status not in _ELSEWHERE and not 300 <= answer.status < 400:
                    raise
                problem = answer
            except VaultUnreachable as error:
                problem = error
            else:
                self._preferred = index
                return result
        raise problem

    async def _in_thread[T](
        self,
        work: Callable[[hvac.Client], T],
        address: str,
        token: Secret | None,
        namespace: str | None,
        ends_s: float,
    ) -> T:
        call = _Call(ends_s)

        def job() -> T:
            _INFLIGHT.call = call
            try:
                if call.left_s() <= 0:
                    raise VaultUnreachable("all threads are busy")
                client = self._client(address)
                # Both are said anew for each call: a thread's client serves logins and every namespace in turn.
                client.token = token.reveal() if token is not None else ""
                client.adapter.namespace = namespace or None
                return work(client)
            finally:
                _INFLIGHT.call = None

        future = asyncio.get_running_loop().run_in_executor(self._pool, job)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + call.left_s()):
                return await asyncio.shield(future)
        except TimeoutError:
            call.abort()
            future.add_done_callback(_forget)
            raise VaultUnreachable("the deadline passed") from None
        except asyncio.CancelledError:
            call.abort()
            future.add_done_callback(_forget)
            raise

    def close(self) -> None:
        """Ends the threads; calls that are still under way end by their deadlines."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _forget(future: asyncio.Future[Any]) -> None:
    """Takes the result of a call that nobody waits for any more, so that it is not reported as lost."""
    if not future.cancelled():
        future.exception()
