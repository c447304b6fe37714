"""What a reverse listener is its own: from its bind, its real port and `hosts:`."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from addons.exchange import Reverse
from ostiary.listeners import listener_of, reverse_of
from ostiary.settings.model import Bound, ListenMode, ListenSetting, TlsSetting
from policies.faults import Place

LOCAL = {"127.0.0.1", "::1", "localhost"}


def setting(
    bind: Bound, *hosts: tuple[str, int | None], mode: ListenMode = "reverse", tls: TlsSetting | None = None
) -> ListenSetting:
    return ListenSetting("l", bind, "w", Place("x"), mode=mode, hosts=hosts, tls=tls)


def test_loopback_and_its_real_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        found = listener_of(setting(Bound("127.0.0.1", 0), ("gw.test", None), ("gw.test", 80)), bound)
        port = bound.getsockname()[1]
    assert found.reverse == Reverse(
        frozenset({*((name, port) for name in LOCAL), ("gw.test", 80)}), frozenset({"gw.test"})
    )
    assert (found.reverse.scheme, found.reverse.default_port) == ("http", 80)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        assert listener_of(setting(Bound("127.0.0.1", 0), mode="forward"), bound).reverse is None


@pytest.mark.parametrize(
    ("bind", "address", "own"),
    [
        ("10.1.2.3", "10.1.2.3", {"10.1.2.3"}),
        ("proxy.test", "10.1.2.3", {"10.1.2.3", "proxy.test"}),
        ("::1", "::1", LOCAL),
        ("127.0.0.9", "127.0.0.9", {*LOCAL, "127.0.0.9"}),
        ("localhost", "127.0.0.1", LOCAL),
    ],
)
def test_by_address(bind: str, address: str, own: set[str]) -> None:
    assert reverse_of(setting(Bound(bind, 1)), address, 1).addresses == frozenset((name, 1) for name in own)


def test_a_wildcard_is_every_address_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostiary.listeners.local_addresses", lambda: frozenset({"10.9.9.9"}))
    found = reverse_of(setting(Bound("0.0.0.0", 1), tls=TlsSetting(Path("a"), Path("b"))), "0.0.0.0", 1)
    assert found.addresses == frozenset((name, 1) for name in {*LOCAL, "10.9.9.9", "0.0.0.0"})
    assert (found.scheme, found.default_port) == ("https", 443)


def test_a_unix_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        found = listener_of(setting(Bound(path=tmp_path / "s")), bound)
    assert (found.unix, found.reverse) == (True, Reverse(None))
