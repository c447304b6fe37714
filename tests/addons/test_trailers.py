"""Which trailers pass."""

from __future__ import annotations

import pytest

from addons.head import Fields
from addons.injection.places import CREDENTIAL_HEADERS, HOP_BY_HOP, OVERRIDES
from addons.trailers import kept_reply_trailers, kept_request_trailers, lines

GRPC: Fields = ((b"grpc-status", b"5"), (b"grpc-message", b"not%20there"), (b"x-last-bin", b"AP8"))


def test_grpc_passes_untouched() -> None:
    assert kept_reply_trailers(GRPC) == kept_request_trailers(GRPC, frozenset()) == GRPC


@pytest.mark.parametrize(
    "name", sorted(CREDENTIAL_HEADERS | HOP_BY_HOP | OVERRIDES | {b"content-length", b"x-ostiary-id", b"x-vault-token"})
)
def test_g19_requests_say_nothing_that_a_head_is_judged_for(name: bytes) -> None:
    assert kept_request_trailers(((name.upper(), b"x"), *GRPC), frozenset({b"x-vault-token"})) == GRPC


@pytest.mark.parametrize(
    "name", [b"X-Ostiary-Error", b"set-cookie", b"transfer-encoding", b"alt-svc", b"proxy-authenticate"]
)
def test_answers_do_not_speak_for_this_proxy(name: bytes) -> None:
    assert kept_reply_trailers((*GRPC, (name, b"x"))) == GRPC


@pytest.mark.parametrize(
    "field", [(b"a b", b"x"), (b"", b"x"), (b"x", b"a\r\nb: c"), (b"x", b"\x00"), (b":status", b"200")]
)
def test_what_would_end_a_line_is_dropped(field: tuple[bytes, bytes]) -> None:
    assert kept_reply_trailers((field,)) == kept_request_trailers((field,), frozenset()) == ()


def test_lines() -> None:
    assert lines(GRPC[:2]) == b"grpc-status: 5\r\ngrpc-message: not%20there\r\n\r\n"
    assert lines(()) == b"\r\n"
