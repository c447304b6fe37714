"""The embedded store: one sealed file, for a machine without a Vault.

Format (version 1): one JSON object `{"ostiary_sealed": 1, "key": id, "nonce": base64, "sealed": base64}`; `sealed` is
AES-256-GCM over the JSON content, and every other key of the object but the nonce is its associated data, as JSON with
sorted keys and no spaces. `key` is the start of a SHA-256 over the key: it tells a wrong key from a changed file, and
256 random bits cannot be guessed from it. The whole file is sealed anew at each write with a fresh random nonce, so
neither names nor values are ever in the clear, and a changed byte anywhere is noticed.

Content: path to a list of versions, newest last, each with its number, time and fields (`{"text": …}`, or
`{"base64": …}` for what is no UTF-8); as KV version 2 has it. A write makes a new version that keeps the other fields;
the newest ten stay.

Writes are atomic (a temporary file beside it, synced, renamed, folder synced) and serialised between processes by a
lock file. What could not be read again is not written: sizes are checked before the old file is touched. Readers
notice a changed file by its identity, size and time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vault.sealed_key import (
    KEY_BYTES,
    KeyCredential,
    KeyEnv,
    KeyFile,
    KeySource,
    SealedFileDamaged,
    SealedFileError,
    WrongKey,
    read_key,
)
from vault.secret import Secret
from vault.store import (
    Described,
    SecretMalformed,
    SecretMissing,
    SecretRef,
    SecretUnavailable,
    SecretVersion,
    VersionConflict,
)

__all__ = [
    "KeyCredential",
    "KeyEnv",
    "KeyFile",
    "KeySource",
    "Listed",
    "SealedFile",
    "SealedFileDamaged",
    "SealedFileError",
    "SealedStore",
    "WrongKey",
    "check_path",
    "read_key",
]

KEPT_VERSIONS: Final = 10
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
MAX_VALUE_BYTES: Final = 1024 * 1024
LOCK_WAIT_S: Final = 10.0
READ_DEADLINE_S: Final = 2.0
_FORMAT: Final = 1
_START: Final = b'{"ostiary_sealed"'
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~@:+=-]+")
_FIELD: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


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
        made = cls(path, Secret(key := os.urandom(KEY_BYTES)))
        made._refuse_existing()
        try:
            for folder in (path.parent, key_path.parent):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _create_private(key_path, base64.b64encode(key) + b"\n")
            _sync_folder(key_path.parent)
        except FileExistsError:
            raise SealedFileError(
                f"the key file {key_path} already exists; it is left as it is (if no secrets file needs it, remove it)"
            ) from None
        except OSError as error:
            raise SealedFileError(f"the key file {key_path} cannot be written: {error.strerror}") from None
        try:
            with made._locked():
                made._refuse_existing()
                made._write({})
        except SealedFileError:
            # A key of this very call, which seals nothing: left behind, it would stop the next try.
            key_path.unlink(missing_ok=True)
            raise
        return made

    def _refuse_existing(self) -> None:
        if os.path.lexists(self.path):
            raise SealedFileError(f"{self.path} already exists; it is left as it is")

    def check(self) -> None:
        """Whether the file opens with this key and makes sense. Raises as every read does."""
        self.load()

    def set(self, path: str, field: str, value: Secret, *, now: dt.datetime | None = None) -> int:
        """Stores a field as a new version; the path's other fields stay.

        Returns:
            The new version's number.
        """
        check_path(path)
        if not _FIELD.fullmatch(field):
            raise SealedFileError(f"{field!r} is no field name: letters, digits, dots, dashes and underscores")
        stored = _stored(path, field, value)
        with self._locked():
            content = self._read()
            versions = content.setdefault(path, [])
            fields = dict(versions[-1]["fields"]) if versions else {}
            fields[field] = stored
            return self._store(content, path, fields, now)

    def replace(self, path: str, fields: Mapping[str, Secret], over: str) -> int | None:
        """Stores fields as a new version, if `over` is still the newest; the path's other fields stay.

        Returns:
            The new version's number; None where another version is the newest.
        """
        stored = {field: _stored(path, field, value) for field, value in fields.items()}
        with self._locked():
            content = self._read()
            versions = content.get(path)
            if not versions or str(versions[-1]["version"]) != over:
                return None
            return self._store(content, path, {**versions[-1]["fields"], **stored}, None)

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
        content = self._read()
        try:
            return {path: tuple(_version(version) for version in versions) for path, versions in content.items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise SealedFileDamaged(
                f"the secrets file {self.path} is damaged: its content has a shape that this Ostiary does not know"
            ) from None

    # --- bytes ---

    def _read(self) -> dict[str, Any]:
        try:
            with self.path.open("rb") as handle:
                raw = handle.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            raise SealedFileError(f"there is no secrets file {self.path} (ostiary secret init makes one)") from None
        except OSError as error:
            raise SealedFileError(f"the secrets file {self.path} cannot be read: {error.strerror}") from None
        if len(raw) > MAX_FILE_BYTES:
            raise SealedFileDamaged(f"the secrets file {self.path} is larger than any that Ostiary writes")
        header, nonce, sealed = self._opened(raw)
        if header["ostiary_sealed"] != _FORMAT:
            raise SealedFileError(
                f"the secrets file {self.path} has format {header['ostiary_sealed']!r}; this Ostiary reads {_FORMAT}"
            )
        key = self._key.reveal_bytes()
        # Files without an id open too: it is there for the message, the seal is what decides.
        if header.get("key", _key_id(key)) != _key_id(key):
            raise WrongKey(f"the secrets file {self.path} does not open: wrong key, it was sealed with another one")
        try:
            content = json.loads(AESGCM(key).decrypt(nonce, sealed, _associated(header)))
        except (InvalidTag, ValueError, RecursionError):
            raise SealedFileDamaged(
                f"the secrets file {self.path} does not open: the file was changed (or, without a key id, it is the wrong key)"
                if "key" not in header
                else f"the secrets file {self.path} does not open: the file was changed since it was written"
            ) from None
        if not isinstance(content, dict):
            raise SealedFileDamaged(f"the secrets file {self.path} is damaged: its content is no mapping")
        return content

    def _opened(self, raw: bytes) -> tuple[dict[str, Any], bytes, bytes]:
        """Header, nonce and sealed bytes of the outer object."""
        try:
            envelope = json.loads(raw)
            nonce, sealed = (base64.b64decode(envelope.pop(name), validate=True) for name in ("nonce", "sealed"))
            envelope["ostiary_sealed"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            what = "it is cut short" if raw.startswith(_START) and not raw.endswith(b"}\n") else "it is no sealed file"
            raise SealedFileDamaged(
                f"the secrets file {self.path} is damaged: {what if raw else 'it is empty'}"
            ) from None
        return envelope, nonce, sealed

    def _write(self, content: Mapping[str, Any]) -> None:
        """Puts new content in the place of the old; the caller holds the lock."""
        nonce = os.urandom(12)
        key = self._key.reveal_bytes()
        header: dict[str, Any] = {"ostiary_sealed": _FORMAT, "key": _key_id(key)}
        sealed = AESGCM(key).encrypt(nonce, json.dumps(content).encode(), _associated(header))
        encoded = {"nonce": base64.b64encode(nonce).decode(), "sealed": base64.b64encode(sealed).decode()}
        raw = json.dumps(header | encoded).encode() + b"\n"
        if len(raw) > MAX_FILE_BYTES:
            raise SealedFileError(
                f"the secrets file {self.path} would grow over {MAX_FILE_BYTES // 2**20} MiB: remove what is not used"
            )
        # A link stays a link: what it names is replaced, not the link itself.
        real = self._real()
        temporary = real.with_name(f".{real.name}.tmp")
        try:
            # Left by a writer that was killed: only one process is here at a time.
            temporary.unlink(missing_ok=True)
            try:
                _create_private(temporary, raw)
                temporary.replace(real)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            _sync_folder(real.parent)
        except OSError as error:
            raise SealedFileError(f"the secrets file {self.path} cannot be written: {error.strerror}") from None

    def _real(self) -> Path:
        return Path(os.path.realpath(self.path))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # Beside the real file, so that two names of one file are one lock.
        real = self._real()
        lock_path = real.with_name(f".{real.name}.lock")
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


def _stored(path: str, field: str, value: Secret) -> dict[str, str]:
    raw = value.reveal_bytes()
    if len(raw) > MAX_VALUE_BYTES:
        raise SealedFileError(f"the value of {path} {field} is over {MAX_VALUE_BYTES // 1024} KiB")
    try:
        return {"text": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode("ascii")}


def _create_private(path: Path, content: bytes) -> None:
    """A new file, 0600, on the disk before this returns. Raises `FileExistsError`, `OSError`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _associated(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"ostiary sealed file key id\0" + key).hexdigest()[:16]


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


