"""Opening sockets: all or none, and the admin API on loopback whatever a name stands for on this machine."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from ostiary.serve import open_sockets
from ostiary.settings import Settings, load_settings
from ostiary.settings.model import AdminSetting, Bound
from ostiary.sockets import BindFailed

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
