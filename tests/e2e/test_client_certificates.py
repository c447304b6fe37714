"""Client certificates and pinned keys towards upstreams, in the real process (P8)."""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from tests.harness.client import Raw, get, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.upstream import Seen, Upstream, Wire, serving

HEAD = "\nworkloads:\n  billing: {proofs: [{any: true}]}\nroutes:\n"


def route(name: str, host: str, path: str, tls: str, more: str = "") -> str:
    return f'  {name}:\n    match: {{host: {host}, paths: "/{path}/**"}}\n    allow: billing\n    tls: {tls}\n{more}'


def cert(path: str, more: str = "ttl: 0, ") -> str:
    return f"{{client_cert: {{path: secret/egress/{path}, {more}cert: cert_pem, key: key_pem}}}}"


BEARER = '    secret: {path: secret/egress/api, field: key, ttl: 0}\n    inject: {bearer: "{secret}"}\n'


def pin(key: Any) -> str:
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return "sha256/" + base64.b64encode(hashlib.sha256(spki).digest()).decode()


def fields(pair: tuple[str, str]) -> dict[str, str]:
    return {"cert_pem": pair[0], "key_pem": pair[1]}


def named(seen: Seen, wire: Wire) -> None:
    wire.answer(200, (seen.client or "nobody").encode())


