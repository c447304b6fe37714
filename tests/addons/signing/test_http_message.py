"""HTTP message signatures against appendix B of RFC 9421, and digests against RFC 9530 (vectors/README.md)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from addons.credentials import Credential
from addons.refusal import Code, Refusal
from addons.signing.http_message import content_digest, sign_message, signature_base
from addons.signing.outgoing import Outgoing
from policies.sign import Component, HttpMessageSigner, MessageAlgorithm
from policies.template import parse_template
from tests.harness.signing import credential, outgoing

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "rfc9421.json").read_text())
CASES = {case["label"]: case for case in VECTORS["cases"]}
ALGORITHMS: dict[str, MessageAlgorithm] = {
    "test-key-rsa-pss": "rsa-pss-sha512",
    "test-key-ecc-p256": "ecdsa-p256-sha256",
    "test-key-ed25519": "ed25519",
    "test-shared-secret": "hmac-sha256",
}
DETERMINISTIC = {"test-key-ed25519", "test-shared-secret"}
NOW_S = 1_618_884_473.7


def request_of(text: str) -> Outgoing:
    head, _, body = text.partition("\n\n")
    line, *lines = head.splitlines()
    method, target, _ = line.split(" ")
    fields = [(name.encode(), value.strip().encode()) for name, _, value in (one.partition(":") for one in lines)]
    host = next(value for name, value in fields if name == b"Host")
    return outgoing(method, target.encode(), fields, body.rstrip("\n").encode(), host=host)


def components_of(base: str) -> tuple[list[Component], list[tuple[str, str | int]]]:
    last = base.splitlines()[-1].partition(": ")[2]
    inner, _, rest = last[1:].partition(")")
    components = [
        Component(name, parameter or None) for name, parameter in re.findall(r'"([^"]+)"(?:;name="([^"]*)")?', inner)
    ]
    parameters: list[tuple[str, str | int]] = [
        (name, text if quoted else int(number))
        for name, quoted, text, number in re.findall(r';([a-z]+)=(?:(")([^"]*)"|(\d+))', rest)
    ]
    return components, parameters


def verifies(key: str, signature: bytes, base: bytes) -> bool:
    """By the public half of the key, with nothing of ours."""
    if key == "test-shared-secret":
        secret = base64.b64decode(VECTORS["keys"][key]["base64"])
        return hmac.compare_digest(hmac.new(secret, base, hashlib.sha256).digest(), signature)
    public = load_pem_public_key(VECTORS["keys"][key]["public"].encode())
    try:
        match public:
            case ed25519.Ed25519PublicKey():
                public.verify(signature, base)
            case ec.EllipticCurvePublicKey():
                assert len(signature) == 64
                r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
                public.verify(encode_dss_signature(r, s), base, ec.ECDSA(hashes.SHA256()))
            case rsa.RSAPublicKey():
                public.verify(signature, base, padding.PSS(padding.MGF1(hashes.SHA512()), 64), hashes.SHA512())
            case _:
                raise AssertionError(type(public))
    except InvalidSignature:
        return False
    return True


def signed_message(signer: HttpMessageSigner, request: Outgoing, held: Credential, now_s: float) -> Outgoing:
    sign_message(signer, request, held, now_s)
    return request


def signer(key: str, *components: Component, **given: Any) -> HttpMessageSigner:
    return HttpMessageSigner(
        key_id=parse_template(key),
        algorithm=ALGORITHMS[key],
        key=parse_template("{secret}"),
        components=components or (Component("@method"),),
        key_encoding="base64" if key == "test-shared-secret" else "utf8",
        **given,
    )


def secret_of(key: str) -> dict[str, str | bytes]:
    held = VECTORS["keys"][key]
    return {"key": held.get("private") or held["base64"]}


@pytest.mark.parametrize("label", CASES)
def test_signature_bases_of_the_rfc(label: str) -> None:
    case = CASES[label]
    components, parameters = components_of(case["base"])
    base, params = signature_base(request_of(VECTORS["requests"][case["request"]]), components, parameters)
    assert base.decode() == case["base"]
    assert base.endswith(b'"@signature-params": ' + params)
    assert verifies(case["key"], base64.b64decode(case["signature"]), base)


@pytest.mark.parametrize("key", ALGORITHMS)
def test_what_we_sign_verifies_with_the_keys_of_the_rfc(key: str) -> None:
    one = signer(
        key,
        Component("@method"),
        Component("@target-uri"),
        Component("content-digest"),
        expires_s=300,
        tag="t",
        nonce=True,
        label="own",
    )
    request = request_of(VECTORS["requests"]["test-request"])
    made = signed_message(one, request, credential(secret_of(key)), NOW_S)
    (given,), (value,) = made.values(b"signature-input"), made.values(b"signature")
    match = re.fullmatch(
        rb'own=(\("@method" "@target-uri" "content-digest"\);created=1618884473;expires=1618884773;nonce="[A-Za-z0-9_-]{22}";alg="'
        + ALGORITHMS[key].encode() + b'";keyid="' + key.encode() + b'";tag="t")',
        given,
    )  # fmt: skip
    assert match, given
    # The body's digest replaces what the request said of it.
    digest = b"sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"
    assert made.values(b"content-digest") == [digest]
    base = (
        b'"@method": POST\n"@target-uri": https://example.com/foo?param=Value&Pet=dog\n"content-digest": ' + digest
        + b'\n"@signature-params": ' + match[1]
    )  # fmt: skip
    found = re.fullmatch(rb"own=:([A-Za-z0-9+/=]+):", value)
    assert found
    assert verifies(key, base64.b64decode(found[1]), base)
    assert not verifies(key, base64.b64decode(found[1]), base.replace(b"POST", b"PUT"))


def test_two_signers_leave_two_signatures() -> None:
    request = outgoing("GET", b"/")
    for key, label in (("test-key-ed25519", "a"), ("test-shared-secret", "b")):
        request = signed_message(signer(key, label=label), request, credential(secret_of(key)), NOW_S)
    (given,), (value,) = request.values(b"signature-input"), request.values(b"signature")
    assert re.fullmatch(rb"a=\(.*, b=\(.*", given)
    assert re.fullmatch(rb"a=:[^:]+:, b=:[^:]+:", value)


@pytest.mark.parametrize(
    ("body", "digest"),
    [
        (b'{"hello": "world"}\n', b"sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"),
        (b"", b"sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"),
    ],
)
def test_digests_of_the_rfc(body: bytes, digest: bytes) -> None:
    """RFC 9530 appendix B.1 and B.2."""
    assert content_digest(body) == digest


@pytest.mark.parametrize(
    ("component", "target", "fields", "value"),
    [
        (Component("@target-uri"), b"/a?b=c", (), b"https://api.test/a?b=c"),
        (Component("@target-uri"), b"*", (), b"https://api.test"),
        (Component("@request-target"), b"/a?b", (), b"/a?b"),
        (Component("@scheme"), b"/", (), b"https"),
        (Component("@path"), b"/a%20b?c", (), b"/a%20b"),
        (Component("@path"), b"*", (), b"/"),
        (Component("@query"), b"/a", (), b"?"),
        (Component("@query"), b"/a?", (), b"?"),
        # RFC 9421 section 2.2.8
        (Component("@query-param", "var"), b"/parameters?var=this%20is%20a%20big%0Amultiline%20value&bar=with+plus+whitespace&fa%C3%A7ade%22%3A%20=something", (), b"this%20is%20a%20big%0Amultiline%20value"),
        (Component("@query-param", "bar"), b"/parameters?var=x&bar=with+plus+whitespace", (), b"with%20plus%20whitespace"),
        (Component("@query-param", "fa%C3%A7ade%22%3A%20"), b"/parameters?fa%C3%A7ade%22%3A%20=something", (), b"something"),
        (Component("x-a"), b"/", ((b"X-A", b" 1 "), (b"x-a", b"2")), b"1, 2"),
        # RFC 9421 section 2.1.3
        (Component("example-header", bytes_form=True), b"/", ((b"Example-Header", b"value, with, lots"), (b"Example-Header", b"of, commas")), b":dmFsdWUsIHdpdGgsIGxvdHM=:, :b2YsIGNvbW1hcw==:"),
    ],
)  # fmt: skip
def test_values_of_components(
    component: Component, target: bytes, fields: tuple[tuple[bytes, bytes], ...], value: bytes
) -> None:
    base, _ = signature_base(outgoing("GET", target, fields), [component], [])
    assert base.split(b"\n")[0].partition(b": ")[2] == value


@pytest.mark.parametrize(
    ("component", "target", "fields"),
    [
        (Component("x-absent"), b"/", ()),
        (Component("@query-param", "a"), b"/?b=1", ()),
        (Component("@query-param", "a"), b"/?a=1&a=2", ()),
        (Component("x-latin"), b"/", ((b"X-Latin", b"\xe9"),)),
    ],
)
def test_what_cannot_be_signed_is_refused(
    component: Component, target: bytes, fields: tuple[tuple[bytes, bytes], ...]
) -> None:
    with pytest.raises(Refusal) as caught:
        signature_base(outgoing("GET", target, fields), [component], [])
    assert caught.value.code is Code.BAD_REQUEST


def test_a_body_that_streams_has_no_digest() -> None:
    one = signer("test-key-ed25519", Component("content-digest"))
    with pytest.raises(Refusal) as caught:
        sign_message(one, outgoing("POST", b"/", body=None), credential(secret_of("test-key-ed25519")), NOW_S)
    assert caught.value.code is Code.INTERNAL


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ("test-key-ed25519", "not a key"),
        ("test-key-ed25519", VECTORS["keys"]["test-key-ecc-p256"]["private"]),
        ("test-key-rsa-pss", VECTORS["keys"]["test-key-ed25519"]["private"]),
        ("test-key-ecc-p256", VECTORS["keys"]["test-key-ed25519"]["public"]),
        ("test-shared-secret", "%%%%"),
        ("test-shared-secret", ""),
    ],
)
def test_a_key_of_another_kind_is_malformed(key: str, secret: str) -> None:
    with pytest.raises(Refusal) as caught:
        sign_message(signer(key), outgoing("GET", b"/"), credential({"key": secret}), NOW_S)
    assert caught.value.code is Code.SECRET_MALFORMED
    assert secret == "" or secret not in caught.value.message
    assert caught.value.__cause__ is None


def test_a_key_id_cannot_break_out_of_its_string() -> None:
    one = HttpMessageSigner(
        parse_template("{secret.id}"), "ed25519", parse_template("{secret}"), (Component("@method"),)
    )
    given = {**secret_of("test-key-ed25519"), "id": 'a";alg="x\\'}
    made = signed_message(one, outgoing("GET", b"/"), credential(given), NOW_S)
    assert rb';keyid="a\";alg=\"x\\"' in made.values(b"signature-input")[0]
