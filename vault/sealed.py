"""The embedded store: one sealed file, for a machine without a Vault.

Format (version 1): one JSON object `{"ostiary_sealed": 1, "nonce": base64, "sealed": base64}`; `sealed` is AES-256-GCM
over the JSON content, with the rest of the header as associated data. The whole file is sealed anew at each write with
a fresh random nonce, so neither names nor values are ever in the clear, and a changed byte anywhere is noticed.

Content: path to a list of versions, newest last, each with its number, time and fields; as KV version 2 has it. A write
makes a new version that keeps the other fields; the newest ten stay.

Writes are atomic (a temporary file beside it, synced, renamed, folder synced) and serialised between processes by a
lock file. Readers notice a changed file by its identity, size and time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import datetime as dt
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vault.secret import Secret
from vault.store import SecretMalformed, SecretMissing, SecretRef, SecretUnavailable, SecretVersion

KEY_BYTES: Final = 32
KEPT_VERSIONS: Final = 10
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
LOCK_WAIT_S: Final = 10.0
_FORMAT: Final = 1
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~@:+=-]+")
_FIELD: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


class SealedFileError(Exception):
    """The file, its key or its lock cannot be used; the message says why and what to do."""


# --- the key
# -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A file with the base64 key, mode 0600."""

    path: Path


@dataclass(frozen=True, slots=True)
class KeyEnv:
    """An environment variable with the base64 key."""

    name: str


@dataclass(frozen=True, slots=True)
class KeyCredential:
    """A systemd credential (`LoadCredential=`), read from `$CREDENTIALS_DIRECTORY`."""

    name: str


type KeySource = KeyFile | KeyEnv | KeyCredential


def read_key(source: KeySource, environ: Mapping[str, str]) -> Secret:
    """The key of a sealed file.

    Raises:
        SealedFileError: it is not there, not readable, readable by others, or no 256-bit key.
    """
    match source:
        case KeyFile(path=path):
            text = _read_private(path)
            where = str(path)
        case KeyEnv(name=name):
            text = environ.get(name, "")
            where = f"${name}"
            if not text:
                raise SealedFileError(f"the key variable {where} is not set")
        case KeyCredential(name=name):
            folder = environ.get("CREDENTIALS_DIRECTORY", "")
            if not folder or "/" in name:
                raise SealedFileError(
                    f"there is no systemd credential {name}: CREDENTIALS_DIRECTORY is not set; use LoadCredential="
                )
            where = f"credential {name}"
            try:
                text = (Path(folder) / name).read_text("ascii")
            except (OSError, UnicodeDecodeError):
                raise SealedFileError(f"the systemd {where} cannot be read") from None
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise SealedFileError(f"{where} holds no key: 32 bytes in base64 are expected (ostiary secret init makes one)")
    return Secret(key)


