"""One HTTP call to Vault, as hvac's adapter: a total deadline, a size cap, no redirect, no proxy, errors of our own.

hvac is built on requests. What their defaults would do and must not: obey proxy variables and `.netrc`, follow redirects
with the token, pick up `~/.vault-token`, wait for ever on a server that drips, print URLs and bodies in exceptions.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final

import hvac
import requests
from hvac import adapters
from requests.adapters import HTTPAdapter
from urllib3 import PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from vault.hashicorp.answers import VaultAnswer, VaultUnreachable
from vault.hashicorp.config import VaultConfig


class Inflight(threading.local):
    """The connection this thread is busy on, so that a deadline can end it from outside."""

    call: Call | None = None


@dataclass(slots=True)
class Call:
    """One call in a worker thread."""

    deadline_s: float
    connection: HTTPConnection | None = None
    over: bool = False
    peer: tuple[str, int] | None = None
    """Where a new connection of this call leads to."""

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


INFLIGHT: Final = Inflight()


def _seize(connection: HTTPConnection) -> None:
    if INFLIGHT.call is not None:
        INFLIGHT.call.connection = connection


def _tell_peer(connection: HTTPConnection) -> None:
    if INFLIGHT.call is not None and connection.sock is not None:
        with suppress(OSError):
            peer = connection.sock.getpeername()
            INFLIGHT.call.peer = (str(peer[0]).partition("%")[0], int(peer[1]))


class _Http(HTTPConnection):
    def request(self, *args: Any, **kwargs: Any) -> None:
        _seize(self)
        super().request(*args, **kwargs)

    def connect(self) -> None:
        super().connect()
        _tell_peer(self)


class _Https(HTTPSConnection):
    def request(self, *args: Any, **kwargs: Any) -> None:
        _seize(self)
        super().request(*args, **kwargs)

    def connect(self) -> None:
        # A handshake that drips is ended by the deadline too.
        _seize(self)
        super().connect()
        _tell_peer(self)


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
        call = INFLIGHT.call
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
        # What only reads may be sent once more, and so may what says that it changes nothing (Transit).
        tries = 2 if kwargs.pop("repeatable", False) or method.upper() in {"GET", "LIST"} else 1
        try:
            answer, body = self._exchange(method, self.urljoin(self.base_uri, url), sent, call, tries, **kwargs)
        except requests.exceptions.SSLError:
            if call is not None and call.over:
                raise VaultUnreachable("the deadline passed") from None
            raise VaultUnreachable(
                "TLS with Vault failed: is ca_file the CA of its certificate, and the address the name in it?"
            ) from None
        except (requests.exceptions.RequestException, HTTPError, HTTPException, OSError, ValueError) as error:
            what = (
                "the deadline passed"
                if call is not None and (call.over or call.left_s() <= 0)
                else f"no connection ({type(error).__name__})"
            )
            raise VaultUnreachable(what) from None
        return self._judge(answer, body, raise_exception=raise_exception)

    def _exchange(
        self, method: str, url: str, headers: dict[str, str], call: Call | None, tries: int, **kwargs: Any
    ) -> tuple[requests.Response, bytes]:
        """Sends and reads. What only reads is sent once more if its connection ends at once: a kept connection that Vault,
        or a balancer before it, has just closed is no outage. A login is not: it may have used up what it carried.
        """
        while True:
            tries -= 1
            try:
                with self.session.request(
                    method,
                    url,
                    headers=headers,
                    stream=True,
                    timeout=max(call.left_s(), 0.001) if call is not None else 2.0,
                    allow_redirects=False,
                    **self._kwargs,
                    **kwargs,
                ) as answer:
                    return answer, self._body(answer, call)
            except (requests.exceptions.SSLError, requests.exceptions.Timeout):
                raise
            except requests.exceptions.ConnectionError:
                if not tries or call is None or call.over or call.left_s() <= 0:
                    raise

    def _body(self, answer: requests.Response, call: Call | None) -> bytes:
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
            raise VaultAnswer(status, reasons, _retry_after(answer), answer.headers.get("Location"))
        if status == 204 or (not body and answer.headers.get("Content-Length") == "0"):
            return answer
        if not body:
            # A head that is cut reads as a short one, and what would follow as empty. Vault's own answers tell their length.
            raise VaultUnreachable("the answer was cut")
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


def new_client(config: VaultConfig, address: str) -> hvac.Client:
    """An hvac client for one address, with a session of its own."""
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
    return client