def send(raw: Raw, path: str, host: str = "api.test", *headers: str) -> tuple[int, bytes]:
    answer = raw.request("\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]))
    return answer.status, answer.body


def test_certificates_of_routes(ostiary: Callable[..., Ostiary], pki: Pki, tmp_path: Path) -> None:
    """Each route shows its own certificate, and what is wrong with one is told before anything is dialled."""
    one, two, old = pki.client("one"), pki.client("two"), pki.client("old", expired=True)
    other = Pki.make(tmp_path / "other").client("stranger")
    context = pki.asking("api.test")
    context.verify_mode = ssl.CERT_OPTIONAL
    bad = {
        "expired": fields(old),
        "mixed": {"cert_pem": one[0], "key_pem": two[1]},
        "no-pem": {"cert_pem": "-----BEGIN nothing", "key_pem": one[1]},
        "no-key": {"cert_pem": one[0], "key_pem": "-----BEGIN nothing"},
    }
    policy = HEAD + route("one", "api.test", "one", cert("one"), BEARER)
    policy += route("two", "api.test", "two", cert("two")) + route(
        "none", "api.test", "none", f"{{pin_spki: {pin(pki.key)}}}"
    )
    policy += route("stranger", "api.test", "stranger", cert("stranger"))
    policy += "".join(route(name, "api.test", name, cert(name)) for name in bad)
    policy += route("gone", "api.test", "gone", cert("gone"))
    secrets = {
        "secret/egress/api": {"key": "bearer-canary-8271"},
        "secret/egress/one": fields(one),
        "secret/egress/two": fields(two),
        "secret/egress/stranger": fields(other),
        **{f"secret/egress/{name}": found for name, found in bad.items()},
    }
    with serving(Upstream(context, named)) as api:
        proxy = ostiary(policy, upstreams={"api.test:443": api.port}, secrets=secrets)
        proxy.canaries += [line for pair in (one, two, old, other) for line in pair[1].splitlines()[1:-1]]
        address = proxy.address("sidecar")
        # G58: on one connection of the caller, in turns: who is shown is the route's, and no connection serves two.
        with tunnel(address, proxy.ca) as raw:
            for _ in range(3):
                assert send(raw, "/one/a") == (200, b"one")
                assert send(raw, "/two/a") == (200, b"two")
                assert send(raw, "/none/a") == (200, b"nobody")
        by_connection: dict[int, set[str | None]] = {}
        for seen in api.requests:
            by_connection.setdefault(seen.connection, set()).add(seen.client)
        assert all(len(who) == 1 for who in by_connection.values())
        assert {seen.get("authorization") for seen in api.requests if seen.client == "one"} == {
            "Bearer bearer-canary-8271"
        }
        assert {seen.get("authorization") for seen in api.requests if seen.client != "one"} == {None}
        opened = proxy.wait_audit("credential.opened", 9)
        assert {(record["route"], record["secret"], record["secret_version"]) for record in opened} == {
            ("one", "secret/egress/api", "1"),
            ("one", "secret/egress/one", "2"),
            ("two", "secret/egress/two", "2"),
        }
        dialled, requests = api.connections, len(api.requests)
        for name in bad:
            answer = get(address, proxy.ca, f"/{name}/a")
            assert (answer.status, answer.code) == (502, "secret_malformed"), (name, answer.body)
        assert get(address, proxy.ca, "/gone/a").code == "secret_missing"
        assert api.connections == dialled
        # Of a CA that the upstream does not know: whatever TLS version tells it when, nothing reaches the application.
        assert get(address, proxy.ca, "/stranger/a").status == 502
        assert len(api.requests) == requests
        closed = proxy.wait_audit("credential.closed", 9 + len(bad) + 1)
        assert {record["outcome"] for record in closed} >= {"ok", "refused"}
        # Over plain http no certificate can be shown.
        with Raw(address) as raw:
            refused = raw.request("GET http://api.test:443/one/a HTTP/1.1\r\nHost: api.test:443\r\n\r\n")
        assert refused.status in {400, 403}
        assert len(api.requests) == requests


def test_pins_and_roots(ostiary: Callable[..., Ostiary], pki: Pki, tmp_path: Path) -> None:
    """A key that is not pinned ends the handshake's connection before a byte of the request; roots follow a reload."""
    pair, other = pki.client("one"), Pki.make(tmp_path / "roots")
    wrong, mine = pin(other.key), pin(pki.key)
    path = pki.certificate("api.test")
    leaf = pin(serialization.load_pem_private_key(path.read_bytes(), None))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    context.load_verify_locations(str(pki.ca_file))
    context.verify_mode = ssl.CERT_OPTIONAL
    both = cert("one").removesuffix("}")

    def policy(roots: str = "") -> str:
        shown = HEAD + route("chain", "api.test", "chain", f"{{pin_spki: [{wrong}, {mine}]}}", BEARER)
        shown += route("leaf", "api.test", "leaf", f"{both}, pin_spki: {leaf}}}")
        shown += route("wrong", "api.test", "wrong", f"{both}, pin_spki: {wrong}}}", BEARER)
        shown += route("own", "own.test", "own", "{ca_file: roots.pem}", BEARER)
        return shown + roots

    secrets = {"secret/egress/api": {"key": "bearer-canary-8272"}, "secret/egress/one": fields(pair)}
    with serving(Upstream(context, named)) as api, serving(Upstream(other.context("own.test"), named)) as own:
        proxy = ostiary(
            policy(), start=False, upstreams={"api.test:443": api.port, "own.test:443": own.port}, secrets=secrets
        )
        roots = proxy.folder / "roots.pem"
        roots.write_bytes(pki.ca_file.read_bytes())
        proxy.run()
        address = proxy.address("sidecar")
        for _ in range(2):
            assert get(address, proxy.ca, "/chain/a").body == b"nobody"
            assert get(address, proxy.ca, "/leaf/a").body == b"one"
            before = len(api.raw)
            refused = get(address, proxy.ca, "/wrong/a")
            assert (refused.status, refused.code) == (502, "upstream_tls"), refused.body
            assert b"pins" in refused.body
            assert len(api.raw) == before
        # The upstream that the new roots do not prove was proven by the old ones, and the other way round.
        assert get(address, proxy.ca, "/own/a", authority="own.test:443").code == "upstream_tls"
        roots.write_bytes(other.ca_file.read_bytes())
        proxy.reload(policy())
        with tunnel(address, proxy.ca, "own.test:443") as raw:
            assert send(raw, "/own/a", "own.test") == (200, b"nobody")
            roots.write_bytes(pki.ca_file.read_bytes())
            proxy.reload(policy())
            assert send(raw, "/own/a", "own.test")[0] == 502


def test_an_upstream_without_the_pin_is_shown_nothing(
    ostiary: Callable[..., Ostiary], pki: Pki, tmp_path: Path
) -> None:
    """Neither the certificate nor a byte, in either version of TLS; nor one whose certificate cannot be read here."""
    wrong, lax = pin(Pki.make(tmp_path / "roots").key), pki.lax("api.test")
    both = cert("one").removesuffix("}")
    policy = HEAD + route("new", "new.test", "a", f"{both}, pin_spki: {wrong}}}")
    policy += route("old", "old.test", "a", f"{both}, pin_spki: {wrong}}}")
    policy += route("lax", "api.test", "a", f"{both}, pin_spki: {wrong}}}")
    policy += route("rooted", "api.test", "rooted", f"{both}, pin_spki: {pin(pki.key)}}}")
    contexts = {name: pki.asking(f"{name}.test") for name in ("new", "old", "api")}
    contexts["old"].maximum_version = ssl.TLSVersion.TLSv1_2
    contexts["api"].load_cert_chain(lax)
    with (
        serving(Upstream(contexts["new"], named)) as new,
        serving(Upstream(contexts["old"], named)) as old,
        serving(Upstream(contexts["api"], named)) as api,
    ):
        ports = {"new.test:443": new.port, "old.test:443": old.port, "api.test:443": api.port}
        proxy = ostiary(policy, upstreams=ports, secrets={"secret/egress/one": fields(pki.client("one"))})
        for authority in ports:
            answer = get(proxy.address("sidecar"), proxy.ca, "/a/a", authority=authority)
            assert (answer.status, answer.code) == (502, "upstream_tls"), (authority, answer.body)
            assert b"pins" in answer.body
        assert get(proxy.address("sidecar"), proxy.ca, "/rooted/a").body == b"one"
        assert (new.clients, old.clients, api.clients) == ([], [], ["one"])
        assert not new.raw
        assert not old.raw


@pytest.mark.parametrize("alpn", [("h2", "http/1.1")])
def test_over_http2(ostiary: Callable[..., Ostiary], pki: Pki, alpn: tuple[str, ...]) -> None:
    """Streams of one HTTP/2 connection with certificates of two routes leave on two connections."""
    one, two = pki.client("one"), pki.client("two")
    policy = HEAD + route("one", "api.test", "one", cert("one"), "    http2: prefer\n")
    policy += route("two", "api.test", "two", cert("two"), "    http2: prefer\n")
    secrets = {"secret/egress/one": fields(one), "secret/egress/two": fields(two)}
    with serving(Upstream(pki.asking("api.test", alpn=alpn))) as api:
        proxy = ostiary(policy, upstreams={"api.test:443": api.port}, secrets=secrets)
        with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
            for path in ("/one/a", "/two/a", "/one/b", "/two/b"):
                assert send(raw, path)[0] == 200
        assert [(seen.target, seen.client, seen.http2) for seen in api.requests] == [
            ("/one/a", "one", True), ("/two/a", "two", True), ("/one/b", "one", True), ("/two/b", "two", True),
        ]  # fmt: skip
        shown = {(seen.client, seen.connection) for seen in api.requests}
        assert len({port for _, port in shown}) == len(shown)
