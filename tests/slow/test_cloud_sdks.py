"""S1: Akamai's, Alibaba Cloud's and Tencent Cloud's SDKs with placeholder keys, against servers that recompute each signature
with the same SDK's own code; and that code as the oracle over requests that nobody would write by hand.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from addons.signing.acs3 import sign_acs3
from addons.signing.edgegrid import sign_edgegrid
from addons.signing.tc3 import sign_tc3
from policies.sign import Acs3Signer, EdgeGridSigner, Tc3Signer
from policies.template import parse_template
from tests.clients.test_aws import Verifier, verifying
from tests.harness.canaries import canary
from tests.harness.installed import python_with
from tests.harness.ostiary_process import ENGINES, Ostiary
from tests.harness.signing import credential, outgoing
from tests.harness.two_ways import PLACEHOLDER, PROGRAMS, Served
from tests.harness.upstream import Seen, Upstream, Wire
from tests.slow.test_provider_sdks import LOCK

pytestmark = pytest.mark.slow
PROGRAM = "clouds_verify.py"
EXAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Cloud:
    """One vendor: how its route signs, and what its program is told back."""

    host: str
    sign: str
    answers: int
    token: str = ""
    """The key of `sign` for temporary keys."""
    answer: bytes = b'{"word": "hello"}'


CLOUDS = {
    "akamai": Cloud("akab-host.luna.akamaiapis.net", 'edgegrid: {client_token: "{secret.id}", client_secret: "{secret.key}", access_token: "{secret.token}"', 4),
    "alibaba": Cloud("ecs.cn-shanghai.aliyuncs.com", 'acs3: {access_key_id: "{secret.id}", access_key_secret: "{secret.key}"', 4, "security_token"),
    "tencent": Cloud("cvm.tencentcloudapi.com", 'tc3: {secret_id: "{secret.id}", secret_key: "{secret.key}", services: [cvm]', 2, "token", b'{"Response": {"word": "hello", "RequestId": "r"}}'),
}  # fmt: skip


@pytest.fixture(scope="session")
def sdk_python() -> Path:
    return python_with("sdks", LOCK, patience_s=600)


@pytest.mark.parametrize("engine", ENGINES[-1:], indirect=True)
@pytest.mark.parametrize(
    ("name", "temporary"),
    [("akamai", False), ("alibaba", False), ("alibaba", True), ("tencent", False), ("tencent", True)],
)
def test_an_sdk_is_signed_anew(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], sdk_python: Path, name: str, temporary: bool
) -> None:
    cloud, secret, wrong = CLOUDS[name], {"id": canary("id"), "key": canary(), "token": canary("token")}, list[str]()
    wanted = {**secret, "token": secret["token"] if temporary or not cloud.token else None}
    with verifying(sdk_python, PROGRAM, id=wanted["id"], secret=wanted["key"], token=wanted["token"]) as verifier:

        def script(seen: Seen, wire: Wire) -> None:
            assert seen.body_bytes == len(seen.body), "larger than the harness keeps"
            fault = verifier.ask(asked(seen.method, cloud.host, seen.target, seen.headers, seen.body))
            if fault:
                wrong.append(f"{seen.method} {seen.target}: {fault}")
            wire.answer(401 if fault else 200, b"{}" if fault else cloud.answer, (("Content-Type", "application/json"),))  # fmt: skip

        api = upstream(script, names=(cloud.host,))
        token = f', {cloud.token}: "{{secret.token}}"' if temporary else ""
        proxy = ostiary(
            f"workloads: {{billing: {{proofs: [{{any: true}}]}}}}\nroutes:\n  cloud:\n    match: {{host: {cloud.host}}}\n"
            f"    allow: billing\n    secret: {{path: secret/egress/cloud}}\n    sign: {{{cloud.sign}{token}}}}}\n",
            start=False,
            upstreams={f"{cloud.host}:443": api.port},
            secrets={"secret/egress/cloud": secret},
        )
        program = (str(sdk_python), str(PROGRAMS / "python" / "clouds.py"), name)
        done = Served(proxy, api, secret["key"], "-").run(
            "exec", *(("env", f"CLOUD_TOKEN={PLACEHOLDER}") if temporary else ()), *program
        )
        assert not wrong
        assert done.code == 0, done.stderr[-2000:]
        assert done.stdout.split() == ["hello"] * cloud.answers
        assert verifier.asked == cloud.answers
    assert PLACEHOLDER.encode() not in bytes(api.raw)


def asked(method: str, host: str, target: str, headers: list[tuple[str, str]], body: bytes) -> dict[str, object]:
    return {
        "method": method, "host": host, "target": target, "headers": headers, "body": base64.b64encode(body).decode(),
    }  # fmt: skip


# --- the oracle ---

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
NAME = st.text("abcXYZ019-_.~", min_size=1, max_size=8)
VALUE = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20).map(str.strip)
ID, KEY, TOKEN = (parse_template(f"{{secret.{name}}}") for name in ("id", "key", "token"))
SECRET = {"id": "AKIDEXAMPLE", "key": "a/key+with=signs", "token": "a/token+with=signs"}


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A request as these SDKs would send it: escaped once, no name twice in the query."""
    path = "/" + "/".join(quote(one, safe="~") for one in draw(st.lists(TEXT.filter(bool), max_size=3)))
    pairs = draw(st.lists(st.tuples(NAME, TEXT), max_size=4, unique_by=lambda pair: pair[0]))
    query = "&".join(f"{name}={quote(value, safe='~')}" for name, value in pairs)
    return {
        "method": draw(st.sampled_from(["GET", "POST", "PUT", "DELETE"])),
        "target": path + (f"?{query}" if query else ""),
        "fields": draw(st.lists(st.tuples(st.sampled_from(["X-Test1", "x-acs-action", "X-Custom"]), VALUE), max_size=3, unique_by=lambda field: field[0])),
        "type": draw(st.sampled_from(["application/json", "application/json; charset=utf-8", "application/x-www-form-urlencoded"])),
        "body": draw(st.binary(max_size=40)),
        "at": draw(st.integers(1_000_000_000, 4_000_000_000)),
    }  # fmt: skip


