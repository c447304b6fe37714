"""The WebSocket handshake, by the example of RFC 6455 section 1.3."""

from __future__ import annotations

import pytest

from addons.head import Fields, RequestHead
from addons.refusal import Code, Refusal
from addons.websocket import NotSwitched, judge_handshake, judge_switch, wants_websocket

ASKED: Fields = (
    (b"Host", b"server.example.com"),
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Origin", b"http://example.com"),
    (b"Sec-WebSocket-Protocol", b"chat, superchat"),
    (b"Sec-WebSocket-Version", b"13"),
)
ANSWERED: Fields = (
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    (b"Sec-WebSocket-Protocol", b"chat"),
)


def without(fields: Fields, name: bytes, *then: tuple[bytes, bytes]) -> Fields:
    return (*(field for field in fields if field[0] != name), *then)


def test_the_example_of_the_rfc() -> None:
    assert wants_websocket(ASKED)
    judge_handshake(RequestHead("GET", b"/chat", ASKED, http2=False))
    judge_switch(ASKED, ANSWERED)


@pytest.mark.parametrize("name", [b"Connection", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version"])
def test_a_handshake_needs_each_field(name: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        judge_handshake(RequestHead("GET", b"/chat", without(ASKED, name), http2=False))
    assert refused.value.code is Code.BAD_REQUEST


@pytest.mark.parametrize("name", [b"Upgrade", b"Connection", b"Sec-WebSocket-Accept"])
def test_an_answer_needs_each_field(name: bytes) -> None:
    with pytest.raises(NotSwitched):
        judge_switch(ASKED, without(ANSWERED, name))


def test_an_answer_to_another_key() -> None:
    other = without(ASKED, b"Sec-WebSocket-Key", (b"Sec-WebSocket-Key", b"AAAAAAAAAAAAAAAAAAAAAA=="))
    with pytest.raises(NotSwitched):
        judge_switch(other, ANSWERED)


def test_no_subprotocol_need_be_chosen_but_only_an_offered_one() -> None:
    judge_switch(ASKED, without(ANSWERED, b"Sec-WebSocket-Protocol"))
    with pytest.raises(NotSwitched):
        judge_switch(without(ASKED, b"Sec-WebSocket-Protocol"), ANSWERED)


def test_http2_has_no_upgrade() -> None:
    with pytest.raises(Refusal):
        judge_handshake(RequestHead("GET", b"/chat", ASKED, http2=True))
