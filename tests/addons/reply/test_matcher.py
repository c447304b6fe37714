"""The search for a credential in an answer: whatever the split, the coding and the spelling."""

from __future__ import annotations

import base64
import gzip
import html
import itertools
import json
import zlib
from collections.abc import Callable
from random import Random
from urllib.parse import quote, quote_plus

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from addons.refusal import Code, Refusal
from addons.reply.codings import STEP_BYTES
from addons.reply.matcher import Matcher, Redactor
from addons.reply.scrub import BodyScrub, Scrub
from addons.reply.spellings import MAX_PROBES, MIN_VALUE_BYTES, encoded, spellings_of

KEY = "sk_live_51Hx-Yz0123456789abcdefGHIJ"
HARD = 'p@ss/w+rd "x"\\=<&>é%25'


def _go(value: str) -> bytes:
    """As Go's encoding/json writes it."""
    text = json.dumps(value, ensure_ascii=False)[1:-1]
    return "".join(f"\\u{ord(one):04x}" if one in "<>&" else one for one in text).encode()


def _middle(shift: int, encode: Callable[[bytes], bytes]) -> Callable[[str], bytes]:
    def form(value: str) -> bytes:
        raw = value.encode()
        found = encode(b"\xff" * shift + raw)
        return found[-(-shift * 4 // 3) : (shift + len(raw)) * 4 // 3]

    return form


FORMS: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "url": lambda value: quote(value, safe="").encode(),
    "url-lower": lambda value: quote(value, safe="").lower().encode() if value.islower() else quote(value).encode(),
    "form": lambda value: quote_plus(value).encode(),
    "url-twice": lambda value: quote(quote(value, safe=""), safe="").encode(),
    "json": lambda value: json.dumps(value)[1:-1].encode(),
    "json-utf8": lambda value: json.dumps(value, ensure_ascii=False)[1:-1].encode(),
    "json-go": _go,
    "json-php": lambda value: json.dumps(value)[1:-1].replace("/", "\\/").encode(),
    "html": lambda value: html.escape(value).encode(),
    "hex": lambda value: value.encode().hex().encode(),
    "hex-upper": lambda value: value.encode().hex().upper().encode(),
    **{f"base64-{shift}": _middle(shift, base64.b64encode) for shift in range(3)},
    **{f"base64url-{shift}": _middle(shift, base64.urlsafe_b64encode) for shift in range(3)},
    "base64-in-url": lambda value: quote(base64.b64encode(value.encode()).rstrip(b"="), safe="").encode(),
    "base64-in-json": lambda value: base64.b64encode(value.encode()).rstrip(b"=").replace(b"/", b"\\/"),
}
CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}

secrets = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x2FF, exclude_characters="\x7f") | st.sampled_from('+/="\\<>&% '),
    min_size=8,
    max_size=40,
).filter(lambda text: len(set(text)) > 3 and not set(text) & set("*#~!.xX0"))
around = st.binary(max_size=200)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut at these places, empty pieces left out (they mean the end)."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


def through(matcher: Matcher, parts: list[bytes], *codings: str, block: bool = False) -> bytes:
    body = BodyScrub(Scrub(matcher, block), codings)
    return b"".join(piece for part in (*parts, b"") for piece in body.feed(part))


@settings(max_examples=400, deadline=None)
@given(
    secrets,
    st.sampled_from(sorted(FORMS)),
    around,
    around,
    st.lists(st.integers(0, 10_000), max_size=12),
    st.sampled_from([None, *CODINGS]),
)
def test_no_split_no_coding_and_no_spelling_lets_a_value_through(
    secret: str, form: str, before: bytes, behind: bytes, cuts: list[int], coding: str | None
) -> None:
    shown = FORMS[form](secret)
    body = before + shown + behind
    wire = CODINGS[coding](body) if coding else body
    out = through(Matcher(spellings_of(secret)), pieces(wire, cuts), *([coding] if coding else []))
    assert shown not in out
    assert len(out) == len(body)


