"""What the boundary records: what the caller saw, once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from addons.boundary import Boundary
from addons.credentials import Openings
from addons.exchange import Connection, Exchange, Listener
from addons.head import RequestHead
from addons.refusal import Code, Refusal


class Books:
    """Stands for the audit log and the metrics."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.ended: list[str] = []

    def close(self, _record: object, fields: dict[str, Any]) -> None:
        self.records.append({"event": "credential.closed", **fields})

    def refused(self, fields: object) -> None:
        if isinstance(fields, dict):
            self.records.append({"event": "request.refused", **fields})

    def request_ended(self, _route: str, _workload: str, outcome: str, _elapsed_s: float) -> None:
        self.ended.append(outcome)


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def boundary(books: Books) -> Boundary:
    clock = SimpleNamespace(monotonic_s=lambda: 2.0)
    return Boundary(cast("Any", books), cast("Any", books), cast("Any", clock))


def exchange(*, opened: bool = True, status: int | None = None) -> Exchange:
    connection = Connection("c", Listener("sidecar", "billing"), "127.0.0.1")
    made = Exchange("r", connection, cast("Any", None), RequestHead("GET", b"/v1", (), False), 1.0)
    if opened:
        made.put(Openings((cast("Any", object()),)))
    if status is not None:
        made.status, made.streaming = status, True
    return made


FAILED = RuntimeError("a stage failed")
CASES = [
    (Refusal(Code.UPSTREAM_TIMEOUT, "late"), ("upstream_error", 504, "upstream_timeout"), ("truncated", 200, "upstream_timeout")),
    (Refusal(Code.UPSTREAM_PROTOCOL, "odd"), ("upstream_error", 502, "upstream_protocol"), ("truncated", 200, "upstream_protocol")),
    (Refusal(Code.ROUTE_DENIED, "withdrawn"), ("refused", 403, "route_denied"), ("refused", 200, "route_denied")),
    (FAILED, ("refused", 500, "internal"), ("refused", 200, "internal")),
]  # fmt: skip


@pytest.mark.parametrize(("error", "before", "during"), CASES)
def test_the_record_says_what_the_caller_saw(
    boundary: Boundary,
    books: Books,
    error: Exception,
    before: tuple[str, int, str],
    during: tuple[str, int, str],
) -> None:
    for one in (exchange(), exchange(status=200)):
        boundary.refuse(one, error)
    assert [(record["outcome"], record["status"], record["code"]) for record in books.records] == [before, during]
    assert books.ended == [before[0], during[0]]


def test_nothing_opened(boundary: Boundary, books: Books) -> None:
    one = exchange(opened=False)
    given = boundary.refuse(one, Refusal(Code.ROUTE_DENIED, "no"))
    assert one.refused is given
    (record,) = books.records
    assert (record["event"], record["status"], record["path"]) == ("request.refused", 403, "/v1")


def test_an_exchange_is_settled_once(boundary: Boundary, books: Books) -> None:
    one = exchange(status=200)
    boundary.settle(one, "ok")
    boundary.refuse(one, FAILED)
    boundary.settle(one, "client_gone")
    (record,) = books.records
    assert (record["outcome"], record["status"]) == ("ok", 200)
    assert one not in one.connection.exchanges