def _read_private(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SealedFileError(
                f"the key file {path} is open to others (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}"
            )
        return path.read_text("ascii")
    except OSError as error:
        raise SealedFileError(
            f"the key file {path} cannot be read: {error.strerror} (ostiary secret init makes one)"
        ) from None
    except UnicodeDecodeError:
        raise SealedFileError(f"the key file {path} holds no base64 key") from None


# --- the file
# ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listed:
    """One path as `list` shows it."""

    path: str
    version: int
    created_at: str
    fields: tuple[str, ...]


class SealedFile:
    """A sealed file with its key. Every method reads the file anew; writers lock."""

    def __init__(self, path: Path, key: Secret) -> None:
        self.path = path
        self._key = key

    @classmethod
    def create(cls, path: Path, key_path: Path) -> SealedFile:
        """Makes a key and an empty file, both 0600. Neither is ever overwritten.

        Raises:
            SealedFileError: one of them is already there, or cannot be written.
        """
        if path.exists():
            raise SealedFileError(f"{path} already exists; it is left as it is")
        key = os.urandom(KEY_BYTES)
        for folder in (path.parent, key_path.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            descriptor = os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise SealedFileError(f"the key file {key_path} already exists; it is left as it is") from None
        except OSError as error:
            raise SealedFileError(f"the key file {key_path} cannot be written: {error.strerror}") from None
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(base64.b64encode(key) + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
        made = cls(path, Secret(key))
        with made._locked():
            made._write({})
        return made

    def check(self) -> None:
        """Whether the file opens with this key. Raises as every read does."""
        self._read()

    def set(self, path: str, field: str, value: Secret, *, now: dt.datetime | None = None) -> int:
        """Stores a field as a new version; the path's other fields stay.

        Returns:
            The new version's number.
        """
        check_path(path)
        if not _FIELD.fullmatch(field):
            raise SealedFileError(f"{field!r} is no field name: letters, digits, dots, dashes and underscores")
        raw = value.reveal_bytes()
        try:
            stored: dict[str, str] = {"text": raw.decode("utf-8")}
        except UnicodeDecodeError:
            stored = {"base64": base64.b64encode(raw).decode("ascii")}
        with self._locked():
            content = self._read()
            versions = content.setdefault(path, [])
            fields = dict(versions[-1]["fields"]) if versions else {}
            fields[field] = stored
            return self._store(content, path, fields, now)

    def remove(self, path: str, field: str | None = None, *, now: dt.datetime | None = None) -> bool:
        """Removes a path with all its versions, or one field by a new version without it.

        Returns:
            Whether there was anything to remove.
        """
        with self._locked():
            content = self._read()
            versions = content.get(path)
            if not versions:
                return False
            if field is None:
                del content[path]
                self._write(content)
                return True
            fields = dict(versions[-1]["fields"])
            if fields.pop(field, None) is None:
                return False
            self._store(content, path, fields, now)
            return True

    def _store(self, content: dict[str, Any], path: str, fields: dict[str, Any], now: dt.datetime | None) -> int:
        versions = content[path]
        number = (versions[-1]["version"] if versions else 0) + 1
        created = (now or dt.datetime.now(dt.UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        versions.append({"version": number, "created_at": created, "fields": fields})
        del versions[:-KEPT_VERSIONS]
        self._write(content)
        return int(number)

    def list(self) -> tuple[Listed, ...]:
        """Every path with its newest version; no values."""
        return tuple(_listed(path, versions[-1]) for path, versions in sorted(self._read().items()))

    def history(self, path: str) -> tuple[Listed, ...]:
        """The kept versions of a path, oldest first; no values."""
        return tuple(_listed(path, version) for version in self._read().get(path, ()))

    def load(self) -> Mapping[str, tuple[SecretVersion, ...]]:
        """Everything, for the store."""
        return {path: tuple(_version(version) for version in versions) for path, versions in self._read().items()}

    # --- bytes ---

    def _read(self) -> dict[str, Any]:
        try:
            with self.path.open("rb") as handle:
                raw = handle.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            raise SealedFileError(f"there is no secrets file {self.path} (ostiary secret init makes one)") from None
        except OSError as error:
            raise SealedFileError(f"the secrets file {self.path} cannot be read: {error.strerror}") from None
        try:
            envelope = json.loads(raw)
            if envelope["ostiary_sealed"] != _FORMAT:
                raise SealedFileError(
                    f"the secrets file {self.path} has format {envelope['ostiary_sealed']!r}; this Ostiary reads {_FORMAT}"
                )
            nonce, sealed = (
                base64.b64decode(envelope["nonce"], validate=True),
                base64.b64decode(envelope["sealed"], validate=True),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SealedFileError(f"the secrets file {self.path} is damaged: it is no sealed file") from None
        try:
            plain = AESGCM(self._key.reveal_bytes()).decrypt(nonce, sealed, _header())
        except (InvalidTag, ValueError):
            raise SealedFileError(
                f"the secrets file {self.path} does not open: wrong key, or the file was changed"
            ) from None
        content = json.loads(plain)
        if not isinstance(content, dict):
            raise SealedFileError(f"the secrets file {self.path} is damaged: its content is no mapping")
        return content

    def _write(self, content: Mapping[str, Any]) -> None:
        nonce = os.urandom(12)
        sealed = AESGCM(self._key.reveal_bytes()).encrypt(nonce, json.dumps(content).encode(), _header())
        envelope = json.dumps(
            {
                "ostiary_sealed": _FORMAT,
                "nonce": base64.b64encode(nonce).decode(),
                "sealed": base64.b64encode(sealed).decode(),
            }
        )
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as handle:
                    handle.write(envelope.encode() + b"\n")
                    handle.flush()
                    os.fsync(handle.fileno())
                temporary.replace(self.path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise SealedFileError(f"the secrets file {self.path} cannot be written: {error.strerror}") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock_path = self.path.with_name(f".{self.path.name}.lock")
        try:
            descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise SealedFileError(f"the lock {lock_path} cannot be opened: {error.strerror}") from None
        try:
            deadline_s = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline_s:
                        raise SealedFileError(
                            f"another process has been writing {self.path} for {LOCK_WAIT_S:.0f} s; try again"
                        ) from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)


def _header() -> bytes:
    return b'{"ostiary_sealed":%d}' % _FORMAT


def check_path(path: str) -> None:
    """Whether a text can name a secret.

    Raises:
        SealedFileError: it cannot.
    """
    segments = path.split("/")
    if (
        len(segments) < 2
        or len(path) > 1024
        or not all(_SEGMENT.fullmatch(segment) and segment not in {".", ".."} for segment in segments)
    ):
        raise SealedFileError(f"{path!r} is no secret path: write mount/path, such as secret/egress/stripe")


def _listed(path: str, version: Mapping[str, Any]) -> Listed:
    return Listed(path, version["version"], version["created_at"], tuple(sorted(version["fields"])))


def _version(version: Mapping[str, Any]) -> SecretVersion:
    fields = {
        name: Secret(stored["text"] if "text" in stored else base64.b64decode(stored["base64"]))
        for name, stored in version["fields"].items()
    }
    return SecretVersion(fields, str(version["version"]), version["created_at"])


class SealedStore:
    """The sealed file as a `SecretStore`. Reads off the event loop, and only when the file has changed."""

    name: Literal["vault", "sealed"] = "sealed"

    def __init__(self, file: SealedFile) -> None:
        self._file = file
        self._seen: tuple[int, int, int] | None = None
        self._content: Mapping[str, tuple[SecretVersion, ...]] = {}
        self._lock = asyncio.Lock()

    async def fetch(self, ref: SecretRef) -> SecretVersion:
        """See `SecretStore.fetch`."""
        versions = (await self._load()).get(ref.name)
        if not versions:
            raise SecretMissing(ref.name, "is not in the secrets file")
        wanted = versions[-1].version if ref.version is None else str(ref.version)
        found = next((version for version in versions if version.version == wanted), None)
        if found is None:
            raise SecretMissing(ref.name, f"has no version {ref.version} any more")
        if not found.fields:
            raise SecretMissing(ref.name, "has no field left")
        return found

    async def _load(self) -> Mapping[str, tuple[SecretVersion, ...]]:
        async with self._lock:
            try:
                return await asyncio.to_thread(self._load_changed)
            except SealedFileError as error:
                # Not being able to read is an outage; what is read and makes no sense is not.
                kind = SecretMalformed if "damaged" in str(error) else SecretUnavailable
                raise kind("", str(error)) from None

    def _load_changed(self) -> Mapping[str, tuple[SecretVersion, ...]]:
        try:
            found = self._file.path.stat()
        except OSError as error:
            raise SealedFileError(f"the secrets file {self._file.path} cannot be read: {error.strerror}") from None
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen != self._seen:
            self._content = self._file.load()
            self._seen = seen
        return self._content

    async def probe(self) -> None:
        """See `SecretStore.probe`."""
        await self._load()

    async def fields_of(self, ref: SecretRef) -> frozenset[str]:
        """See `SecretStore.fields_of`."""
        return frozenset((await self.fetch(ref)).fields)

    async def close(self) -> None:
        """Nothing to end."""