@settings(max_examples=200, deadline=None)
@given(
    secrets,
    around,
    st.lists(st.integers(0, 10_000), max_size=12),
    st.sampled_from([None, *CODINGS]),
    st.integers(0, 40),
)
def test_a_body_without_it_comes_out_byte_for_byte(
    secret: str, body: bytes, cuts: list[int], coding: str | None, part: int
) -> None:
    matcher = Matcher(spellings_of(secret))
    body += secret.encode()[: min(part, len(secret.encode()) - 1)]  # nearly
    if matcher.finds(body):
        return
    wire = CODINGS[coding](body) if coding else body
    assert through(matcher, pieces(wire, cuts), *([coding] if coding else [])) == body


@pytest.mark.parametrize("value", [KEY, HARD])
def test_every_cut_of_every_spelling(value: str) -> None:
    matcher = Matcher(spellings_of(value))
    for name, form in FORMS.items():
        shown = form(value)
        for cut in range(1, len(shown)):
            redactor = Redactor(matcher)
            out = redactor.feed(b"<" + shown[:cut]) + redactor.feed(shown[cut:] + b">") + redactor.end()
            assert shown not in out, name
            assert len(out) == len(shown) + 2
            assert redactor.count == 1
        out = through(matcher, [bytes((byte,)) for byte in b"<" + shown + b">"])
        assert shown not in out
        assert out[:1] + out[-1:] == b"<>"


def test_fill_is_as_long_as_what_it_replaces_and_is_none_of_its_bytes() -> None:
    redacted, count = Matcher(spellings_of(KEY)).redact(f'{{"key":"{KEY}"}}'.encode())
    assert (redacted, count) == (b'{"key":"' + b"*" * len(KEY) + b'"}', 1)
    star = "abc*def*ghi"
    redacted, _ = Matcher(spellings_of(star)).redact(star.encode() * 2)
    assert redacted == b"~" * 22  # the number sign stands in entities


@settings(max_examples=100, deadline=None)
@given(secrets, st.randoms(use_true_random=False))
def test_every_way_to_write_a_value_holds_a_probe_and_begins_as_is_known(secret: str, random: Random) -> None:
    for value in (secret, secret.encode()):
        for spelling in spellings_of(value):
            assert 0 < len(spelling.probes) <= MAX_PROBES
            assert min(map(len, spelling.probes)) >= 2
            for _ in range(20):
                way = b"".join(random.choice(part) for part in spelling.parts)
                assert any(probe in way for probe in spelling.probes)
                assert way.startswith(tuple(spelling.beginnings))


def test_bytes_that_look_like_it_alone_leave_as_they_are() -> None:
    matcher = Matcher(spellings_of(KEY))
    probes = [probe for spelling in spellings_of(KEY) for probe in (*spelling.probes, *spelling.beginnings)]
    body = b"".join(probe + KEY[:-1].encode() for probe in probes) * 50
    assert matcher.may_find(body)
    assert through(matcher, pieces(body, list(range(0, 40_000, 97)))) == body


def test_several_values_that_overlap() -> None:
    matcher = Matcher((*spellings_of("abcdef"), *spellings_of("defghi"), *spellings_of("cdefgh")))
    assert matcher.redact(b"<abcdefghi>") == (b"<*********>", 1)
    assert through(matcher, [b"<abcde", b"f", b"ghi>"]).count(b"*") >= 6


def test_nothing_waits_that_cannot_become_the_value() -> None:
    redactor = Redactor(Matcher(spellings_of(KEY)))
    for event in (b"data: hello\n\n", b'data: {"delta":"sk"}\n\n', b'{"a":"b"}'):
        assert redactor.feed(event) == event
    assert redactor.feed(b"data: " + KEY.encode()[:9]) == b"data: "
    assert redactor.feed(b"!") == KEY.encode()[:9] + b"!"
    assert redactor.end() == b""


