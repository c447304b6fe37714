"""The HMAC profile on the way in: what our own signer makes holds, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.refusal import Code, Refusal
from addons.signing.hmac_lines import sign_hmac
from addons.signing.outgoing import Outgoing
from addons.verifying.claim import Claim
from addons.verifying.hmac_lines import claim_hmac
from policies.sign import Encoding, HmacSigner, SentName, TimestampForm
from policies.template import parse_template
from policies.verify import HmacVerifier
from tests.harness.signing import credential, outgoing

NOW_S = 1_790_000_000.25
KEY = parse_template("{secret.key}")
FORM = HmacSigner(
    KEY, SentName("header", "X-Signature"), SentName("header", "X-Timestamp"), SentName("header", "X-Nonce"), host=True
)
SECRET = credential({"key": "k"})


def signed(form: HmacSigner, target: bytes = b"/v1?a=1", body: bytes = b"body", now_s: float = NOW_S) -> Outgoing:
    made = outgoing("POST", target, [(b"Content-Type", b"a/b")], body)
    sign_hmac(form, made, SECRET, now_s)
    return outgoing("POST", made.target, made.fields, body)


def claimed(form: HmacSigner, request: Outgoing, now_s: float = NOW_S, skew_s: float = 300.0) -> Claim:
    return claim_hmac(HmacVerifier((KEY,), form, skew_s), request, now_s)


@pytest.mark.parametrize("encoding", ["hex", "base64", "base64url"])
@pytest.mark.parametrize("timestamp", ["seconds", "milliseconds", "rfc3339"])
@pytest.mark.parametrize("place", ["header", "query"])
def test_what_our_signer_makes_holds(encoding: Encoding, timestamp: TimestampForm, place: str) -> None:
    form = replace(FORM, encoding=encoding, timestamp_form=timestamp, headers=("content-type",))
    if place == "query":
        form = replace(form, signature=SentName("query", "sig"), timestamp=SentName("query", "ts"), nonce=SentName("query", "n"))  # fmt: skip
    request = signed(form)
    claim = claimed(form, request)
    assert claim.holds(SECRET)
    assert not claim.holds(credential({"key": "another"}))
    assert claim.single is not None
    assert 298 < claim.single.ttl_s <= 300
    for changed in (
        outgoing("PUT", request.target, request.fields, b"body"),
        outgoing("POST", request.target.replace(b"/v1", b"/v2"), request.fields, b"body"),
        outgoing("POST", request.target + b"&b=2", request.fields, b"body"),
        outgoing("POST", request.target, request.fields, b"bodY"),
        outgoing("POST", request.target, request.fields, b"body", host=b"other.test"),
        outgoing("POST", request.target, [*request.fields, (b"Content-Type", b"c/d")], b"body"),
    ):
        assert not claimed(form, changed).holds(SECRET)


@pytest.mark.parametrize("off_s", [-301.5, 302.0])
def test_the_skew_counts_either_way(off_s: float) -> None:
    for form in (FORM, replace(FORM, timestamp_form="rfc3339")):
        with pytest.raises(Refusal) as refusal:
            claimed(form, signed(form), NOW_S + off_s)
        assert refusal.value.code is Code.SIGNATURE_INVALID
        assert claimed(form, signed(form), NOW_S + off_s * 0.99).holds(SECRET)
    with pytest.raises(Refusal):
        claimed(FORM, signed(FORM), NOW_S + 5, skew_s=3)


def test_a_nonce_is_remembered_until_its_signature_is_too_old() -> None:
    for ahead_s in (-200, 0, 200):
        single = claimed(FORM, signed(FORM, now_s=NOW_S + ahead_s)).single
        assert single is not None
        assert single.ttl_s == pytest.approx(300 + ahead_s, abs=1.0)


def test_keys_that_are_not_there_are_passed_over_but_for_the_first() -> None:
    both = HmacVerifier((KEY, parse_template("{secret.before}")), FORM)
    claim = claim_hmac(both, signed(FORM), NOW_S)
    assert [one.field for one in claim.reads] == ["key", "before"]
    assert [one.field for one in claim.needed] == ["key"]
    assert claim.holds(credential({"key": "k"}))
    assert claim.holds(credential({"key": "new", "before": "k"}))
    assert not claim.holds(credential({"key": "new", "before": "old"}))
    with pytest.raises(Refusal) as refusal:
        claim.holds(credential({"key": "k", "before": ""}))
    assert refusal.value.code is Code.SECRET_MALFORMED


@given(
    st.lists(
        st.tuples(st.sampled_from([b"X-Signature", b"X-Timestamp", b"X-Nonce", b"x-nonce"]), st.binary(max_size=80))
    )
)
def test_whatever_comes_is_refused(fields: list[tuple[bytes, bytes]]) -> None:
    try:
        claim = claimed(FORM, outgoing("GET", b"/", fields))
    except Refusal as refusal:
        assert refusal.code is Code.SIGNATURE_INVALID  # noqa: PT017 - most are refused here
        return
    assert not claim.holds(SECRET)