def agree(python: Path, sign: Callable[[dict[str, Any]], dict[str, object]], **key: Any) -> None:
    """Whether the SDK's code signs each request as ours does, and another request not."""
    with verifying(python, PROGRAM, id=SECRET["id"], secret=SECRET["key"], any_time=True, **key) as verifier:

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(requests())
        def check(one: dict[str, Any]) -> None:
            _judge(verifier, sign(one))

        check()
        assert verifier.asked >= EXAMPLES


def _judge(verifier: Verifier, made: dict[str, object]) -> None:
    assert not verifier.ask(made)
    assert verifier.ask({**made, "method": "PATCH"})


def test_akamai_computes_the_same(sdk_python: Path) -> None:
    def sign(one: dict[str, Any]) -> dict[str, object]:
        fields = [(name.encode(), value.encode()) for name, value in one["fields"]]
        body = one["body"] * 5000
        made = outgoing(one["method"], one["target"].encode(), fields, body)
        sign_edgegrid(EdgeGridSigner(ID, KEY, TOKEN, ("x-test1", "x-custom")), made, credential(SECRET), one["at"])
        sent = [(name.decode(), value.decode()) for name, value in made.fields]
        return asked(one["method"], "api.test", one["target"], sent, body)

    agree(sdk_python, sign, token=SECRET["token"], headers=["x-test1", "x-custom"])


@pytest.mark.parametrize("temporary", [False, True])
def test_alibaba_cloud_computes_the_same(sdk_python: Path, temporary: bool) -> None:
    signer = Acs3Signer(ID, KEY, TOKEN if temporary else None)

    def sign(one: dict[str, Any]) -> dict[str, object]:
        fields = [(name.encode(), value.encode()) for name, value in [*one["fields"], ("Content-Type", one["type"])]]
        made = outgoing(one["method"], one["target"].encode(), fields, one["body"])
        sign_acs3(signer, made, credential(SECRET), one["at"])
        sent = [(name.decode(), value.decode()) for name, value in made.fields]
        return asked(one["method"], "api.test", one["target"], sent, one["body"])

    agree(sdk_python, sign, **({"token": SECRET["token"]} if temporary else {}))


@pytest.mark.parametrize("action", [False, True])
def test_tencent_cloud_computes_the_same(sdk_python: Path, action: bool) -> None:
    """Its API has two kinds of requests: a GET whose parameters are the query, and a POST whose parameters are the body."""
    signer = Tc3Signer(ID, KEY, ("cvm",), TOKEN)

    def sign(one: dict[str, Any]) -> dict[str, object]:
        method = "GET" if one["method"] == "GET" else "POST"
        target = one["target"] if method == "GET" else one["target"].partition("?")[0]
        body = b"" if method == "GET" else one["body"]
        fields = [(b"Content-Type", one["type"].encode())] + ([(b"X-TC-Action", b"DescribeZones")] if action else [])
        made = outgoing(method, target.encode(), fields, body)
        sign_tc3(signer, "cvm", made, credential(SECRET), one["at"])
        sent = [(name.decode(), value.decode()) for name, value in made.fields]
        return asked(method, "api.test", target, sent, body)

    agree(sdk_python, sign, token=SECRET["token"])