@dataclass(frozen=True, slots=True)
class _Seen:
    """The file as it was read, and by what to know it again."""

    identity: tuple[int, ...]
    content: Mapping[str, tuple[SecretVersion, ...]]


class SealedStore:
    """The sealed file as a `SecretStore`. Reads off the event loop, and only when the file has changed."""

    name: Literal["vault", "sealed"] = "sealed"

    def __init__(self, file: SealedFile) -> None:
        self._file = file
        self._seen: _Seen | None = None
        self._flight: asyncio.Task[_Seen] | None = None

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
        """The content as it is now: by a look at the file that began after this call did."""
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                before = self._flight
                if before is not None:
                    await asyncio.wait([before])
                # One thread at a time, however many ask: a disk that hangs holds one thread, not the pool.
                if self._flight is None or self._flight is before:
                    self._flight = asyncio.get_running_loop().create_task(asyncio.to_thread(self._look, self._seen))
                    self._flight.add_done_callback(self._landed)
                return (await asyncio.shield(self._flight)).content
        except TimeoutError:
            raise SecretUnavailable(
                "", f"the secrets file {self._file.path} could not be read within {READ_DEADLINE_S:.0f} s"
            ) from None
        except SealedFileDamaged as error:
            # Not being able to read is an outage; what is read and makes no sense is not.
            raise SecretMalformed("", str(error)) from None
        except SealedFileError as error:
            raise SecretUnavailable("", str(error)) from None

    def _landed(self, flight: asyncio.Task[_Seen]) -> None:
        if self._flight is flight:
            self._flight = None
        # Asking for the exception also keeps a failure that nobody waits for any more from being reported as lost.
        if not flight.cancelled() and flight.exception() is None:
            self._seen = flight.result()

    def _look(self, seen: _Seen | None) -> _Seen:
        """In a thread: what was seen if it still stands, else the file. Touches nothing that the loop uses."""
        try:
            found = self._file.path.stat()
        except OSError as error:
            raise SealedFileError(f"the secrets file {self._file.path} cannot be read: {error.strerror}") from None
        identity = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
        if seen is not None and seen.identity == identity:
            return seen
        # The look comes before the read: a file exchanged between the two is read once more, never taken for seen.
        return _Seen(identity, self._file.load())

    async def write(self, ref: SecretRef, fields: Mapping[str, Secret], *, over: str) -> None:
        """See `SecretWriter.write`."""
        try:
            written = await asyncio.to_thread(self._file.replace, ref.name, fields, over)
        except SealedFileDamaged as error:
            raise SecretMalformed(ref.name, str(error)) from None
        except SealedFileError as error:
            raise SecretUnavailable(ref.name, str(error)) from None
        if written is None:
            raise VersionConflict(ref.name, f"has another version than {over} by now")

    async def probe(self) -> None:
        """See `SecretStore.probe`."""
        await self._load()

    async def fields_of(self, ref: SecretRef) -> frozenset[str]:
        """See `SecretStore.fields_of`."""
        return (await self.describe(ref)).fields

    async def unchanged(self, ref: SecretRef, known: SecretVersion) -> bool:  # noqa: ARG002 - a store's signature
        """See `SecretStore.unchanged`: a read of a file that has not changed costs no more."""
        return False

    async def describe(self, ref: SecretRef) -> Described:
        """See `SecretStore.describe`."""
        found = await self.fetch(ref)
        return Described(frozenset(found.fields), found.version)

    async def close(self) -> None:
        """Nothing to end."""
