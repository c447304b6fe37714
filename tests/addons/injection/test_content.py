"""A credential inside a body, a cookie and a path: what is put, what stays, and what is refused."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addons.injection.content import JsonBody, judge_content, judge_form, with_fields
from addons.injection.cookies import cookie_value, cookies, with_cookies, without_cookies
from addons.injection.segments import path_with, replaced
from addons.refusal import Code, Refusal
from policies.model import PathInjector
from policies.paths import parse_pattern
from policies.pointer import parse_pointer, pointer_text
from policies.template import FieldRef, Template, parse_template

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.text(max_size=5) | st.sampled_from(["a", "b"]), values, max_size=5),
    st.lists(st.sampled_from(["a", "b", "c/d", "", "~"]), min_size=1, max_size=3),
    st.text(max_size=20),
    st.sampled_from([None, 1]),
)
def test_json_is_what_a_parser_would_have_made(
    document: dict[str, Any], names: list[str], secret: str, indent: int | None
) -> None:
    text = json.dumps(document, indent=indent)
    pointer = tuple(names)
    at: Any = document
    for name in pointer[:-1]:
        at = at.setdefault(name, {}) if isinstance(at, dict) else None
    if not isinstance(at, dict):
        with pytest.raises(Refusal) as caught:
            JsonBody(text.encode(), [pointer])
        assert caught.value.code is Code.BAD_REQUEST
        return
    at[pointer[-1]] = secret
    assert json.loads(JsonBody(text.encode(), [pointer]).put([secret])) == document
    assert parse_pointer(pointer_text(pointer)) == pointer


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b'"x"', b"null", b'{"a":1,"a":1}', b'{"x":{"a":1,"\\u0061":1}}', b'{"a":Infinity}', b'{"a":1}{', b'{"a":01}',
        b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b'{"a":"\n"}', b"[" * 200_000, b'{"a":' * 200_000, b'{"a":[{"b":1,"b":2}]}',
    ],
)  # fmt: skip
def test_json_that_can_be_read_in_two_ways_or_in_none(body: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        JsonBody(body, [("key",)])
    assert caught.value.code is Code.BAD_REQUEST


def test_what_surrounds_a_member_stays_byte_for_byte() -> None:
    text = b' { "n" : 1.50e+01 , "u":"\\u00e9\\/" , "key" : {"old":[1 , 2]} , "z" : -0 } '
    assert JsonBody(text, [("key",)]).put(["s"]) == text.replace(b'{"old":[1 , 2]}', b'"s"')
    assert JsonBody(text, [("key",)]).put([None]) == text.replace(b'{"old":[1 , 2]}', b"null")
    assert JsonBody(b"{}", [("a", "b"), ("a", "c")]).put(["1", "2"]) == b'{"a": {"b": "1", "c": "2"}}'


@pytest.mark.parametrize("pointer", ["", "a", "/~", "/~2", "#/a"])
def test_what_is_no_pointer(pointer: str) -> None:
    with pytest.raises(ValueError, match="pointer"):
        parse_pointer(pointer)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), max_size=5), st.text(min_size=1, max_size=12))
def test_a_form_has_the_field_once(pairs: list[tuple[str, str]], secret: str) -> None:
    from urllib.parse import urlencode

    body = urlencode([*pairs, ("api_key", "mine")]).encode()
    found = parse_qsl(with_fields(body, [("api_key", secret)]).decode(), keep_blank_values=True)
    assert [value for name, value in found if name == "api_key"] == [secret]
    assert found[:-1] == [pair for pair in pairs if pair[0] != "api_key"]


def test_a_field_behind_a_semicolon() -> None:
    judge_form(b"a=1;b=2", ["api_key"])
    with pytest.raises(Refusal):
        judge_form(b"a=1;api%5Fkey=2", ["api_key"])


def test_content_types() -> None:
    judge_content(((b"content-type", b'Application/JSON ; Charset="UTF-8"'),), form=False)
    for value in (b"text/json", b"application/json; charset=latin-1", b"application/json, text/plain", b""):
        with pytest.raises(Refusal):
            judge_content(((b"Content-Type", value),), form=False)
    with pytest.raises(Refusal):
        judge_content((), form=True)


def test_cookies() -> None:
    fields = ((b"Cookie", b"a=1; sid=mine;b = 2"), (b"X", b"y"), (b"cookie", b"sid=x"))
    kept = without_cookies(fields, frozenset({b"sid"}))
    assert kept == ((b"Cookie", b"a=1;b = 2"), (b"X", b"y"))
    assert with_cookies(kept, {b"sid": b"s"}, http2=False)[-1] == (b"Cookie", b"a=1;b = 2; sid=s")
    assert with_cookies((), {b"sid": b"s"}, http2=True) == ((b"cookie", b"sid=s"),)
    assert cookies(fields) == [(b"a", b"1"), (b"sid", b"mine"), (b"b", b"2"), (b"sid", b"x")]
    for value in ("a b", "a;b", 'a"b', "a,b", "a\\b", "é", "", "a\r\nb"):
        with pytest.raises(Refusal) as caught:
            cookie_value(value)
        assert caught.value.code is Code.SECRET_MALFORMED


def injector(pattern: str, head: tuple[str, ...], tail: tuple[str, ...] = ()) -> PathInjector:
    templates = [tuple(parse_template(text) for text in part) for part in (head, tail)]
    return PathInjector(parse_pattern(pattern), templates[0], templates[1], Template(("",)))


def test_paths() -> None:
    def secret(_: FieldRef) -> str:
        return "1:a/b;c%"

    deep = injector("/v1/*/x/**/end", ("v1", "{secret}", "x"), ("end",))
    assert path_with(deep, b"/v1/mine/x/a%20b/c/end", secret) == b"/v1/1:a%2Fb%3Bc%25/x/a%20b/c/end"
    assert path_with(deep, b"/v1/mine/x/end", secret) == b"/v1/1:a%2Fb%3Bc%25/x/end"
    assert replaced(deep, b"/v1/mine/x/a/end") == (b"mine",)
    for path in (
        b"/v1/mine/y/end",
        b"/v1/../x/end",
        b"/v1/a%2fb/x/end",
        b"/v1//x/end",
        b"/v1/mine/x/end;a",
        b"/v1/\xff/x/end",
    ):
        with pytest.raises(Refusal) as caught:
            path_with(deep, path, secret)
        assert caught.value.code is Code.PATH_DENIED
    for value in (".", ".."):
        with pytest.raises(Refusal) as caught:
            path_with(injector("/*", ("{secret}",)), b"/x", lambda _, value=value: value)  # type: ignore[misc]  # mypy knows no defaults of lambdas
        assert caught.value.code is Code.SECRET_MALFORMED
