"""Refusals for gRPC callers."""

from __future__ import annotations

from urllib.parse import unquote

import pytest

from addons.grpc import for_grpc, speaks_grpc
from addons.refusal import Code, Refusal, answer


@pytest.mark.parametrize(
    ("kind", "grpc"),
    [
        (b"application/grpc", True), (b"application/grpc+proto", True), (b"Application/GRPC;x=y", True),
        (b"application/grpc-web", False), (b"application/json", False), (b"application/grpcx", False),
    ],
)  # fmt: skip
def test_who_speaks_grpc(kind: bytes, grpc: bool) -> None:
    assert speaks_grpc(((b"content-type", kind),)) == grpc
    assert not speaks_grpc(((b"content-type", kind), (b"content-type", kind)))


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.PATH_DENIED, "7"), (Code.BAD_REQUEST, "13"), (Code.UPSTREAM_TIMEOUT, "14"), (Code.INTERNAL, "2"),
        (Code.AUTHORITY_MISMATCH, "2"), (Code.UPSTREAM_UNREACHABLE, "14"),
    ],
)  # fmt: skip
def test_status_and_message(code: Code, status: str) -> None:
    plain = answer(Refusal(code, "100 % of it, über\nall."), "id-1")
    shown = for_grpc(plain)
    fields = dict(shown.headers)
    assert (shown.status, shown.body) == (plain.status, b"")
    assert fields["Content-Type"] == "application/grpc"
    assert "Content-Length" not in fields
    assert fields["X-Ostiary-Error"] == code.value
    assert fields["Grpc-Status"] == status
    assert fields["Grpc-Message"].isascii()
    assert fields["Grpc-Message"].isprintable()
    assert unquote(fields["Grpc-Message"]) == f"{code.value}: 100 % of it, über\nall. (id-1)"
