"""The embedded store: sealed, atomic, shared between processes."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from vault.sealed import KeyCredential, KeyEnv, KeyFile, SealedFile, SealedFileError, SealedStore, read_key
from vault.secret import Secret
from vault.store import SecretMissing, SecretRef, SecretUnavailable

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
