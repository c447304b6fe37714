"""Canaries: every secret of a test carries a mark that no output may show, in any form it could leak in."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote


def canary(kind: str = "secret") -> str:
    """A fresh secret value that fits every place."""
    return f"cnry-{kind}-{os.urandom(12).hex()}"


def forms(value: str) -> set[bytes]:
    """The forms in which a value could be found."""
    raw = value.encode()
    found = {raw, raw.hex().encode(), quote(value, safe="").encode()}
    # Inside a longer text Base64 has three alignments; the middle of each is the same whatever stands around it.
    for shift in range(3):
        found.add(base64.b64encode(b"\x00" * shift + raw)[4 if shift else 0 : -4])
        found.add(base64.urlsafe_b64encode(b"\x00" * shift + raw)[4 if shift else 0 : -4])
    return {form for form in found if len(form) >= 8}


def scan(blobs: Iterable[tuple[str, bytes]], canaries: Iterable[str]) -> list[str]:
    """Names of the outputs that show a canary."""
    needles = [(value, form) for value in canaries for form in forms(value)]
    return sorted({f"{name} shows {value[:12]}…" for name, blob in blobs for value, form in needles if form in blob})


def files_below(folder: Path, skip: Iterable[str]) -> Iterable[tuple[str, bytes]]:
    """Every regular file below a folder but those named."""
    skipped = set(skip)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name not in skipped:
            yield str(path), path.read_bytes()
