"""The key of a sealed file: where it comes from, and what is no key. Also the errors of sealed files, which begin here.

A key is 32 random bytes, in base64: in a file that nobody else may read, in an environment variable, or in a systemd
credential.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vault.secret import Secret

KEY_BYTES: Final = 32
MAX_KEY_FILE_BYTES: Final = 4096
_CREDENTIAL: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._@:-]{1,255}")


class SealedFileError(Exception):
    """The file, its key or its lock cannot be used; the message says why and what to do."""


class SealedFileDamaged(SealedFileError):
    """The file was read, and is not what was written: cut, changed, or no sealed file at all."""


class WrongKey(SealedFileError):
    """The file was sealed with another key."""


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
            where = f"the key file {path}"
            text = _read_small(path, where, private=True)
        case KeyEnv(name=name):
            text = environ.get(name, "")
            where = f"${name}"
            if not text:
                raise SealedFileError(f"the key variable {where} is not set")
        case KeyCredential(name=name):
            folder = environ.get("CREDENTIALS_DIRECTORY", "")
            if not folder:
                raise SealedFileError(
                    f"there is no systemd credential {name}: CREDENTIALS_DIRECTORY is not set; use LoadCredential="
                )
            if not _CREDENTIAL.fullmatch(name):
                raise SealedFileError(f"{name!r} is no name of a systemd credential")
            where = f"the systemd credential {name}"
            # systemd hands it over in a folder that only the service may enter; its own mode bits are not ours to judge.
            text = _read_small(Path(folder) / name, where)
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise SealedFileError(f"{where} holds no key: 32 bytes in base64 are expected (ostiary secret init makes one)")
    return Secret(key)


def _read_small(path: Path, where: str, *, private: bool = False) -> str:
    """A short ASCII file. Judged by what was opened, so that it cannot be exchanged between the look and the read."""
    try:
        # Without O_NONBLOCK a FIFO of that name would hold the start for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise SealedFileError(f"{where} cannot be read: {_why(error)} (ostiary secret init makes one)") from None
    with os.fdopen(descriptor, "rb") as opened:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise SealedFileError(f"{where} is no regular file")
        if private and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SealedFileError(f"{where} is open to others (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}")
        try:
            raw = opened.read(MAX_KEY_FILE_BYTES)
        except OSError as error:
            raise SealedFileError(f"{where} cannot be read: {_why(error)}") from None
    # What is no ASCII is no base64 either: the caller says so.
    return raw.decode("ascii", "replace")


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
