"""Fields of an answer that are not the upstream's to say."""

from __future__ import annotations

from addons.reply import kept_reply_fields


def test_an_ordinary_answer_is_left_alone() -> None:
    fields = ((b"Content-Type", b"text/plain"), (b"Set-Cookie", b"a=b"))
    assert kept_reply_fields(fields) is fields


def test_what_imitates_the_proxy_is_dropped() -> None:
    fields = (
        (b"X-Ostiary-Error", b"killed"),
        (b"x-ostiary-anything", b"1"),
        (b"Proxy-Authenticate", b"Basic"),
        (b"Alt-Svc", b'h3=":443"'),
        (b"X", b"y"),
    )
    assert kept_reply_fields(fields) == ((b"X", b"y"),)


def test_connection_is_reduced_to_close_and_its_list_obeyed() -> None:
    fields = ((b"Connection", b"close, X-Hop"), (b"X-Hop", b"1"), (b"Content-Length", b"3"))
    assert kept_reply_fields(fields) == ((b"Connection", b"close"), (b"Content-Length", b"3"))
    hostile = ((b"Connection", b"content-length, transfer-encoding"), (b"Content-Length", b"3"))
    assert kept_reply_fields(hostile) == ((b"Content-Length", b"3"),)
