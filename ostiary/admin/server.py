"""Serves the admin API and the probes over HTTP/1.1, with tornado's connections and nothing else of it: every head is
judged before a byte of a body is read, and every answer, refusals included, is written in one place.

Everything is bounded: connections (at the cap, the one that has been idle longest makes room), the head, the body, the
time for each, and the time for the answer to be fetched.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import socket
import struct
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from tornado.http1connection import HTTP1ConnectionParameters, HTTP1ServerConnection
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream
from tornado.tcpserver import TCPServer

from addons.identity.budget import FailureBudget
from addons.uuid7 import uuid7
from ostiary.admin.control import AdminRefusal
from ostiary.admin.judge import Api, Denied, Granted, Head
from ostiary.admin.problems import AUDITED, CONTENT_TYPE, Kind, Problem
from ostiary.admin.table import Answer

_log = logging.getLogger("ostiary.admin")

MAX_CONNECTIONS: Final = 64
MAX_HEAD_BYTES: Final = 16 * 1024
MAX_DROPPED_BYTES: Final = 64 * 1024
"""A body that no operation wants is read and dropped up to here, so that its sender gets to read the answer."""
HEAD_S: Final = 30.0
"""From the end of one request to the end of the next one's head."""
BODY_S: Final = 10.0
ANSWER_S: Final = 30.0
"""For an operation."""
EXCHANGE_S: Final = 60.0
"""From the head to the last byte of the answer taken."""
HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Content-Type-Options", "nosniff"),
)


class AdminServer(TCPServer, HTTPServerConnectionDelegate):
    """One listener.

    Args:
        api: what is served.
        budget: of failed tokens: beyond it each costs a connection.
    """

    def __init__(self, api: Api, budget: FailureBudget) -> None:
        super().__init__(max_buffer_size=MAX_HEAD_BYTES + MAX_DROPPED_BYTES)
        self.api = api
        self.budget = budget
        self.tasks: set[asyncio.Task[None]] = set()
        self._parameters = HTTP1ConnectionParameters(
            max_header_size=MAX_HEAD_BYTES,
            header_timeout=HEAD_S,
            body_timeout=BODY_S,
            # Bodies are counted below, where a refusal can be written; this must not be met first.
            max_body_size=1 << 62,
        )
        self._connections: set[HTTP1ServerConnection] = set()
        self._idle: dict[HTTP1ServerConnection, None] = {}
        """Those that wait for a request; the one that waits longest stands first."""

    def serve(self, bound: socket.socket) -> None:
        """Accepts on a bound socket."""
        bound.setblocking(False)
        self.add_socket(bound)

    async def end(self) -> None:
        """Stops accepting and closes what is open."""
        self.stop()
        while self._connections:
            await next(iter(self._connections)).close()

    # --- tornado.tcpserver, tornado.httputil ---

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            oldest = next(iter(self._idle), None)
            if oldest is None:
                stream.close()
                return
            self._forget(oldest)
        connection = HTTP1ServerConnection(stream, self._parameters, _source(stream, address))
        self._connections.add(connection)
        connection.start_serving(self)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        connection: Any = server_conn
        if connection in self._connections:
            self._idle[connection] = None
        return _Exchange(self, connection, request_conn)

    def on_close(self, server_conn: object) -> None:
        connection: Any = server_conn
        self._forget(connection)

    def _forget(self, connection: HTTP1ServerConnection) -> None:
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        connection.stream.close()

    def busy(self, connection: HTTP1ServerConnection) -> None:
        """A head has come: the connection waits no longer."""
        self._idle.pop(connection, None)


