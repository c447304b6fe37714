"""Each example of docs/reference/verifying.md verifies what a sender of its kind makes, and the client of the page makes what it takes."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from addons.credentials import Credential
from addons.refusal import Code, Refusal
from addons.verifying.apply import Verifying
from addons.verifying.claim import Claim
from addons.verifying.sns import CertificateClaim
from addons.verifying.webhooks import MAX_FORM_FIELDS
from policies import load_policy
from policies.keys import LATER, SNS, TWILIO, VERIFY, VERIFY_HMAC, VERIFY_MESSAGE
from policies.load_verify import MAX_KEYS
from policies.model import CredentialSpec, Route, SecretSpec
from policies.verify import MAX_SKEW_S, SNS_MAX_SKEW_S
from tests.harness.senders import Message, Sns, github, public_pem, slack, standard, stripe, twilio
from tests.harness.signing import outgoing
from vault.hashicorp.transit import MOST_WAITING
from vault.keys import MAX_TEXT_BYTES
from vault.secret import Secret

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "verifying.md"
TEXT = PAGE.read_text()
BODY = b'{"size": 1}'


def routes(tmp_path: Path) -> dict[str, Route]:
    found: dict[str, Route] = {}
    for number, text in enumerate(re.findall(r"^```yaml policy\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        found |= load_policy([path]).routes
    return found


def keys(**fields: str) -> Credential:
    spec = CredentialSpec("keys", {"keys": SecretSpec("secret/keys")})
    return Credential(spec, {"keys": {name: Secret(value) for name, value in fields.items()}})


def claimed(
    route: Route, headers: list[str], body: bytes = BODY, target: str = "/v1/x?a=1", host: str = "api.example.com"
) -> Claim | CertificateClaim:
    assert route.verify is not None
    fields = [(name.encode(), value.strip().encode()) for name, _, value in (one.partition(":") for one in headers)]
    request = outgoing("POST", target.encode(), fields, body, host=host.encode())
    verifying = Verifying(route.verify)
    verifying.judge_head(request.caller)
    return verifying.claim(request, dt.datetime.now(dt.UTC).timestamp())


def holds(claim: Claim | CertificateClaim, held: Credential) -> bool:
    assert isinstance(claim, Claim)
    return claim.holds(held)


def hmac(route: Route) -> None:
    (program,) = re.findall(r"^```python signed.py\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(program, "signed.py", "exec"), scope)  # noqa: S102 - the page's own client
    made = scope["headers"](b"k", "POST", "/v1/x?a=1", "api.example.com", "application/json", BODY)
    headers = [f"{name}: {value}" for name, value in made.items()]
    assert holds(claimed(route, headers), keys(current="k"))
    assert holds(claimed(route, headers), keys(current="n", previous="k"))
    assert not holds(claimed(route, headers, target="/v1/x?a=2"), keys(current="k"))
    assert not holds(claimed(route, headers, host="other.example.com"), keys(current="k"))


def messages(route: Route) -> None:
    private = Ed25519PrivateKey.generate()
    headers = Message(private, "billing-2026", "https://api.example.com").headers("POST", "/v1/x?a=1", BODY)
    assert holds(claimed(route, headers), keys(current=public_pem(private)))
    assert not holds(claimed(route, headers, target="/v1/x?a=2"), keys(current=public_pem(private)))


def hooked(make: Callable[[str], list[str]], *names: str) -> Callable[[Route], None]:
    def run(route: Route) -> None:
        for name in names:
            held = keys(**{names[0]: "new", name: "k"})
            assert holds(claimed(route, make("k")), held)
            assert not holds(claimed(route, make("other")), held)

    return run


def twilio_(route: Route) -> None:
    headers = twilio("k", "https://hooks.example.com/twilio/sms", "From=%2B1&To=2")
    sent = claimed(route, headers, b"From=%2B1&To=2", "/twilio/sms", "127.0.0.1:9001")
    assert holds(sent, keys(primary="new", secondary="k"))
    assert not holds(claimed(route, headers, b"From=%2B1&To=3", "/twilio/sms"), keys(primary="k"))


def standard_(route: Route) -> None:
    headers = standard(b"shared key", "msg_1", BODY)
    assert holds(claimed(route, headers), keys(current="whsec_c2hhcmVkIGtleQ=="))
    assert not holds(claimed(route, headers, BODY + b" "), keys(current="whsec_c2hhcmVkIGtleQ=="))


def sns(route: Route) -> None:
    topic = Sns()
    claim = claimed(route, [], topic.message("hello"))
    assert isinstance(claim, CertificateClaim)
    assert (claim.host, claim.path) == (Sns.host, Sns.path)
    assert claim.holds(topic.private.public_key())
    assert not claim.holds(Sns().private.public_key())


def vaulted(route: Route) -> None:
    """What Vault is asked for, and what is compared with its answer."""
    lines = ["POST", "/v1/x?a=1", "host:api.example.com", "x-timestamp:{at}", "x-nonce:n", sha256(BODY).hexdigest()]
    at = str(int(dt.datetime.now(dt.UTC).timestamp()))
    made = b"m" * 32
    claim = claimed(route, [f"X-Signature: sha256={made.hex()}", f"X-Timestamp: {at}", "X-Nonce: n"])
    assert isinstance(claim, Claim)
    assert claim.remote is not None
    assert (claim.remote.use.path, claim.remote.signature) == ("transit/hmac/billing-requests", made)
    assert claim.remote.text(keys()).decode() == "\n".join(lines).format(at=at)
    with pytest.raises(Refusal):
        claimed(route, ["X-Signature: sha256=00", f"X-Timestamp: {at}", "X-Nonce: n"])


EXAMPLES: dict[str, Callable[[Route], None]] = {
    "signed": hmac,
    "vaulted": vaulted,
    "messages": messages,
    "stripe": hooked(lambda key: stripe([key], BODY), "current", "previous"),
    "github": hooked(lambda key: github(key, BODY), "current", "previous"),
    "slack": hooked(lambda key: slack(key, BODY), "current"),
    "twilio": twilio_,
    "standard": standard_,
    "sns": sns,
}


def test_each_example_verifies(tmp_path: Path) -> None:
    found = routes(tmp_path)
    assert set(found) == set(EXAMPLES)
    for name, check in EXAMPLES.items():
        check(found[name])
        with pytest.raises(Refusal) as refusal:
            claimed(found[name], [])
        assert refusal.value.code is Code.SIGNATURE_INVALID


def test_every_key_and_number_is_on_the_page() -> None:
    for table in (VERIFY, VERIFY_HMAC, VERIFY_MESSAGE, TWILIO, SNS):
        for key in table:
            assert f"`{key}`" in TEXT or f"{key}:" in TEXT, key
    for key in LATER["verify_message"]:
        assert f"`{key}`" in TEXT
    assert (MAX_KEYS, MAX_SKEW_S, SNS_MAX_SKEW_S, MAX_FORM_FIELDS) == (8, 300.0, 3900.0, 1000)
    assert (MOST_WAITING, MAX_TEXT_BYTES) == (512, 1024 * 1024)
    for said in ("at most 8", "300s", "65m", "at most 512", "over 1 MiB"):
        assert said in TEXT
