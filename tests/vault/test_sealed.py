"""The embedded store: sealed, atomic, shared between processes."""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vault.sealed import (
    KeyCredential,
    KeyEnv,
    KeyFile,
    SealedFile,
    SealedFileDamaged,
    SealedFileError,
    SealedStore,
    WrongKey,
    read_key,
)
from vault.secret import Secret
from vault.store import SecretMalformed, SecretMissing, SecretRef, SecretUnavailable

CANARY = "cnry-sealed-value"


@pytest.fixture
def file(tmp_path: Path) -> SealedFile:
    return SealedFile.create(tmp_path / "s.sealed", tmp_path / "s.key")


def test_nothing_of_it_is_readable(file: SealedFile) -> None:
    file.set("secret/egress/stripe", "api_key", Secret(CANARY))
    raw = file.path.read_bytes()
    assert CANARY.encode() not in raw
    assert b"stripe" not in raw
    for path in (file.path, file.path.with_name("s.key")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert CANARY not in repr(file) + repr(file.load()) + repr(file.list())


def test_versions_keep_the_other_fields(file: SealedFile) -> None:
    assert file.set("secret/a", "one", Secret("1")) == 1
    assert file.set("secret/a", "two", Secret(b"\xff\x00")) == 2
    assert file.set("secret/a", "one", Secret("1b")) == 3
    newest = file.load()["secret/a"][-1]
    assert {name: value.reveal_bytes() for name, value in newest.fields.items()} == {"one": b"1b", "two": b"\xff\x00"}
    assert [listed.version for listed in file.history("secret/a")] == [1, 2, 3]
    for index in range(20):
        file.set("secret/a", "one", Secret(str(index)))
    assert [listed.version for listed in file.history("secret/a")] == list(range(14, 24))


def test_removing(file: SealedFile) -> None:
    file.set("secret/a", "one", Secret("1"))
    file.set("secret/a", "two", Secret("2"))
    assert file.remove("secret/a", "one")
    assert not file.remove("secret/a", "one")
    assert file.list()[0].fields == ("two",)
    assert file.remove("secret/a")
    assert not file.remove("secret/a")
    assert file.list() == ()


@pytest.mark.parametrize("path", ["a", "", "a/../b", "a//b", "/a/b", "a/b/", "a/b c", "a/\x00"])
def test_names_that_are_refused(file: SealedFile, path: str) -> None:
    with pytest.raises(SealedFileError):
        file.set(path, "f", Secret("x"))


def test_wrong_key_and_damage_are_told_apart(file: SealedFile) -> None:
    file.set("secret/a", "one", Secret("1"))
    with pytest.raises(SealedFileError, match="wrong key"):
        SealedFile(file.path, Secret(os.urandom(32))).check()
    envelope = json.loads(file.path.read_bytes())
    flipped = bytearray(base64.b64decode(envelope["sealed"]))
    flipped[3] ^= 1
    file.path.write_text(json.dumps({**envelope, "sealed": base64.b64encode(flipped).decode()}))
    with pytest.raises(SealedFileError, match="was changed"):
        file.check()
    file.path.write_bytes(b'{"ostiary_sealed": 1, "nonce"')
    with pytest.raises(SealedFileError, match="damaged"):
        file.check()
    file.path.write_text(json.dumps({**envelope, "ostiary_sealed": 2}))
    with pytest.raises(SealedFileError, match="format 2"):
        file.check()
    file.path.unlink()
    with pytest.raises(SealedFileError, match="there is no secrets file"):
        file.check()


def test_create_overwrites_nothing(file: SealedFile, tmp_path: Path) -> None:
    with pytest.raises(SealedFileError, match="already exists"):
        SealedFile.create(file.path, tmp_path / "other.key")
    with pytest.raises(SealedFileError, match="already exists"):
        SealedFile.create(tmp_path / "other.sealed", file.path.with_name("s.key"))


def test_keys(tmp_path: Path) -> None:
    text = base64.b64encode(bytes(32)).decode()
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o640)
    with pytest.raises(SealedFileError, match="chmod 600"):
        read_key(KeyFile(path), {})
    path.chmod(0o600)
    assert read_key(KeyFile(path), {}).reveal_bytes() == bytes(32)
    assert read_key(KeyEnv("K"), {"K": text}).reveal_bytes() == bytes(32)
    (tmp_path / "cred").write_text(text)
    assert read_key(KeyCredential("cred"), {"CREDENTIALS_DIRECTORY": str(tmp_path)}).reveal_bytes() == bytes(32)
    for source, environ in (
        (KeyEnv("K"), {}),
        (KeyEnv("K"), {"K": "short"}),
        (KeyCredential("x"), {}),
        (KeyFile(tmp_path / "no"), {}),
    ):
        with pytest.raises(SealedFileError):
            read_key(source, environ)


