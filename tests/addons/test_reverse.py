"""What a reverse listener is called by, which pages are its own, and whose name places have on each side."""

from __future__ import annotations

import pytest

from addons.exchange import Authority, Reverse
from addons.head import Fields, RequestHead
from addons.identity.caller_key import REVERSE_FIELD, presented_key
from addons.refusal import Code, Refusal, answer
from addons.reverse import CalledAs, called_as, for_caller, for_upstream

LOCAL = Reverse(
    frozenset({("127.0.0.1", 9001), ("localhost", 9001), ("::1", 9001), ("gw.test", 80)}), frozenset({"any.test"})
)
SECURE = Reverse(frozenset({("gw.test", 443)}), tls=True)
SOCKET = Reverse(None)
API = Authority("api.test", 443)


def head(*fields: tuple[str, str], http2: bool = False) -> RequestHead:
    return RequestHead("GET", b"/", tuple((name.encode(), value.encode("latin-1")) for name, value in fields), http2)


def origin(reverse: Reverse, *fields: tuple[str, str], pseudo: str | None = None) -> str:
    return called_as(reverse, head(*fields, http2=pseudo is not None), pseudo_authority=pseudo).origin.decode()


def code(reverse: Reverse, *fields: tuple[str, str], pseudo: str | None = None) -> Code:
    with pytest.raises(Refusal) as refused:
        origin(reverse, *fields, pseudo=pseudo)
    assert refused.value.close
    return refused.value.code


@pytest.mark.parametrize(
    ("reverse", "host"),
    [
        (LOCAL, "127.0.0.1:9001"),
        (LOCAL, "LocalHost:9001"),
        (LOCAL, "[::1]:9001"),
        (LOCAL, "gw.test"),
        (LOCAL, "any.test"),
        (LOCAL, "any.test:1234"),
        (SECURE, "gw.test"),
        (SECURE, "gw.test:443"),
        (SOCKET, "whatever.test"),
        (SOCKET, "localhost:1"),
    ],
)
def test_own_names(reverse: Reverse, host: str) -> None:
    assert origin(reverse, ("Host", host)) == f"{reverse.scheme}://{host}"
    assert origin(reverse, pseudo=host) == f"{reverse.scheme}://{host}"


@pytest.mark.parametrize(
    ("reverse", "host"),
    [(LOCAL, "127.0.0.1"), (LOCAL, "127.0.0.1:9002"), (LOCAL, "gw.test:443"), (LOCAL, "sub.any.test"), (LOCAL, "evil.test:9001"), (SECURE, "gw.test:80")],
)  # fmt: skip
def test_other_names(reverse: Reverse, host: str) -> None:
    assert code(reverse, ("Host", host)) is Code.AUTHORITY_MISMATCH
    assert code(reverse, pseudo=host) is Code.AUTHORITY_MISMATCH


def test_what_names_no_one_host() -> None:
    for reverse in (LOCAL, SOCKET):
        assert code(reverse) is Code.BAD_REQUEST
        assert code(reverse, ("Host", "")) is Code.BAD_REQUEST
        assert code(reverse, ("Host", "localhost:9001"), ("host", "localhost:9001")) is Code.BAD_REQUEST
        for host in ("0x7f.1:9001", "2130706433:9001", "a@localhost:9001", "localhost:9001/", "loc\u00e4l host"):
            assert code(reverse, ("Host", host)) is Code.BAD_REQUEST
        assert code(reverse, ("host", "localhost:9001"), pseudo="127.0.0.1:9001") is Code.AUTHORITY_MISMATCH


def test_pages() -> None:
    host = ("Host", "localhost:9001")
    for fields in (
        (),
        (("Origin", "http://localhost:9001"),),
        (("origin", "HTTP://LOCALHOST:9001"), ("Sec-Fetch-Site", "same-origin")),
    ):
        assert origin(LOCAL, host, *fields)
    for name, value in (
        ("Origin", "null"),
        ("Origin", "http://127.0.0.1:9001"),
        ("Origin", "http://localhost"),
        ("Origin", "https://localhost:9001"),
        ("Sec-Fetch-Site", "same-site"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", ""),
    ):
        assert code(LOCAL, host, (name, value)) is Code.ACCESS_DENIED
    assert code(SOCKET, ("Host", "a"), ("Origin", "http://b")) is Code.ACCESS_DENIED


def test_the_upstreams_origin_leaves() -> None:
    without = head(("Host", "a"))
    assert for_upstream(without, API) is without
    fields = for_upstream(
        head(("A", "1"), ("Origin", "http://a"), ("B", "2")), Authority("in.test", 8080, cleartext=True)
    ).fields
    assert fields == ((b"A", b"1"), (b"Origin", b"http://in.test:8080"), (b"B", b"2"))
    assert for_upstream(head(("Origin", "http://a")), API).fields == ((b"Origin", b"https://api.test"),)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"https://api.test/a?b#c", b"http://a:1/a?b#c"),
        (b"https://api.test", b"http://a:1"),
        (b"https://api.test?x", b"http://a:1?x"),
        (b"HTTPS://API.TEST.:443/", b"http://a:1/"),
        (b"//api.test/a", b"http://a:1/a"),
        (b"/a", None),
        (b"a//api.test", None),
        (b"https:/api.test/", None),
        (b"http://api.test/", None),
        (b"https://api.test:444/", None),
        (b"https://api.test@evil.test/", None),
        (b"https://evil.test/https://api.test/", None),
        (b"https://api.test\\evil.test/", None),
        (b"https://api.test /", None),
        (b"ftp://api.test/", None),
        (b"", None),
    ],
)
def test_places(said: bytes, told: bytes | None) -> None:
    fields: Fields = ((b"X", said), (b"location", said), (b"Content-Location", said))
    found = for_caller(fields, API, CalledAs(b"http://a:1"))
    if told is None:
        assert found is fields
    else:
        assert found == ((b"X", said), (b"location", told), (b"Content-Location", told))


def test_nothing_is_copied_where_no_place_stands() -> None:
    fields: Fields = ((b"Server-x", b"1"), (b"ETag", b"2"))
    assert for_caller(fields, API, CalledAs(b"http://a:1")) is fields


def test_a_proof_is_asked_for_as_a_server_does() -> None:
    for refusal, status in (
        (Refusal(Code.PROOF_REQUIRED, "x"), 401),
        (Refusal(Code.PROOF_INVALID, "x"), 401),
        (Refusal(Code.ROUTE_DENIED, "x"), 403),
    ):
        found = answer(refusal, "id", reverse=True)
        names = [name for name, _ in found.headers]
        assert found.status == status
        assert "Proxy-Authenticate" not in names
        assert names.count("WWW-Authenticate") == (2 if status == 401 else 0)
        assert answer(refusal, "id").status == {401: 407}.get(status, status)
    assert (
        presented_key(head(("Proxy-Authorization", "Bearer a"), ("Authorization", "Bearer b")), REVERSE_FIELD) is None
    )
    assert presented_key(head(("x-ostiary-authorization", "Bearer a")), REVERSE_FIELD) is not None
    with pytest.raises(Refusal, match="X-Ostiary-Authorization must be"):
        presented_key(head(("X-Ostiary-Authorization", "Digest a")), REVERSE_FIELD)
