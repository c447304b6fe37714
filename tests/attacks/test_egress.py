"""G22-G24, G41, G60, and G31, G32: where a request may go, and what the caller can learn of the CA."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import pytest

from tests.harness.canaries import canary
from tests.harness.client import Raw, get, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.upstream import Upstream

ANY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  api: {match: {host: [HOSTS], port: PORT}, allow: billing}
"""


def policy(*hosts: str, port: int = 443) -> str:
    return ANY.replace("HOSTS", ", ".join(f'"{host}"' for host in hosts)).replace("PORT", str(port))


SPELLINGS = (
    "127.0.0.1",
    "169.254.169.254",
    "100.100.100.200",
    "10.0.0.1",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "fd00:ec2::254",
    "0.0.0.0",
    "::",
)


def test_g23_inside_addresses_are_refused_in_every_spelling(ostiary: Callable[..., Ostiary]) -> None:
    proxy = ostiary(policy(*SPELLINGS), egress="egress: {}")
    for host in SPELLINGS:
        shown = f"[{host}]" if ":" in host else host
        with tunnel(proxy.address("sidecar"), None, f"{shown}:443", sni=None) as raw:
            answer = raw.request(f"GET / HTTP/1.1\r\nHost: {shown}\r\n\r\n")
        assert (answer.status, answer.code) == (403, "egress_denied"), host


@pytest.mark.parametrize(
    "host", ["0x7f.0.0.1", "0177.0.0.1", "2130706433", "127.1", "0x7f000001", "127.0.0.1.", "①②⑦.0.0.1"]
)
def test_g23_ambiguous_spellings_are_no_hosts(ostiary: Callable[..., Ostiary], host: str) -> None:
    proxy = ostiary(policy("127.0.0.1"), egress="egress: {}")
    with Raw(proxy.address("sidecar")) as raw:
        raw.send(f"CONNECT {host}:443 HTTP/1.1\r\n\r\n".encode())
        assert raw.answer().status in {400, 403}


def test_g22_the_resolver_answers_inside(ostiary: Callable[..., Ostiary]) -> None:
    """`localhost` is the one name that every machine resolves to the inside."""
    proxy = ostiary(policy("localhost"), egress="egress: {}")
    answer = get(proxy.address("sidecar"), proxy.ca, authority="localhost:443")
    assert answer.code == "egress_denied"


def test_g24_a_denied_host_is_neither_resolved_nor_tunnelled(ostiary: Callable[..., Ostiary]) -> None:
    proxy = ostiary(policy("api.test"))
    with Raw(proxy.address("sidecar")) as raw:
        answer = raw.connect("no-route.test:443")
        assert (answer.status, answer.code) == (403, "route_denied")
        # The connection stays usable for the next CONNECT.
        assert raw.connect("api.test:443").status == 200


def test_g41_g60_own_sockets_are_refused_whatever_is_allowed(ostiary: Callable[..., Ostiary]) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for bind in (f"127.0.0.1:{port}", f"0.0.0.0:{port}"):
        proxy = ostiary(
            policy("127.0.0.1", "127.0.0.2", port=port),
            egress='egress: {allow: ["0.0.0.0/0", "::/0"]}',
            settings="\nlimits: {connections: 100}\n",
            listen=f'[{{name: sidecar, bind: "{bind}", workload: billing}}]',
        )
        targets = ("127.0.0.1", "127.0.0.2") if bind.startswith("0.0.0.0") else ("127.0.0.1",)
        for host in targets:
            with tunnel(f"127.0.0.1:{port}", None, f"{host}:{port}", sni=None) as raw:
                assert raw.request(f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n").code == "egress_denied"
        proxy.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_g41_g60_the_state_store_is_refused_whatever_is_allowed(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], pki: Pki, host: str
) -> None:
    """By the name of the settings, and on this machine by every local address, since it may listen on all. What stands there would answer whoever reached it."""
    there = upstream(names=("127.0.0.1", "localhost"))
    asked = ("127.0.0.1", "::ffff:127.0.0.1", "localhost", "127.0.0.2")
    for settings, refused in ((f'state: {{url: "redis://{host}:{there.port}"}}\n', True), ("", False)):
        proxy = ostiary(
            policy(*asked, port=there.port),
            egress=f'egress: {{allow: ["0.0.0.0/0", "::/0"], ca_file: {pki.ca_file}}}',
            settings=settings,
        )
        for one in asked:
            shown = f"[{one}]:{there.port}" if ":" in one else f"{one}:{there.port}"
            with tunnel(proxy.address("sidecar"), None, shown, sni=None) as raw:
                code = raw.request(f"GET / HTTP/1.1\r\nHost: {shown}\r\n\r\n").code
            # Without the setting the same request is dialled.
            assert (code == "egress_denied") is refused, (one, code)
        assert bool(there.requests) is not refused
        proxy.stop()


def test_g31_g32_ca_and_leaf(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    proxy = ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}})
    # The client of the harness verifies with VERIFY_X509_STRICT and checks the name.
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    key = proxy.folder / "ca" / "ca.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((proxy.folder / "ca").stat().st_mode) == 0o700
    assert b"PRIVATE" not in proxy.ca.read_bytes()
    proxy.stop()
    os.chmod(key, 0o644)
    proxy.process = None
    from tests.harness.ostiary_process import command

    done = command("run", "--config", "ostiary.yaml", cwd=proxy.folder)
    assert done.returncode == 78
    assert b"chmod 600" in done.stderr
