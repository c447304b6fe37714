"""Opening sockets: all or none, and the admin API on loopback whatever a name stands for on this machine."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from ostiary.listening import open_sockets, written
from ostiary.settings import Settings, load_settings
from ostiary.settings.model import AdminSetting, Bound
from ostiary.sockets import BindFailed, open_group

SETTINGS = """
listen: [{name: sidecar, bind: "127.0.0.1:0"}, {name: local, bind: "unix:proxy.sock"}]
ca: {dir: ca}
secrets_file: s.sealed
secrets_key: {file: s.key}
audit: {sinks: [{file: audit.jsonl}]}
policies: [policy.yaml]
"""


def settings(folder: Path, **admin: Any) -> Settings:
    (folder / "policy.yaml").write_text("workloads: {w: {proofs: {any: true}}}\n")
    (folder / "ostiary.yaml").write_text(SETTINGS)
    return dataclasses.replace(load_settings(folder / "ostiary.yaml", {}), admin=AdminSetting(**admin))


def test_everything_is_opened_and_closed(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("proxy.sock", "admin.sock", "probes.sock")]
    opened = open_sockets(settings(tmp_path, bind=Bound(path=paths[1]), probes=Bound(path=paths[2])))
    assert all(path.is_socket() for path in paths)
    opened.close()
    assert not any(path.exists() for path in paths)
    assert all(one.fileno() == -1 for one in opened.all())


def test_g41_what_another_process_of_the_settings_listens_on(tmp_path: Path) -> None:
    """A private proxy of `exec` opens none of it, and must dial none of it."""
    found = settings(tmp_path, bind=Bound("localhost", 9901), probes=Bound("0.0.0.0", 9902))
    listen = [dataclasses.replace(found.listen[0], bind=Bound("127.0.0.1", 9903)), *found.listen]
    own = written(dataclasses.replace(found, listen=tuple(listen)))
    assert own - {("::1", 9901)} == {("127.0.0.1", 9901), (None, 9902), ("127.0.0.1", 9903)}


def test_a_failure_leaves_no_socket_behind(tmp_path: Path) -> None:
    (tmp_path / "probes.sock").write_text("no socket")
    with pytest.raises(BindFailed, match=r"probes cannot bind .*: File exists"):
        open_sockets(
            settings(tmp_path, bind=Bound(path=tmp_path / "admin.sock"), probes=Bound(path=tmp_path / "probes.sock"))
        )
    assert sorted(path.name for path in tmp_path.glob("*.sock")) == ["probes.sock"]


def test_g41_localhost_that_is_no_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = socket.getaddrinfo

    def elsewhere(host: str, *given: Any, **named: Any) -> Any:
        return whole("0.0.0.0" if host == "localhost" else host, *given, **named)

    monkeypatch.setattr(socket, "getaddrinfo", elsewhere)
    with pytest.raises(BindFailed, match="listener admin: localhost:0 is no loopback address here"):
        open_sockets(settings(tmp_path, bind=Bound("localhost", 0)))
    # The probes may listen there, and what was opened before the failure has gone.
    assert not (tmp_path / "proxy.sock").exists()
    open_sockets(settings(tmp_path, probes=Bound("localhost", 0))).close()


def test_workers_have_a_socket_each_on_one_port(tmp_path: Path) -> None:
    opened = open_sockets(settings(tmp_path, bind=Bound("127.0.0.1", 0)), workers=3)
    (_, port), (_, file) = opened.listeners
    assert len({one.fileno() for one in port}) == 3
    address = port[0].getsockname()
    assert {one.getsockname() for one in port} == {address}
    # A Unix socket cannot be bound twice: all have the same one.
    assert len({one.fileno() for one in file}) == 1
    # Connections are spread over all, and none is lost.
    clients = [socket.create_connection(address, timeout=10) for _ in range(60)]
    accepted = [0, 0, 0]
    for number, one in enumerate(port):
        one.setblocking(False)
        while True:
            try:
                one.accept()[0].close()
            except BlockingIOError:
                break
            accepted[number] += 1
    assert sum(accepted) == 60
    assert all(accepted)
    for client in clients:
        client.close()
    assert opened.addresses()["admin"]
    assert len(opened.own()) == 2
    opened.close()
    assert all(one.fileno() == -1 for one in opened.all())


def test_a_port_of_another_crew_is_not_joined(tmp_path: Path) -> None:
    """SO_REUSEPORT alone would let a second start take half of the first one's callers."""
    group = open_group("sidecar", Bound("127.0.0.1", 0), 0o600, 2)
    taken = Bound("127.0.0.1", group[0].getsockname()[1])
    for count in (1, 2):
        with pytest.raises(BindFailed, match="in use"):
            open_group("sidecar", taken, 0o600, count)
    for one in group:
        one.close()


def test_workers_on_an_address_of_ipv6() -> None:
    group = open_group("sidecar", Bound("::1", 0), 0o600, 2)
    assert group[0].getsockname() == group[1].getsockname()
    for one in group:
        one.close()