def test_a_few_bytes_that_begin_it_by_chance_do_not_wait_and_the_rest_is_filled() -> None:
    redactor = Redactor(Matcher(spellings_of(KEY)))
    out = [redactor.feed(one) for one in (b"\x00s", b"k", b"_", b"l", KEY[4:].encode(), b"\x00sk", b"y")]
    assert out[:4] == [b"\x00s", b"k", b"_", b""]
    assert b"".join(out) == b"\x00sk_" + b"*" * (len(KEY) - 3) + b"\x00sky"
    assert redactor.count == 1


def test_what_is_held_back_is_bounded() -> None:
    matcher = Matcher(spellings_of(HARD))
    redactor = Redactor(matcher)
    given_bytes = left = 0
    for _ in range(200):
        piece = HARD.encode()[:-1] * 3
        given_bytes += len(piece)
        left += len(redactor.feed(piece))
        assert given_bytes - left < matcher.longest


def test_a_short_value_is_not_looked_for() -> None:
    assert spellings_of("a" * (MIN_VALUE_BYTES - 1)) == ()
    assert spellings_of("") == ()
    assert len(spellings_of("abcd")) == 2  # itself and its digits: Base64 would be too short


def test_bytes_that_are_no_text() -> None:
    raw = bytes(range(200, 232))
    matcher = Matcher(spellings_of(raw))
    for shown in (raw, raw.hex().encode(), base64.b64encode(raw).rstrip(b"="), quote(raw).encode()):
        assert matcher.finds(b"x" + shown + b"y")


def test_basic_as_a_whole() -> None:
    token = base64.b64encode(b"user:pa/ss+w?rd>>")
    matcher = Matcher([encoded(token.rstrip(b"="))])
    assert matcher.redact(b"Basic " + token)[0] == b"Basic " + b"*" * len(token.rstrip(b"=")) + b"=" * token.count(b"=")


def test_a_long_key_costs_nothing_to_look_for() -> None:
    pem = "-----BEGIN KEY-----\n" + "\n".join("Q" * 60 + f"{line:04}" for line in range(50)) + "\n-----END KEY-----\n"
    matcher = Matcher(spellings_of(pem))
    for shown in (pem.encode(), json.dumps(pem).encode(), quote(pem).encode()):
        assert pem[100:160].encode() not in through(matcher, pieces(shown, list(range(0, 5000, 37))))


def test_a_coded_body_is_decoded_as_it_is_asked_for() -> None:
    bomb = gzip.compress(bytes(1 << 28), 9)
    body = BodyScrub(Scrub(Matcher(spellings_of(KEY)), block=False), ["gzip"])
    taken = iter(body.feed(bomb))
    assert sum(len(next(taken)) for _ in range(4)) <= 4 * STEP_BYTES
    with pytest.raises(Refusal):
        list(taken)


def test_block_ends_the_body_before_anything_of_it_leaves() -> None:
    body = BodyScrub(Scrub(Matcher(spellings_of(KEY)), block=True), ())
    assert body.feed(b"one") == (b"one",)
    assert body.feed(b"two" + KEY[:5].encode()) == (b"two",)
    with pytest.raises(Refusal) as caught:
        body.feed(KEY[5:].encode())
    assert caught.value.code is Code.REPLY_BLOCKED
    assert KEY not in str(caught.value)


def test_nothing_is_printed_or_pickled() -> None:
    matcher = Matcher(spellings_of(KEY))
    for one in (*spellings_of(KEY), matcher, Redactor(matcher), BodyScrub(Scrub(matcher, block=False), ())):
        assert KEY[:8] not in repr(one)
    with pytest.raises(TypeError):
        matcher.__reduce_ex__(4)
    with pytest.raises(TypeError):
        spellings_of(KEY)[0].__reduce_ex__(4)
