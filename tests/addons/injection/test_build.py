"""Injection: what leaves, for every injector, whatever the caller sent."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import pytest

from addons.credentials import Credential
from addons.exchange import Authority
from addons.head import Fields, HeadersToSend, RequestHead
from addons.injection import (
    applicable,
    brought,
    build_forward,
    build_with_credential,
    plan_for,
    references,
    reject_caller_credentials,
)
from addons.injection.places import CREDENTIAL_HEADERS
from addons.refusal import Code, Refusal
from policies.faults import Place
from policies.model import (
    AllowEntry,
    BasicInjector,
    BearerInjector,
    CredentialSpec,
    HeaderInjector,
    HostPattern,
    Injector,
    QueryInjector,
    Route,
    SecretSpec,
    SwapInjector,
)
from policies.template import FieldRef, parse_template
from vault.secret import Secret

AUTHORITY = Authority("api.test", 443)
SPEC = CredentialSpec("r", {"secret": SecretSpec("secret/r", "key")})


def route(*injectors: Injector, caller_credentials: str = "replace") -> Route:
    return Route(
        name="r",
        place=Place("p.yaml"),
        hosts=(HostPattern("api.test"),),
        port=443,
        allow=(AllowEntry(frozenset({"w"}), "allow[0]"),),
        credential=SPEC,
        inject=injectors,
        caller_credentials=caller_credentials,  # type: ignore[arg-type]  # tests pass the literals
    )


def credential(**fields: str | bytes) -> Credential:
    values: Mapping[str, Secret] = {name: Secret(value) for name, value in fields.items()}
    return Credential(SPEC, {"secret": values})


def head(fields: Fields = (), target: bytes = b"/v1", *, http2: bool = False) -> RequestHead:
    return RequestHead("GET", target, ((b"Host", b"api.test"), *fields), http2=http2)


def built(chosen: Route, request: RequestHead, values: Credential) -> HeadersToSend:
    plan = plan_for(chosen)
    return build_with_credential(plan, applicable(plan, request), request, AUTHORITY, values)


def test_header_replaces_every_spelling_of_its_name() -> None:
    chosen = route(HeaderInjector("X-Custom", parse_template("Key {secret}")))
    sent = built(
        chosen, head(((b"x-custom", b"mine"), (b"X-CUSTOM", b"mine too"), (b"Accept", b"*/*"))), credential(key="s3")
    )
    assert sent.fields == ((b"Host", b"api.test"), (b"Accept", b"*/*"), (b"X-Custom", b"Key s3"))


def test_bearer_and_basic() -> None:
    assert (b"Authorization", b"Bearer s3") in built(
        route(BearerInjector(parse_template("{secret}"))), head(), credential(key="s3")
    ).fields
    basic = route(BasicInjector(parse_template("{secret.user}"), parse_template("{secret}")))
    sent = built(basic, head(), credential(user="bob", key="pä:ss"))
    assert (b"Authorization", b"Basic " + base64.b64encode("bob:pä:ss".encode())) in sent.fields


def test_basic_user_with_a_colon_is_malformed() -> None:
    with pytest.raises(Refusal) as refused:
        built(
            route(BasicInjector(parse_template("{secret.user}"), parse_template(""))),
            head(),
            credential(user="a:b", key="x"),
        )
    assert refused.value.code is Code.SECRET_MALFORMED


def test_query_replaces_its_name_and_leaves_the_rest_byte_for_byte() -> None:
    chosen = route(QueryInjector("key", parse_template("{secret}")))
    sent = built(chosen, head(target=b"/v1?a=%7e&k%65y=mine&key=also&b=c+d&&api_key=x"), credential(key="s3&=+ /ü"))
    assert sent.target == b"/v1?a=%7e&b=c+d&&key=s3%26%3D%2B%20%2F%C3%BC"
    assert built(chosen, head(target=b"/v1?key=mine"), credential(key="s")).target == b"/v1?key=s"


@pytest.mark.parametrize("name", sorted(CREDENTIAL_HEADERS))
def test_every_known_place_is_stripped_on_a_credentialed_route(name: bytes) -> None:
    chosen = route(HeaderInjector("X-Other", parse_template("{secret}")))
    sent = built(chosen, head(((name.title(), b"mine"),)), credential(key="s3"))
    assert b"mine" not in {value for _, value in sent.fields}


def test_overrides_and_hop_by_hop_fields_never_travel() -> None:
    names = (
        b"Connection",
        b"Keep-Alive",
        b"TE",
        b"Upgrade",
        b"Proxy-Authorization",
        b"Proxy-Connection",
        b"X-HTTP-Method-Override",
        b"X-Original-URL",
        b"X-Ostiary-Trace",
        b"Expect",
    )
    for chosen in (route(), route(BearerInjector(parse_template("{secret}")))):
        request = head(tuple((name, b"x") for name in names))
        plan = plan_for(chosen)
        sent = build_forward(plan, request, AUTHORITY)
        assert sent.fields == ((b"Host", b"api.test"),)


def test_connection_cannot_remove_the_credential_or_the_framing() -> None:
    request = head(
        ((b"Connection", b"authorization, content-length, X-Hop"), (b"Content-Length", b"3"), (b"X-Hop", b"1"))
    )
    sent = built(route(BearerInjector(parse_template("{secret}"))), request, credential(key="s3"))
    assert sent.fields == ((b"Host", b"api.test"), (b"Content-Length", b"3"), (b"Authorization", b"Bearer s3"))


def test_a_route_without_credential_passes_the_callers_own() -> None:
    request = head(((b"Authorization", b"Bearer mine"),), target=b"/?api_key=mine")
    sent = build_forward(plan_for(route()), request, AUTHORITY)
    assert (b"Authorization", b"Bearer mine") in sent.fields
    assert sent.target == b"/?api_key=mine"


SWAP = SwapInjector("sk-placeholder", ("Authorization", "X-Api-Key"), parse_template("{secret}"))


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (b"sk-placeholder", b"s3"),
        (b"Bearer sk-placeholder", b"Bearer s3"),
        (b"bearer sk-placeholder", b"bearer s3"),
        (b"Basic " + base64.b64encode(b"user:sk-placeholder"), b"Basic " + base64.b64encode(b"user:s3")),
        (b"Basic " + base64.b64encode(b"sk-placeholder:"), b"Basic " + base64.b64encode(b"s3:")),
    ],
)
def test_swap_replaces_a_whole_value(value: bytes, becomes: bytes) -> None:
    sent = built(route(SWAP), head(((b"authorization", value),)), credential(key="s3"))
    assert (b"authorization", becomes) in sent.fields


@pytest.mark.parametrize(
    "value",
    [b"xsk-placeholder", b"sk-placeholder2", b"Bearer sk-placeholder x", b"Token sk-placeholder", b"Basic !!", b"mine"],
)
def test_without_the_whole_placeholder_nothing_is_swapped_and_nothing_of_the_caller_passes(value: bytes) -> None:
    request = head(((b"Authorization", value),))
    plan = plan_for(route(SWAP))
    assert applicable(plan, request) == ()
    assert build_forward(plan, request, AUTHORITY).fields == ((b"Host", b"api.test"),)


@pytest.mark.parametrize("value", ["", "a\r\nX: y", "a\nb", "a\x00", " lead", "trail ", "ü", "a\tb"])
def test_values_that_do_not_fit_a_header_are_malformed(value: str) -> None:
    for injector in (HeaderInjector("X", parse_template("{secret}")), BearerInjector(parse_template("{secret}")), SWAP):
        with pytest.raises(Refusal) as refused:
            built(route(injector), head(((b"X-Api-Key", b"sk-placeholder"),)), credential(key=value))
        assert refused.value.code is Code.SECRET_MALFORMED
        assert not value or value not in refused.value.message


def test_bytes_that_are_no_text_are_malformed() -> None:
    with pytest.raises(Refusal) as refused:
        built(route(BearerInjector(parse_template("{secret}"))), head(), credential(key=b"\xff\xfe"))
    assert refused.value.code is Code.SECRET_MALFORMED


def test_reject_names_the_place_and_not_the_value() -> None:
    plan = plan_for(route(SWAP, caller_credentials="reject"))
    for request in (head(((b"Private-Token", b"canary-1"),)), head(target=b"/?access_token=canary-1")):
        with pytest.raises(Refusal) as refused:
            reject_caller_credentials(plan, request)
        assert refused.value.code is Code.CALLER_CREDENTIALS
        assert "canary" not in refused.value.message
    reject_caller_credentials(plan, head(((b"X-Api-Key", b"sk-placeholder"),)))


@pytest.mark.parametrize(
    ("fields", "target", "place"),
    [
        (((b"Authorization", b"Bearer canary-1"),), b"/", "header:authorization"),
        (((b"Accept", b"*/*"), (b"private-TOKEN", b"canary-1")), b"/", "header:private-token"),
        (((b"authorization", b"Basic " + base64.b64encode(b"me:canary-1")),), b"/", "header:authorization"),
        ((), b"/?a=1&api%5Fkey=canary-1", "query:api_key"),
        # None, an empty one, a placeholder of `ostiary env`, one that will be swapped.
        ((), b"/?a=canary-1", None),
        (((b"Authorization", b"Bearer "),), b"/?api_key=", None),
        (((b"Authorization", b"Bearer sk-ostiary-placeholder"),), b"/?access_token=ostiary-placeholder", None),
        (((b"Authorization", b"Basic " + base64.b64encode(b"sk_test_ostiary_placeholder:")),), b"/", None),
        (((b"X-Api-Key", b"sk-placeholder"),), b"/", None),
    ],
)
def test_where_a_caller_sent_a_credential_of_its_own(
    fields: tuple[tuple[bytes, bytes], ...], target: bytes, place: str | None
) -> None:
    assert brought(plan_for(route(SWAP)), head(fields, target=target)) == place


def test_a_route_that_keeps_what_callers_send_replaces_nothing() -> None:
    sent = head(((b"Authorization", b"Bearer canary-1"),))
    assert brought(plan_for(route(caller_credentials="keep")), sent) is None


def test_references_are_told_once() -> None:
    assert references(
        (
            BasicInjector(parse_template("{secret.user}"), parse_template("{secret}")),
            BearerInjector(parse_template("{secret}")),
        )
    ) == (
        FieldRef("secret", "user"),
        FieldRef("secret"),
    )


def test_http2_names_are_lower_case() -> None:
    chosen = route(HeaderInjector("X-Custom", parse_template("{secret}")))
    request = RequestHead("GET", b"/", ((b"accept", b"*/*"), (b"te", b"trailers")), http2=True)
    sent = built(chosen, request, credential(key="s"))
    assert sent.fields == ((b"host", b"api.test"), (b"accept", b"*/*"), (b"te", b"trailers"), (b"x-custom", b"s"))
