"""G41, G53, G60: the admin API is out of reach for whoever the proxy serves and for every web page, whatever is allowed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.admin import Token, block, call, kind, request
from tests.harness.client import Answer, Raw, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.ports import free_port

EVERYTHING = '["0.0.0.0/0", "::/0"]'


def generous(ostiary: Callable[..., Ostiary], token: Token, *, unix: bool = False, default: str = "deny") -> Ostiary:
    """A policy and an egress that allow the admin listener in every way there is."""
    admin, probes = free_port(), free_port()
    hosts = '"127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1", "0.0.0.0", admin.test'
    routes = "".join(
        f"  r{port}: {{match: {{host: [{hosts}], port: {port}}}, allow: billing, egress: {{allow: {EVERYTHING}}}}}\n"
        for port in (admin, probes)
    )
    # The name of an upstream that is dialled where the admin API listens.
    routes += "".join(
        f"  {name}: {{match: {{host: {name}.test}}, allow: billing, egress: {{allow: {EVERYTHING}}}}}\n"
        for name in ("led", "ledto")
    )
    proxy = ostiary(
        f"workloads: {{billing: {{proofs: [{{any: true}}]}}}}\ndefault: {default}\nroutes:\n{routes}",
        admin=block(
            token,
            bind="unix:admin.sock" if unix else f"127.0.0.1:{admin}",
            more=f', probes: "127.0.0.1:{probes}"',
        ),
        egress=f'egress: {{allow: {EVERYTHING}, resolve: {{"led.test:443": "127.0.0.1:{admin}", "ledto.test:443": "127.0.0.1:{probes}", "admin.test:{admin}": "127.0.0.1:{admin}"}}}}',
    )
    proxy.canaries.append(token.value)
    return proxy


def refused(answer: Answer) -> bool:
    """Refused by the proxy itself: an answer of the admin listener has no code of the proxy's."""
    return answer.code in {"egress_denied", "route_denied", "bad_request", "upstream_unreachable"}


def nobody_came(proxy: Ostiary, loads: int = 1) -> None:
    assert len(proxy.audit("policy.loaded")) == loads
    assert not [one for one in proxy.audit("request.refused") if one.get("listener") in {"admin", "probes"}]


def targets(proxy: Ostiary) -> list[tuple[str, str]]:
    """Every spelling of our own listeners: host and port."""
    found = []
    for where in ("admin", "probes"):
        port = str(proxy.ready[where]).rpartition(":")[2]
        found += [(host, port) for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "[::1]")]
    return found


def test_g41_g60_connect_to_the_admin_api(ostiary: Callable[..., Ostiary]) -> None:
    token = Token("ci", "admin")
    proxy = generous(ostiary, token)
    for host, port in targets(proxy):
        authority = f"{host}:{port}"
        with Raw(proxy.address("sidecar")) as raw:
            opened = raw.connect(authority)
            if opened.status == 200:
                # It is intercepted: TLS with us, and then the request is refused. Never bytes to the listener.
                raw.tls(None, None)
                raw.send(request(authority, "POST", "/reload", token=token))
                opened = raw.answer()
            assert refused(opened), (authority, opened)
    nobody_came(proxy)
    denied = [record for record in proxy.audit("request.refused") if record["code"] == "egress_denied"]
    assert {record["port"] for record in denied} == {int(port) for _, port in targets(proxy)}


def test_g41_g60_no_tls_inside_the_tunnel(ostiary: Callable[..., Ostiary]) -> None:
    """The admin API speaks plain HTTP; so would a tunnel to it."""
    token = Token("ci", "admin")
    proxy = generous(ostiary, token)
    with Raw(proxy.address("sidecar")) as raw:
        assert raw.connect(proxy.ready["admin"]).status == 200
        raw.send(request(proxy.ready["admin"], "POST", "/reload", token=token))
        assert b"version" not in raw.sock.recv(65536)
    nobody_came(proxy)


@pytest.mark.parametrize("default", ["tunnel", "observe"])
def test_g41_unopened_tunnels(ostiary: Callable[..., Ostiary], default: str) -> None:
    """Where any authority passes, ours does not."""
    token = Token("ci", "admin")
    proxy = generous(ostiary, token, default=default)
    proxy.reload(f"workloads: {{billing: {{proofs: [{{any: true}}]}}}}\ndefault: {default}\nroutes: {{}}\n")
    for host, port in targets(proxy):
        with Raw(proxy.address("sidecar")) as raw:
            assert raw.connect(f"{host}:{port}").code in {"egress_denied", "upstream_unreachable", "bad_request"}, host
    nobody_came(proxy, loads=2)


