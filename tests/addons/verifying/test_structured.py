"""Structured fields as RFC 8941 has them, and nothing else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.verifying.structured import MAX_ITEMS, MAX_MEMBERS, InnerList, Item, Malformed, Token, read_dictionary


def test_what_signatures_are_made_of() -> None:
    assert read_dictionary((b'a=("@method" "x";bs "y";name="q\\"r");created=-1;k="v";t, b=:AQI=:',)) == {
        "a": InnerList(
            (Item("@method"), Item("x", (("bs", True),)), Item("y", (("name", 'q"r'),))),
            (("created", -1), ("k", "v"), ("t", True)),
        ),
        "b": Item(b"\1\2"),
    }
    # Several lines of a field are one, parted by commas (section 4.2).
    assert read_dictionary((b"a=1", b"b;x=?0, c=tok/en")) == {
        "a": Item(1),
        "b": Item(value=True, parameters=(("x", False),)),
        "c": Item(Token("tok/en")),
    }
    assert read_dictionary((b"",)) == {}
    assert read_dictionary((b"a=(  )",)) == {"a": InnerList(())}


@pytest.mark.parametrize(
    "text",
    [
        "a=1,", "a=1,,b=2", ",a=1", "a 1", "A=1", "a=1 b=2", "a=1, a=2", "a=(1", "a=(1 2", "a=(1,2)", "a=(1)2", 'a=("b""c")', "a=",
        'a="', 'a="\\x"', 'a="\x7f"', "a=:AQI:", "a=:A*:", "a=::x", "a=?2", "a=1.5", "a=1234567890123456", "a;=1", "a;x=", "a=1;x;x",
        "a=@1", "a=(1\t2)", "a=\xe9",
    ],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        read_dictionary((text.encode("latin-1"),))


def test_nothing_grows_without_bound() -> None:
    def members(count: int) -> bytes:
        return ", ".join(f"k{number}=1" for number in range(count)).encode()

    read_dictionary((members(MAX_MEMBERS),))
    read_dictionary((b"a=(" + b" ".join([b"1"] * MAX_ITEMS) + b")",))
    for bad in (members(MAX_MEMBERS + 1), b"a=(" + b" ".join([b"1"] * (MAX_ITEMS + 1)) + b")"):
        with pytest.raises(Malformed):
            read_dictionary((bad,))


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(raw: bytes) -> None:
    with contextlib.suppress(Malformed):
        read_dictionary((raw,))
