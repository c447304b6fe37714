"""What a worker is told before anything else: the whole start, so that it reads no settings and no policy of its own.

Files that were edited since the supervisor read them count only by a reload, for a worker that replaces a fallen one too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostiary.settings.load import Texts
from ostiary.store_addresses import Own
from ostiary.workers.channel import Body
from policies import PolicyText


@dataclass(frozen=True, slots=True)
class Beginning:
    """The start of one worker."""

    version: str
    """Of Ostiary: a worker of another version than its supervisor's does not start."""
    number: int
    workers: int
    file: Path
    """The settings file, which relative paths are relative to."""
    texts: Texts
    own: frozenset[Own]
    """Addresses that the supervisor listens on: never dialled."""
    sockets: tuple[tuple[int, ...], ...]
    """Descriptors of the listeners in the order of the settings, for each worker."""

    def body(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "number": self.number,
            "workers": self.workers,
            "file": str(self.file),
            "settings": self.texts.settings.decode(),
            "policy": policy_body(self.texts.policy),
            "own": sorted(([host, port] for host, port in self.own), key=str),
            "sockets": [list(group) for group in self.sockets],
        }

    @classmethod
    def of(cls, body: Body) -> Beginning:
        return cls(
            str(body["version"]),
            int(body["number"]),
            int(body["workers"]),
            Path(body["file"]),
            Texts(body["settings"].encode(), policy_texts(body["policy"])),
            frozenset((host, port) for host, port in body["own"]),
            tuple(tuple(group) for group in body["sockets"]),
        )


def policy_body(texts: Sequence[PolicyText]) -> list[list[Any]]:
    """The texts of a policy as JSON has them."""
    return [[str(one.path), one.text, one.entry] for one in texts]


def policy_texts(body: Sequence[Sequence[Any]]) -> list[PolicyText]:
    return [PolicyText(Path(path), text, entry) for path, text, entry in body]
