"""Which files a policy is made of, and with which rights: the entries of `policies:`, looked up anew at each load.

A file belongs to one entry. Rules that keep a folder of one team from reaching beyond it: what is no regular file is a
fault (a pipe would hold the reload for ever); a file under `may` whose real place lies outside the folder of its
pattern is one (a link to a file of others); so is one file that entries of different rights reach, by whatever name,
and a folder of one entry that a wildcard of another reaches into.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from policies.faults import FaultError, Faults, Place
from policies.load import load_policy, shown_path
from policies.matcher import Policy
from policies.rights import Rights

MAX_FILES: Final = 10_000
"""More files than anybody writes: whoever may drop files into a folder could hold the reload for minutes."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file name or pattern of `policies:`."""

    pattern: str
    folder: Path
    """What the pattern is relative to."""
    place: Place
    rights: Rights | None = None
    """None: its files may write everything."""

    @property
    def fixed(self) -> Path:
        """The folder above the first wildcard."""
        parts = (self.folder / self.pattern).parts
        until = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
        return Path(*parts[: min(until, len(parts) - 1)])

    @property
    def wanders(self) -> bool:
        """Whether a wildcard stands for a folder."""
        return any(glob.has_magic(part) for part in Path(self.pattern).parts[:-1])


@dataclass(frozen=True, slots=True)
class PolicyText:
    """A file as it was read: whoever has all of them has the policy, whatever the disk holds by now."""

    path: Path
    text: str
    entry: int
    """Which of the sources its rights are of."""


def load_sources(
    sources: Sequence[Source],
    *,
    variables: Mapping[str, str] | None = None,
    texts: list[PolicyText] | None = None,
) -> Policy:
    """Finds the files of all entries and loads them; raises as `load_policy` does, with the faults of both.

    Args:
        sources: entries of `policies:`.
        variables: what `${name}` stands for in secret paths.
        texts: is given what was read, in order.
    """
    faults = Faults()
    found = find_files(sources, faults)

    def seen(path: Path, raw: bytes) -> None:
        entry = next(index for index, source in enumerate(sources) if source.rights is found[path])
        if texts is not None:
            # What is not UTF-8 is a fault, so that its text is of no use to anybody.
            texts.append(PolicyText(path, raw.decode("utf-8", "replace"), entry))

    try:
        policy = load_policy(tuple(found), rights=found, variables=variables, base=Path.cwd(), seen=seen)
    except FaultError as error:
        faults.found.extend(error.faults)
        raise FaultError(faults) from None
    faults.raise_any()
    return policy


def load_texts(
    texts: Sequence[PolicyText], sources: Sequence[Source], *, variables: Mapping[str, str] | None = None
) -> Policy:
    """The policy of texts that were read before, with the rights of the same sources; raises as `load_policy` does."""
    return load_policy(
        tuple(one.path for one in texts),
        rights={one.path: sources[one.entry].rights for one in texts},
        variables=variables,
        base=Path.cwd(),
        held={one.path: one.text.encode() for one in texts},
    )


def find_files(sources: Sequence[Source], faults: Faults) -> dict[Path, Rights | None]:
    """The files of all entries in order, each with its rights."""
    found: dict[Path, Rights | None] = {}
    known: dict[tuple[int, int], tuple[Path, Source]] = {}
    limited: dict[Path, Source] = {}
    matches = [(source, path) for source in sources for path in _matches(source, faults)]
    if len(matches) > MAX_FILES:
        faults.add(sources[0].place, f"policies name {len(matches)} files, more than {MAX_FILES}", "join some of them")
        return {}
    for source, path in matches:
        if source.rights is not None:
            limited.setdefault(path.parent.resolve(), source)
    for source, path in matches:
        identity = _identity(source, path, faults)
        if identity is None:
            continue
        first, earlier = known.setdefault(identity, (path, source))
        if _owner(earlier) != _owner(source):
            faults.add(
                source.place,
                f"{shown_path(path, Path.cwd())} is a file of two entries with different rights"
                + (f", there as {shown_path(first, Path.cwd())}" if first != path else "")
                + f": this one and {earlier.pattern!r} at {earlier.place}",
                "write the patterns so that each file belongs to one entry",
            )
        elif _reaches_in(source, path, limited, faults):
            found[path] = source.rights
    return found


def _owner(source: Source) -> Place | None:
    return None if source.rights is None else source.rights.place


def _matches(source: Source, faults: Faults) -> list[Path]:
    names = sorted(glob.glob(str(source.folder / source.pattern), recursive=True))  # noqa: PTH207 - absolute patterns are legal too
    if not names:
        faults.add(source.place, f"no file matches {source.pattern!r}", "file names are relative to the settings file")
    for name in names:
        if not name.isprintable():  # it would reach terminals and logs with every fault of the file
            faults.add(source.place, f"{name!r} is no name for a file of policies", "rename it")
    return [Path(name) for name in names if name.isprintable()]


def _identity(source: Source, path: Path, faults: Faults) -> tuple[int, int] | None:
    """What the file is whatever it is called: device and inode."""
    try:
        real = path.resolve(strict=True)
        stat = real.stat()
    except (OSError, RuntimeError) as error:  # Python 3.12 calls a loop of links a RuntimeError
        faults.add(
            Place(shown_path(path, Path.cwd())),
            f"cannot be read: {getattr(error, 'strerror', None) or 'it is a link to itself'}",
            "check the path and its permissions",
        )
        return None
    if not real.is_file():
        faults.add(
            Place(shown_path(path, Path.cwd())), "is no regular file", "a pattern matches policy files and nothing else"
        )
        return None
    if source.rights is not None and not real.is_relative_to(source.fixed.resolve()):
        faults.add(
            Place(shown_path(path, Path.cwd())),
            f"leads out of {source.fixed}, and its entry at {source.place} has rights of its own",
            "put the file itself there, or let the entry name the folder where it is",
        )
        return None
    return stat.st_dev, stat.st_ino


def _reaches_in(source: Source, path: Path, limited: Mapping[Path, Source], faults: Faults) -> bool:
    """Whether the file may count: a wildcard of this entry must not reach into a folder that another entry limits, or
    whoever writes there would only have to choose another name.
    """
    owner = limited.get(path.parent.resolve())
    if owner is None or _owner(owner) == _owner(source) or not source.wanders:
        return True
    if (source.folder / source.pattern).parent == (owner.folder / owner.pattern).parent:
        return True
    faults.add(
        source.place,
        f"{source.pattern!r} reaches {shown_path(path, Path.cwd())}, in a folder whose files {owner.pattern!r} at {owner.place} limits",
        "name the folders of this entry, or move the file",
    )
    return False