@pytest.mark.parametrize("step", ["open", "fsync", "replace", "fsync-folder"])
def test_a_crash_at_any_step_leaves_a_whole_file(file: SealedFile, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    file.set("secret/a", "one", Secret("old"))
    calls = {"fsync": 0}

    def fsync(descriptor: int) -> None:
        calls["fsync"] += 1
        if step == "fsync" or (step == "fsync-folder" and calls["fsync"] == 2):
            raise OSError(5, "Input/output error")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vault.sealed.os.fsync", fsync)
    if step == "open":
        real = os.open
        monkeypatch.setattr(
            "vault.sealed.os.open",
            lambda path, flags, *mode: fail() if str(path).endswith(".tmp") else real(path, flags, *mode),
        )
    if step == "replace":
        monkeypatch.setattr("vault.sealed.Path.replace", fail)
    with pytest.raises(SealedFileError, match="cannot be written"):
        file.set("secret/a", "one", Secret("new"))
    monkeypatch.undo()
    assert file.load()["secret/a"][-1].fields["one"].reveal() in {"old", "new"}
    assert not list(file.path.parent.glob("*.tmp")) + list(file.path.parent.glob(".*.tmp"))


def _write(path: Path, key: bytes, name: str) -> None:
    file = SealedFile(path, Secret(key))
    for index in range(15):
        file.set(f"secret/{name}", f"f{index}", Secret("x"))


def test_two_writers_lose_nothing(file: SealedFile) -> None:
    key = base64.b64decode(file.path.with_name("s.key").read_text())
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(file.path, key, name)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
        assert writer.exitcode == 0
    assert {listed.path: len(listed.fields) for listed in file.list()} == {"secret/a": 15, "secret/b": 15}


async def test_the_store_sees_a_changed_file(file: SealedFile) -> None:
    store = SealedStore(file)
    with pytest.raises(SecretMissing):
        await store.fetch(SecretRef("secret/a"))
    file.set("secret/a", "one", Secret("1"))
    assert (await store.fetch(SecretRef("secret/a"))).fields["one"].reveal() == "1"
    file.set("secret/a", "one", Secret("2"))
    newest = await store.fetch(SecretRef("a", mount="secret"))
    assert (newest.version, newest.fields["one"].reveal()) == ("2", "2")
    assert (await store.fetch(SecretRef("secret/a", version=1))).fields["one"].reveal() == "1"
    assert await store.fields_of(SecretRef("secret/a")) == {"one"}
    with pytest.raises(SecretMissing):
        await store.fetch(SecretRef("secret/a", version=9))
    file.path.rename(file.path.with_suffix(".gone"))
    with pytest.raises(SecretUnavailable):
        await store.probe()


def test_wrong_key_cut_file_and_changed_file_are_three_faults(file: SealedFile) -> None:
    file.set("secret/a", "one", Secret(CANARY))
    raw = file.path.read_bytes()
    with pytest.raises(WrongKey, match="another one"):
        SealedFile(file.path, Secret(os.urandom(32))).check()
    for cut in (1, len(raw) // 2, len(raw) - 2):
        file.path.write_bytes(raw[:cut])
        with pytest.raises(SealedFileDamaged):
            file.check()
    file.path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(SealedFileDamaged, match="cut short"):
        file.check()
    file.path.write_bytes(b"")
    with pytest.raises(SealedFileDamaged, match="empty"):
        file.check()
    file.path.write_bytes(b"[" * 100_000)
    with pytest.raises(SealedFileDamaged):
        file.check()
    # The header is sealed too: nothing can be added to it, changed in it or taken from it.
    envelope = json.loads(raw)
    without = {name: value for name, value in envelope.items() if name != "key"}
    for changed in ({**envelope, "note": 1}, without, {**envelope, "nonce": base64.b64encode(bytes(12)).decode()}):
        file.path.write_text(json.dumps(changed) + "\n")
        with pytest.raises(SealedFileDamaged, match="was changed"):
            file.check()
    file.path.write_bytes(raw)
    file.check()


def test_what_could_not_be_read_again_is_not_written(file: SealedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.sealed.MAX_FILE_BYTES", 20_000)
    file.set("secret/a", "one", Secret("x" * 9_000))
    with pytest.raises(SealedFileError, match="grow over"):
        file.set("secret/a", "two", Secret("x" * 9_000))
    assert [listed.version for listed in file.history("secret/a")] == [1]
    with pytest.raises(SealedFileError, match="1024 KiB"):
        file.set("secret/a", "two", Secret("x" * (1024 * 1024 + 1)))


def test_a_link_stays_a_link(file: SealedFile) -> None:
    link = file.path.with_name("link.sealed")
    link.symlink_to(file.path)
    key = Secret(base64.b64decode(file.path.with_name("s.key").read_text()))
    SealedFile(link, key).set("secret/a", "one", Secret("1"))
    assert link.is_symlink()
    assert file.load()["secret/a"][-1].version == "1"


def test_init_leaves_nothing_behind_that_stops_the_next_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("vault.sealed.Path.replace", full)
        with pytest.raises(SealedFileError, match="No space"):
            SealedFile.create(tmp_path / "s", tmp_path / "k")
    assert not (tmp_path / "k").exists()
    SealedFile.create(tmp_path / "s", tmp_path / "k").check()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SealedFileError, match="already exists"):
        SealedFile.create(tmp_path / "dangling", tmp_path / "k2")
    assert not (tmp_path / "k2").exists()


def test_keys_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(SealedFileError, match="regular"):
        read_key(KeyFile(tmp_path / "fifo"), {})
    with pytest.raises(SealedFileError):
        read_key(KeyFile(tmp_path / "a\x00b"), {})
    for name in ("..", "a/b", "", "a\x00"):
        with pytest.raises(SealedFileError):
            read_key(KeyCredential(name), {"CREDENTIALS_DIRECTORY": str(tmp_path)})


KILLED = """
import os, signal, sys
from pathlib import Path
from vault import sealed
from vault.secret import Secret
path, key, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
calls = 0
def counted(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
opened = sealed.SealedFile(path, sealed.read_key(sealed.KeyFile(key), {}))
for name in ("open", "fsync", "close", "fdopen"):
    setattr(os, name, counted(getattr(os, name)))
Path.replace = counted(Path.replace)
Path.unlink = counted(Path.unlink)
opened.set("secret/a", "one", Secret("new"))
"""


def test_killed_at_every_call_of_a_write(file: SealedFile) -> None:
    """SIGKILL before the n-th system call, for every n until the write ends by itself."""
    file.set("secret/a", "one", Secret("old"))
    seen = []
    for step in range(1, 40):
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, file.path, file.path.with_name("s.key"), str(step)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            timeout=20,
            check=False,
        )
        seen.append(file.load()["secret/a"][-1].fields["one"].reveal())
        if ended.returncode == 0:
            break
        assert ended.returncode == -9, ended.stderr
    assert set(seen) == {"old", "new"}
    assert seen[-1] == "new"
    assert seen == sorted(seen, reverse=True)
    # The next writer clears away what the killed ones left.
    file.set("secret/a", "two", Secret("2"))
    assert not list(file.path.parent.glob(".*.tmp"))


async def test_a_damaged_file_is_malformed_and_a_wrong_key_an_outage(file: SealedFile) -> None:
    store = SealedStore(file)
    file.set("secret/a", "one", Secret("1"))
    await store.fetch(SecretRef("secret/a"))
    good = file.path.read_bytes()
    file.path.write_bytes(good[:-20])
    with pytest.raises(SecretMalformed):
        await store.fetch(SecretRef("secret/a"))
    other = SealedFile.create(file.path.with_name("o.sealed"), file.path.with_name("o.key"))
    other.path.replace(file.path)
    with pytest.raises(SecretUnavailable, match="wrong key"):
        await store.fetch(SecretRef("secret/a"))


async def test_a_disk_that_hangs_holds_one_thread(file: SealedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.sealed.READ_DEADLINE_S", 0.2)
    store, looks = SealedStore(file), 0
    file.set("secret/a", "one", Secret("1"))
    real = SealedStore._look

    def hang(self: SealedStore, seen: Any) -> Any:
        nonlocal looks
        looks += 1
        time.sleep(0.8)
        return real(self, seen)

    monkeypatch.setattr(SealedStore, "_look", hang)
    for _ in range(2):
        began = time.monotonic()
        results = await asyncio.gather(*(store.fetch(SecretRef("secret/a")) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(result, SecretUnavailable) for result in results)
        assert time.monotonic() - began < 0.5
    assert looks == 1
    monkeypatch.setattr(SealedStore, "_look", real)
    await asyncio.sleep(0.6)
    assert (await store.fetch(SecretRef("secret/a"))).version == "1"


def test_a_file_from_before_key_ids_opens(tmp_path: Path) -> None:
    """Written by the first version, whose header held the format alone."""
    path = tmp_path / "old.sealed"
    path.write_text(
        '{"ostiary_sealed": 1, "nonce": "ABfFzD2WoCDWLvyH", "sealed": "5mVbMSOI7qVXLyNNwzbTHOsv1tj/6IIfK08TFEe4ZKRKiwr+PZDQRxXl2M'
        'CJBQpOl9hUHAcWDeCxC9UpJ8yPN8CXZGCao3nrpgDA2mh3s0S5v4lsEVeyZmWz6iGf1RjqJjdUnjdA5SjydK/wIVzoPEE5BJp+2/ngULw="}\n'
    )
    key = base64.b64decode("30ZNCP/nq5RRjEF5ZrkuDraLxhgRcya4gA20paKiXc8=")
    file = SealedFile(path, Secret(key))
    assert file.load()["secret/a"][-1].fields["k"].reveal() == "val"
    file.set("secret/a", "k", Secret("new"))
    assert '"key"' in path.read_text()
    with pytest.raises(SealedFileError):
        SealedFile(path, Secret(bytes(32))).load()