class _Exchange(HTTPMessageDelegate):
    """One request and its answer."""

    def __init__(self, server: AdminServer, connection: HTTP1ServerConnection, request: Any) -> None:
        self._server = server
        self._connection = connection
        self._request = request
        self._id = ""
        self._head: Head | None = None
        self._verdict: Granted | Denied | None = None
        self._dropped = 0
        self._answered = False
        self._deadline: asyncio.TimerHandle | None = None

    # --- the request ---

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> None:
        self._server.busy(self._connection)
        self._deadline = asyncio.get_running_loop().call_later(EXCHANGE_S, self._request.close)
        self._id = uuid7()
        self._head = head_of(start_line, headers, str(self._connection.context))
        self._verdict = self._server.api.judge(self._head)
        if declares_too_much(headers.get("Content-Length", "0")):
            self._too_large()
            self._answer_problem()

    def data_received(self, chunk: bytes) -> None:
        self._dropped += len(chunk)
        self._too_large()
        if self._dropped > MAX_DROPPED_BYTES:
            self._answer_problem()

    def _too_large(self) -> None:
        """No operation takes a body yet. What is wrong with the head comes first."""
        if isinstance(self._verdict, Granted):
            problem = Problem(Kind.BODY_TOO_LARGE, "This operation takes no body.")
            self._verdict = Denied(problem, self._verdict.call.by)

    def finish(self) -> None:
        if isinstance(self._verdict, Granted):
            task = asyncio.get_running_loop().create_task(self._run(self._verdict))
            self._server.tasks.add(task)
            task.add_done_callback(self._server.tasks.discard)
        else:
            self._answer_problem()

    def on_connection_close(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    # --- the answer ---

    async def _run(self, granted: Granted) -> None:
        found: Answer | Problem
        try:
            async with asyncio.timeout(ANSWER_S):
                found = await granted.operation.run(self._server.api.control, granted.call)
        except TimeoutError:
            found = Problem(Kind.TIMEOUT, "It was begun and may still end well.")
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is a problem for one caller, told by its type
            _log.error("%s %s failed: %s", granted.operation.method, granted.operation.path, type(error).__name__)
            found = Problem(Kind.INTERNAL, "The log of the process says more.")
        if isinstance(found, Problem):
            self._problem(found)
        else:
            self._write(found.status, found.content_type, found.body, ())

    def _answer_problem(self) -> None:
        """Answers what was denied, and records it where it may be an attack."""
        if self._answered or self._head is None or not isinstance(self._verdict, Denied):
            return
        problem, head = self._verdict.problem, self._head
        keep = True
        if problem.kind is Kind.TOKEN_INVALID:
            keep = self._server.budget.spend(head.source)
        if problem.kind in AUDITED:
            self._server.api.control.refused(
                AdminRefusal(
                    self._server.api.listener,
                    head.source,
                    head.method,
                    head.path,
                    problem.kind.code,
                    problem.kind.status,
                    self._verdict.by,
                )
            )
        self._problem(problem, keep=keep)

    def _problem(self, problem: Problem, *, keep: bool = True) -> None:
        self._write(problem.kind.status, CONTENT_TYPE, problem.encode(self._id), problem.headers, keep=keep)

    def _write(
        self, status: int, content_type: str, body: bytes, extra: Sequence[tuple[str, str]], *, keep: bool = True
    ) -> None:
        self._answered = True
        headers = HTTPHeaders()
        fields = (("Content-Type", content_type), ("Content-Length", str(len(body))), ("X-Request-Id", self._id))
        for name, value in (("Date", email.utils.formatdate(usegmt=True)), *fields, *HEADERS, *extra):
            headers.add(name, value)
        if not keep:
            headers.add("Connection", "close")
        sent = b"" if self._head is not None and self._head.method == "HEAD" else body
        start_line = ResponseStartLine("HTTP/1.1", status, HTTPStatus(status).phrase)
        written = self._request.write_headers(start_line, headers, chunk=sent)
        written.add_done_callback(self._written if keep else self._written_last)
        self._request.finish()

    def _written(self, written: Any) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if not written.cancelled():
            written.exception()  # the caller went away, which is its own business

    def _written_last(self, written: Any) -> None:
        self._written(written)
        self._request.close()


def declares_too_much(length: str) -> bool:
    """Whether a Content-Length is a number over the cap; what is no number is refused where the body is read."""
    digits = length.lstrip("0")
    return length.isascii() and length.isdigit() and (len(digits) > 9 or int(digits or "0") > MAX_DROPPED_BYTES)


def head_of(start_line: RequestStartLine, headers: HTTPHeaders, source: str) -> Head:
    """What is judged of a request."""
    return Head(
        method=start_line.method,
        target=start_line.path,
        source=source,
        http_1_0=start_line.version == "HTTP/1.0",
        hosts=headers.get_list("Host"),
        origins=headers.get_list("Origin"),
        sites=headers.get_list("Sec-Fetch-Site"),
        authorization=headers.get_list("Authorization"),
        accept=headers.get("Accept", ""),
    )


def _source(stream: IOStream, address: Any) -> str:
    """Who has connected, as the audit names it."""
    if stream.socket.family != socket.AF_UNIX:
        return str(address[0])
    raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    return f"unix:uid={uid}"