def test_g41_g60_absolute_form(ostiary: Callable[..., Ostiary]) -> None:
    token = Token("ci", "admin")
    proxy = generous(ostiary, token)
    for host, port in targets(proxy):
        for method, path in (("GET", "/metrics"), ("POST", "/reload")):
            with Raw(proxy.address("sidecar")) as raw:
                raw.send(request(f"{host}:{port}", method, f"http://{host}:{port}{path}", token=token))
                assert refused(raw.answer()), host
    nobody_came(proxy)


def test_g41_g60_as_a_routed_upstream(ostiary: Callable[..., Ostiary]) -> None:
    """A route and `egress.resolve` that lead to our own listeners are refused when they are dialled."""
    token = Token("ci", "admin")
    proxy = generous(ostiary, token)
    port = str(proxy.ready["admin"]).rpartition(":")[2]
    for authority in ("led.test:443", "ledto.test:443", f"admin.test:{port}"):
        host = authority.partition(":")[0]
        with tunnel(proxy.address("sidecar"), proxy.ca, authority, sni=host) as raw:
            raw.send(request(authority.removesuffix(":443"), "POST", "/reload", token=token))
            assert raw.answer().code == "egress_denied", authority
    with Raw(proxy.address("sidecar")) as raw:
        raw.send(request(f"admin.test:{port}", "POST", f"http://admin.test:{port}/reload", token=token))
        assert raw.answer().code == "egress_denied"
    nobody_came(proxy)


def test_g41_a_unix_socket_has_no_authority(ostiary: Callable[..., Ostiary]) -> None:
    token = Token("ci", "admin")
    proxy = generous(ostiary, token, unix=True)
    path = str(proxy.ready["admin"]).removeprefix("unix:")
    quoted = path.replace("/", "%2F")
    for authority in (f"unix:{path}", f"{quoted}:443", "unix:443", f"[{path}]:80"):
        with Raw(proxy.address("sidecar")) as raw:
            assert raw.connect(authority).code in {"bad_request", "route_denied"}, authority
    for target in (f"unix:{path}", f"http+unix://{quoted}/reload", f"http://unix:{path}/reload", f"http://{quoted}/"):
        with Raw(proxy.address("sidecar")) as raw:
            raw.send(request("localhost", "POST", target, token=token))
            assert raw.answer().code in {"bad_request", "route_denied"}, target
    nobody_came(proxy)
    # The same call over the socket itself is served.
    assert call(proxy, "POST", "/reload", token=token).status == 200


@pytest.mark.parametrize(
    ("headers", "host", "wanted"),
    [
        ((), "rebound.test", (421, "host_mismatch")),
        ((), "rebound.test:PORT", (421, "host_mismatch")),
        ((), "127.0.0.1", (421, "host_mismatch")),
        (("Origin: http://rebound.test:PORT",), "rebound.test:PORT", (421, "host_mismatch")),
        (("Origin: https://evil.test",), None, (403, "cross_site")),
        (("Origin: null",), None, (403, "cross_site")),
        (("Origin: http://127.0.0.1:3000",), None, (403, "cross_site")),
        (("Origin: http://127.0.0.1:PORT", "Origin: https://evil.test"), None, (403, "cross_site")),
        (("Sec-Fetch-Site: cross-site",), None, (403, "cross_site")),
        (("Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors"), None, (403, "cross_site")),
    ],
)
def test_g53_a_web_page_cannot_use_the_admin_api(
    ostiary: Callable[..., Ostiary], headers: tuple[str, ...], host: str | None, wanted: tuple[int, str]
) -> None:
    """Not even one that has got hold of a token, and not the probes either."""
    token = Token("ci", "admin")
    proxy = ostiary(admin=block(token))
    port = str(proxy.ready["admin"]).rpartition(":")[2]
    given = [header.replace("PORT", port) for header in headers]
    named = host.replace("PORT", port) if host is not None else None
    for method, path in (("POST", "/reload"), ("GET", "/routes"), ("GET", "/metrics"), ("OPTIONS", "/reload")):
        assert kind(call(proxy, method, path, *given, token=token, host=named)) == wanted
    assert len(proxy.audit("policy.loaded")) == 1
    (record,) = [one for one in proxy.wait_audit("request.refused") if one["code"] == wanted[1]]
    assert record["listener"] == "admin"


def test_g53_a_page_finds_no_way_with_a_simple_request(ostiary: Callable[..., Ostiary]) -> None:
    """What needs no preflight: a form, an image, a script. Older browsers send neither Origin nor Sec-Fetch-Site with
    some of them; then there is still no token.
    """
    proxy = ostiary(admin=block(Token("ci", "admin")))
    for method, headers in (
        ("POST", ("Content-Type: text/plain", "Content-Length: 0")),
        ("POST", ("Content-Type: application/x-www-form-urlencoded", "Content-Length: 0", "Cookie: token=x")),
        ("GET", ("Referer: https://evil.test/",)),
    ):
        assert kind(call(proxy, method, "/reload", *headers)) == (401, "token_required")
    assert len(proxy.audit("policy.loaded")) == 1
