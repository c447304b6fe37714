"""`workers:` of ostiary.yaml: what cannot be had with several, the share of each, and what another process makes of texts."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from addons.audit import FileSink
from ostiary.cli.run import _workers
from ostiary.settings import Settings, Texts, load_settings, load_to_run
from ostiary.settings.load import load_texts_to_run
from ostiary.settings.workers import DIVIDED, says_connections, share_of
from ostiary.workers.beginning import Beginning
from policies import FaultError

BASE = """
listen: [{name: sidecar, bind: "127.0.0.1:0", workload: w}]
ca: {dir: ca}
secrets_file: s.sealed
secrets_key: {file: s.key}
policies: ["*.policy.yaml", {files: "team/*.yaml", may: {define: [routes], hosts: [b.test], workloads: [w]}}]
"""
FILES = "audit: {sinks: [{file: audit.jsonl}, {file: more/audit.log}]}\n"
POLICY = "workloads: {w: {proofs: {any: true}}}\nroutes: {r: {match: {host: a.test}, allow: w}}\n"
TEAM = "routes: {t: {match: {host: b.test}, allow: w}}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.policy.yaml").write_text(POLICY)
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "t.yaml").write_text(TEAM)
    return tmp_path


def load(folder: Path, text: str) -> Settings:
    path = folder / "ostiary.yaml"
    path.write_text(BASE + text)
    return load_settings(path, {})


def faults(folder: Path, text: str) -> list[str]:
    with pytest.raises(FaultError) as error:
        load(folder, text)
    return [str(fault).replace(str(folder) + "/", "") for fault in error.value.faults]


def test_one_is_the_default(folder: Path) -> None:
    settings = load(folder, FILES + 'state: {url: "memory:"}\n')
    assert settings.workers == 1
    share = share_of(settings, 0)
    assert share.limits == settings.limits
    assert share.audit.sinks == settings.audit.sinks
    # It looks after files of workers that were there before.
    assert share.audit.workers == 1


@pytest.mark.parametrize("count", ["0", "65", "two", "1.5"])
def test_what_is_no_number_of_workers(folder: Path, count: str) -> None:
    (fault,) = faults(folder, FILES + f"workers: {count}\n")
    assert "'workers' of the settings must" in fault


@pytest.mark.parametrize(
    ("count", "good"),
    [("1", True), ("64", True), ("0", False), ("65", False), ("-1", False), ("x", False), ("²", False)],
)
def test_the_option(count: str, good: bool) -> None:
    if good:
        assert _workers(count) == int(count)
    else:
        with pytest.raises(argparse.ArgumentTypeError, match="between 1 and 64"):
            _workers(count)


def test_what_several_cannot_have(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    text = (
        'audit: {sinks: [{file: audit.jsonl}, {stdout: true}, {file: pipe}]}\nstate: {url: "memory:"}\n'
        "limits: {connections: 3, connections_per_source: 3, connections_per_workload: 2, buffers: 3MiB, buffered_body: 512KiB}\nworkers: 4\n"
    )
    found = faults(folder, text)
    assert all(fault.startswith("ostiary.yaml:10:") for fault in found)
    for part in (
        "limits.connections is too little to be divided among 4 workers (raise it to 4, or run fewer)",
        "limits.connections_per_source is too little",
        "limits.connections_per_workload is too little",
        "limits.buffers is too little to be divided among 4 workers (raise it to 4MiB)",
        "4 workers cannot share the audit sink standard output",
        "pipe: their records would mix",
        "the state of 4 workers cannot be memory:",
    ):
        assert sum(part in fault for fault in found) == 1, part
    assert len(found) == 7
    assert load(folder, text.replace("workers: 4\n", "")).workers == 1
    # The share of each must hold the largest single body.
    (fault,) = faults(folder, FILES + "limits: {buffers: 31MiB}\nworkers: 4\n")
    assert "limits.buffers is too little to be divided among 4 workers (raise it to 32MiB)" in fault


def test_the_option_wins_and_is_judged_as_the_setting_is(folder: Path) -> None:
    path = folder / "ostiary.yaml"
    path.write_text(BASE + "audit: {sinks: [{stdout: true}]}\nworkers: 2\n")
    assert load_to_run(path, {}, workers=1)[0].workers == 1
    path.write_text(BASE + "audit: {sinks: [{stdout: true}]}\n")
    with pytest.raises(FaultError) as error:
        load_to_run(path, {}, workers=2)
    assert str(error.value.faults[0]).startswith("--workers:1:1: 2 workers cannot share the audit sink standard output")
    # A private proxy of exec is one process.
    path.write_text(BASE + FILES + "workers: 2\n")
    assert load_to_run(path, {}, private=True)[0].workers == 1


def test_shares_stay_below_the_whole(folder: Path) -> None:
    settings = load(
        folder,
        FILES
        + "limits: {connections: 1000, connections_per_source: 10, connections_per_workload: 7, buffers: 64MiB}\nworkers: 3\n",
    )
    shares = [share_of(settings, number) for number in range(3)]
    for key in DIVIDED:
        whole = getattr(settings.limits, key)
        assert whole - 3 < sum(getattr(share.limits, key) for share in shares) <= whole
    assert all(share.limits.header_timeout == settings.limits.header_timeout for share in shares)
    assert [share.audit.sinks for share in shares] == [
        (FileSink(folder / f"audit{number}.jsonl"), FileSink(folder / f"more/audit{number}.log"))
        for number in ("", ".w1", ".w2")
    ]
    assert [share.audit.workers for share in shares] == [3, None, None]
    # None stays none.
    assert share_of(load(folder, FILES + "workers: 3\n"), 1).limits.connections_per_workload == 0


def test_a_share_of_what_was_written_was_written(folder: Path) -> None:
    """A default that the descriptors do not carry is no warning, divided or not; half of twice the default is one."""
    for text, says in (
        ("", False),
        ("limits: {connections: 20000}\n", True),
        ("limits: {connections: 10000}\n", False),
    ):
        settings = load(folder, FILES + text + "workers: 2\n")
        assert says_connections(share_of(settings, 1)) is says
    alone = load(folder, FILES + "limits: {connections: 9999}\n")
    assert says_connections(alone)
    assert says_connections(share_of(alone, 0))


def test_another_process_makes_the_same_of_what_was_read(folder: Path) -> None:
    path = folder / "ostiary.yaml"
    path.write_text(BASE + FILES)
    texts = Texts()
    settings, policy, _ = load_to_run(path, {}, workers=2, texts=texts)
    told = Beginning("1", 1, 2, path, texts, frozenset({("127.0.0.1", 80), (None, 443)}), ((3, 4), (5, 6)))
    found = Beginning.of(told.body())
    assert found == told
    # Whatever has become of the files.
    path.write_text("nonsense")
    (folder / "a.policy.yaml").unlink()
    (folder / "team" / "t.yaml").write_text("routes: [")
    again, same, _ = load_texts_to_run(found.file, {}, found.texts, found.workers)
    assert again == settings
    assert same.version == policy.version
    assert list(same.routes) == list(policy.routes) == ["r", "t"]


def test_texts_keep_the_rights_of_their_files(folder: Path) -> None:
    path = folder / "ostiary.yaml"
    path.write_text(BASE + FILES)
    texts = Texts()
    load_to_run(path, {}, texts=texts)
    assert [(one.path.name, one.entry) for one in texts.policy] == [("a.policy.yaml", 0), ("t.yaml", 1)]
    texts.policy[1] = type(texts.policy[1])(texts.policy[1].path, TEAM.replace("b.test", "a.test"), 1)
    with pytest.raises(FaultError, match=r"no route of this file may name a\.test"):
        load_texts_to_run(path, {}, texts, 1)


def test_an_envelope_serves_all(folder: Path) -> None:
    text = 'vault: {addresses: ["https://v.test:8200"], auth: {method: approle, role_id: r, wrapped_file: w}}\nworkers: 2\n'
    assert load(folder, FILES + text).workers == 2
    assert load(folder, FILES + text.replace("wrapped_file", "secret_id_file")).workers == 2
