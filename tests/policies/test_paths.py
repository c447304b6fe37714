"""Paths: one reading or none, and patterns that match just what they say."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.paths import can_meet, parse_pattern, read_path

MATCHES = [
    ("/v1/x", "/v1/x", True),
    ("/v1/x", "/v1/x/", False),
    ("/v1/x/**", "/v1/x", True),
    ("/v1/x/**", "/v1/x/", True),
    ("/v1/x/**", "/v1/x/a/b", True),
    ("/v1/x/**", "/v1/xa", False),
    ("/v1/*", "/v1/a", True),
    ("/v1/*", "/v1/", False),
    ("/v1/*", "/v1/a/b", False),
    ("/v1/bot*/send", "/v1/bot123/send", True),
    ("/v1/bot*/send", "/v1/bot/send", True),
    ("/v1/bot*/send", "/v1/bo/send", False),
    ("/a/**/z", "/a/z", True),
    ("/a/**/z", "/a/b/c/z", True),
    ("/a/**/z", "/a/b/c", False),
    ("/**", "/", True),
    ("/**", "/a/b/", True),
    ("/A", "/a", False),
    ("/a%20b", "/a%20b", True),
    ("/%C3%A9", "/%c3%a9", True),
    ("/a.b", "/aXb", False),
    ("/@s%2fn", "/@s%2Fn", True),
    ("/@s%2f*", "/@s%2fn", True),
    ("/@s/*", "/@s%2fn", False),
    ("/*", "/a%2fb", False),
    ("/**", "/a%2fb", False),
]


@pytest.mark.parametrize(("pattern", "path", "expected"), MATCHES)
def test_matching(pattern: str, path: str, expected: bool) -> None:
    canonical = read_path(path, encoded_slash=True)
    assert canonical is not None
    assert parse_pattern(pattern).matches(canonical) is expected


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "*",
        "//",
        "/a//b",
        "/./a",
        "/a/..",
        "/%2e",
        "/a/%2E%2e/b",
        "/a;b",
        "/a%3Bb",
        "/a\\b",
        "/a%5cb",
        "/%00",
        "/%0a",
        "/%7f",
        "/%25",
        "/%2525",
        "/%",
        "/%g0",
        "/%ff",
        "/%c0%af",
        "/é",
        "/a b",
        "/a\tb",
        "/a?b",
        "/a#b",
        "/a%2fb",
        "/a|b",
        '/a"b',
    ],
)
def test_what_two_parsers_could_read_in_two_ways_has_no_reading(path: str) -> None:
    assert read_path(path) is None


@given(
    st.lists(
        st.text(
            st.characters(min_codepoint=0x21, max_codepoint=0x24F, exclude_characters="/.;\\%"), min_size=1, max_size=6
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_spelling_of_a_path_reads_the_same(segments: list[str]) -> None:
    escaped = "/" + "/".join(quote(segment, safe="") for segment in segments)
    everything = "/" + "/".join("".join(f"%{byte:02x}" for byte in segment.encode()) for segment in segments)
    canonical = read_path(escaped)
    if canonical is not None and read_path(everything) is not None:
        assert canonical == read_path(everything) == "/" + "/".join(segments)


@given(st.text(max_size=40))
def test_reading_never_fails_and_never_keeps_dots(path: str) -> None:
    canonical = read_path("/" + path)
    if canonical is not None:
        assert ".." not in canonical.split("/")
        assert "//" not in canonical
        assert all(ord(char) >= 0x20 for char in canonical)


def test_specificity() -> None:
    order = ["/**", "/a/**", "/a/*", "/a/b*", "/a/b", "/a/b/c"]
    ranks = [parse_pattern(text).rank for text in order]
    assert ranks[:5] == sorted(ranks[:5])
    assert parse_pattern("/a/b/c").rank > parse_pattern("/a/b/**").rank


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("/a/*", "/a/*", True),
        ("/a/b", "/a/c", False),
        ("/a/*/x", "/a/*/y", False),
        ("/a/b*", "/a/*c", True),
        ("/a/b*", "/a/c*", False),
        ("/a/*", "/a/**", False),
    ],
)
def test_patterns_that_can_match_the_same_path(one: str, other: str, meet: bool) -> None:
    assert can_meet(parse_pattern(one), parse_pattern(other)) is meet
