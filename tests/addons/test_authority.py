"""Authorities: reading them from untrusted text, and binding the three places that name one."""

from __future__ import annotations

import pytest

from addons.authority import bind, connect_authority, read_authority, read_host
from addons.exchange import Authority, Tunnel, WorkloadIdentity
from addons.head import Fields, RequestHead
from addons.refusal import Code, Refusal


def head(fields: Fields = (), target: bytes = b"/") -> RequestHead:
    return RequestHead("GET", target, fields, http2=False)


def tunnel(sni: str | None = "api.test", port: int = 443) -> Tunnel:
    return Tunnel(Authority("api.test", port), WorkloadIdentity("billing", "any"), sni=sni, sni_seen=True)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("api.test", "api.test"),
        ("API.Test", "api.test"),
        ("api.test.", "api.test"),
        ("bücher.test", "xn--bcher-kva.test"),
        ("127.0.0.1", "127.0.0.1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("_acme.api.test", "_acme.api.test"),
    ],
)
def test_one_host_has_one_spelling(text: str, host: str) -> None:
    assert read_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        "a\x00b",
        "a%41",
        "a/b",
        "-a.test",
        "a..b",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "1.2.3.4.5",
        "a" * 64,
        "::1%eth0",
        "1::2::3",
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        read_host(text)
    assert refused.value.code is Code.BAD_REQUEST


def test_connect_must_name_a_port() -> None:
    assert read_authority("api.test:8443", default_port=None) == Authority("api.test", 8443)
    assert read_authority("[::1]:443", default_port=None) == Authority("::1", 443)
    for text in (
        "api.test",
        "api.test:",
        "api.test:0",
        "api.test:65536",
        "user@api.test:443",
        "api.test:443/x",
        "::1:443",
    ):
        with pytest.raises(Refusal):
            read_authority(text, default_port=None)


def test_connect_and_its_host_field_agree() -> None:
    assert connect_authority(b"api.test:443", head(((b"Host", b"API.test"),))) == Authority("api.test", 443)
    with pytest.raises(Refusal) as refused:
        connect_authority(b"api.test:443", head(((b"Host", b"other.test"),)))
    assert refused.value.code is Code.AUTHORITY_MISMATCH


@pytest.mark.parametrize("host", [b"api.test", b"API.TEST", b"api.test:443", b"api.test.", b"api.test.:443"])
def test_spellings_of_the_bound_host_pass(host: bytes) -> None:
    assert bind(tunnel(), head(((b"Host", host),)), pseudo_authority=None) == Authority("api.test", 443)


@pytest.mark.parametrize("host", [b"other.test", b"api.test:8443", b"xapi.test", b"127.0.0.1"])
def test_another_host_inside_the_tunnel_is_a_mismatch(host: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        bind(tunnel(), head(((b"Host", host),)), pseudo_authority=None)
    assert refused.value.code is Code.AUTHORITY_MISMATCH


def test_a_host_field_without_a_port_means_443() -> None:
    with pytest.raises(Refusal) as refused:
        bind(tunnel(port=8443), head(((b"Host", b"api.test"),)), pseudo_authority=None)
    assert refused.value.code is Code.AUTHORITY_MISMATCH


def test_sni_is_bound_too() -> None:
    with pytest.raises(Refusal) as refused:
        bind(tunnel(sni="other.test"), head(((b"Host", b"api.test"),)), pseudo_authority=None)
    assert refused.value.code is Code.AUTHORITY_MISMATCH
    assert bind(tunnel(sni=None), head(((b"Host", b"api.test"),)), pseudo_authority=None) == Authority("api.test", 443)


def test_two_hosts_or_none_are_refused() -> None:
    for fields in ((), ((b"Host", b"api.test"), (b"host", b"api.test"))):
        with pytest.raises(Refusal) as refused:
            bind(tunnel(), head(fields), pseudo_authority=None)
        assert refused.value.code is Code.BAD_REQUEST


def test_pseudo_authority_and_host_must_both_agree() -> None:
    assert bind(tunnel(), head(((b"host", b"api.test"),)), pseudo_authority="api.test").host == "api.test"
    for fields, pseudo in ((((b"host", b"other.test"),), "api.test"), ((), "other.test")):
        with pytest.raises(Refusal) as refused:
            bind(tunnel(), head(fields), pseudo_authority=pseudo)
        assert refused.value.code is Code.AUTHORITY_MISMATCH
