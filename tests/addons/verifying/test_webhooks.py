"""Webhooks against the examples of their vendors (vectors/README.md), with each part altered."""

from __future__ import annotations

import pytest

from addons.refusal import Code, Refusal
from addons.signing.outgoing import Outgoing
from addons.verifying.claim import Claim
from addons.verifying.webhooks import claim_webhook
from policies.template import parse_template
from policies.verify import Scheme, WebhookVerifier
from tests.harness.signing import credential, outgoing

GITHUB = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar"
    b"&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com"
    b"%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
TWILIO_BODY = b"CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&From=%2B14158675309&To=%2B18005551212"
FORM = (b"Content-Type", b"application/x-www-form-urlencoded")


def request(target: bytes, body: bytes, *fields: tuple[bytes, bytes], host: bytes = b"mycompany.com") -> Outgoing:
    return outgoing("POST", target, fields, body, host=host)


EXAMPLES: dict[Scheme, tuple[str, float, Outgoing]] = {
    "github": (
        "It's a Secret to Everybody",
        0.0,
        request(b"/", b"Hello, World!", (b"X-Hub-Signature-256", b"sha256=" + GITHUB.encode())),
    ),
    "slack": (
        "8f742231b10e8888abcd99yyyzzz85a5",
        1_531_420_618.0,
        request(
            b"/",
            SLACK_BODY,
            (b"X-Slack-Request-Timestamp", b"1531420618"),
            (b"X-Slack-Signature", b"v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"),
        ),
    ),
    "twilio": (
        "12345",
        0.0,
        request(b"/myapp.php?foo=1&bar=2", TWILIO_BODY, FORM, (b"X-Twilio-Signature", b"RSOYDt4T1cUTdK1PDd93/VVr8B8=")),
    ),
    "standard_webhooks": (
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        1_614_265_330.0,
        request(
            b"/",
            b'{"test": 2432232314}',
            (b"webhook-id", b"msg_p5jXN8AQM9LWM0D4loKWxJek"),
            (b"webhook-timestamp", b"1614265330"),
            (b"webhook-signature", b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        ),
    ),
}


def verifier(scheme: Scheme, **given: str) -> WebhookVerifier:
    keys = (parse_template("{secret.key}"), parse_template("{secret.before}"))
    return WebhookVerifier(scheme, keys, 300.0, given.get("origin"))


def claimed(scheme: Scheme, now_s: float, sent: Outgoing) -> Claim:
    return claim_webhook(verifier(scheme), sent, now_s)


def altered(sent: Outgoing, **changed: bytes) -> Outgoing:
    return outgoing(
        "POST",
        changed.get("target", sent.target),
        sent.fields,
        changed.get("body", sent.body or b""),
        host=changed.get("host", sent.host),
    )


@pytest.mark.parametrize("scheme", EXAMPLES)
def test_the_vendors_own_example(scheme: Scheme) -> None:
    key, now_s, sent = EXAMPLES[scheme]
    claim = claimed(scheme, now_s, sent)
    assert claim.holds(credential({"key": key}))
    assert claim.holds(credential({"key": "another", "before": key}) if scheme != "standard_webhooks" else credential({"key": "whsec_AAAA", "before": key}))  # fmt: skip
    assert not claim.holds(credential({"key": "whsec_AAAA" if scheme == "standard_webhooks" else "another"}))
    assert not claimed(scheme, now_s, altered(sent, body=(sent.body or b"").replace(b"1", b"2") + b"x")).holds(
        credential({"key": key})
    )


@pytest.mark.parametrize("scheme", ["slack", "standard_webhooks"])
@pytest.mark.parametrize("off_s", [-301.0, 301.0])
def test_too_old_and_too_new(scheme: Scheme, off_s: float) -> None:
    _, now_s, sent = EXAMPLES[scheme]
    with pytest.raises(Refusal) as refused:
        claimed(scheme, now_s + off_s, sent)
    assert refused.value.code is Code.SIGNATURE_INVALID
    claimed(scheme, now_s + off_s * 299 / 301, sent)


def test_twilio_signs_the_url_it_was_given() -> None:
    key, now_s, sent = EXAMPLES["twilio"]
    secret = credential({"key": key})
    elsewhere = altered(sent, host=b"10.0.0.1:9001")
    assert not claimed("twilio", now_s, elsewhere).holds(secret)
    for origin in ("https://mycompany.com", "https://mycompany.com:443"):
        assert claim_webhook(verifier("twilio", origin=origin), elsewhere, now_s).holds(secret)
    assert not claim_webhook(verifier("twilio", origin="http://mycompany.com"), elsewhere, now_s).holds(secret)
    assert not claimed("twilio", now_s, altered(sent, target=b"/myapp.php?foo=1&bar=3")).holds(secret)


def test_twilio_takes_a_field_that_stands_several_times_as_its_libraries_do() -> None:
    # twilio-python, tests/unit/test_request_validator.py: sorted, each value once.
    body = b"Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234&Digits=1234"
    sent = request(b"/myapp.php?foo=1&bar=2", body, FORM, (b"X-Twilio-Signature", b"IK+Dwps556ElfBT0I3Rgjkr1wJU="))
    assert claimed("twilio", 0.0, sent).holds(credential({"key": "12345"}))


@pytest.mark.parametrize("more", [b"&=", b"&=&=", b"&Text=%FE", b"&Text=%EF%BF"])
def test_twilio_refuses_a_form_that_others_would_be_signed_like(more: bytes) -> None:
    """A field without name and value adds nothing to the text, and all that is no UTF-8 would be one character."""
    sent = EXAMPLES["twilio"][2]
    with pytest.raises(Refusal) as refused:
        claimed("twilio", 0.0, altered(sent, body=TWILIO_BODY + more))
    assert refused.value.code is Code.SIGNATURE_INVALID


def test_twilio_binds_another_body_by_its_digest() -> None:
    # The body and its digest of twilio-php's tests.
    body = b'{"property": "value", "boolean": true}'
    target = b"/myapp.php?foo=1&bar=2&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620"
    fields = ((b"Content-Type", b"application/json"), (b"X-Twilio-Signature", b"a9nBmqA0ju/hNViExpshrM61xv4="))
    assert claimed("twilio", 0.0, request(target, body, *fields)).holds(credential({"key": "12345"}))
    for bad in (request(target, body + b" ", *fields), request(b"/myapp.php?foo=1&bar=2", body, *fields)):
        with pytest.raises(Refusal) as refused:
            claimed("twilio", 0.0, bad)
        assert refused.value.code is Code.SIGNATURE_INVALID


@pytest.mark.parametrize("scheme", EXAMPLES)
def test_a_key_that_is_none(scheme: Scheme) -> None:
    key, now_s, sent = EXAMPLES[scheme]
    claim = claimed(scheme, now_s, sent)
    # Without its prefix a public key would be taken for a shared one, which everybody has.
    bare = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    for value in ("", "ends\n", *(("whpk_AAAA", "whsec_!", bare) if scheme == "standard_webhooks" else ())):
        with pytest.raises(Refusal) as refused:
            claim.holds(credential({"key": value, "before": key}))
        assert refused.value.code is Code.SECRET_MALFORMED
        assert value not in refused.value.message or not value
