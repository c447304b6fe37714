"""What stripe-python signs and verifies, we verify."""

from __future__ import annotations

import datetime as dt
import subprocess
from pathlib import Path

import pytest

from addons.refusal import Refusal
from addons.verifying.webhooks import claim_webhook
from policies.template import parse_template
from policies.verify import WebhookVerifier
from tests.harness.ostiary_process import clean_environment
from tests.harness.signing import credential, outgoing
from tests.harness.two_ways import PROGRAMS

BODY = '{"id": "evt_1", "object": "event", "text": "\u00e9"}'


def test_stripes_own_signer(client_python: Path) -> None:
    program = PROGRAMS / "python" / "stripe_signs.py"
    done = subprocess.run(
        [str(client_python), str(program), "whsec_of-the-test", BODY],
        capture_output=True, text=True, timeout=60, check=False, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    field = done.stdout.strip().encode()
    own = WebhookVerifier("stripe", (parse_template("{secret.key}"),))
    now_s = dt.datetime.now(dt.UTC).timestamp()

    def holds(body: str, at_s: float = now_s) -> bool:
        request = outgoing("POST", b"/stripe", [(b"Stripe-Signature", field)], body.encode())
        return claim_webhook(own, request, at_s).holds(credential({"key": "whsec_of-the-test"}))

    assert holds(BODY)
    assert not holds(BODY + " ")
    with pytest.raises(Refusal, match="older"):
        holds(BODY, now_s + 400)
