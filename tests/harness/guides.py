"""A reader who follows a guide word by word: writes its files, types its commands, compares what it prints.

A block's language and mark say what becomes of it:

- `yaml settings` is written to ostiary.yaml, `yaml policy` to policy.yaml; a later one replaces an earlier one;
- another mark of a program or file (`python api.py`) is the name of a file to write;
- `sh` is typed in a shell whose folder and variables last to the end of the guide; it must succeed;
- `sh fails` must not succeed; `sh server` goes on in a terminal of its own, and is waited for until its first line;
- `text` is what the `sh` before it prints, `…` standing for anything inside a line.

Nothing is changed but `replaced` (ports that may be taken, the reader's own numbers) and `egress`, which leads a guide's
upstreams to those of the test. Blocks marked `fragment` or `manifest`, and of other languages, are left to the test.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from tests.harness.ostiary_process import clean_environment

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
FENCE = re.compile(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = {("yaml", "settings"): "ostiary.yaml", ("yaml", "policy"): "policy.yaml"}
UNWRITTEN = {"", "fragment", "manifest"}


class Block(NamedTuple):
    language: str
    mark: str
    text: str


def blocks(guide: str | Path, heading: str | None = None) -> list[Block]:
    """The blocks of a guide, or of one section of a page."""
    path = guide if isinstance(guide, Path) else GUIDES / f"{guide}.md"
    text = path.read_text()
    if heading is not None:
        text = text[text.index(f"\n{heading}\n") + len(heading) :].partition("\n## ")[0]
    return [Block(found[1], found[2] or "", found[3]) for found in FENCE.finditer(text)]


def shims(folder: Path, **targets: str) -> str:
    """Commands in a folder of their own, `ostiary` among them; the PATH that finds them."""
    folder.mkdir()
    for name, target in {"ostiary": f'"{sys.executable}" -m ostiary', **targets}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {target} "$@"\n')
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def matches(expected: str, printed: str) -> bool:
    """Whether a command printed what the guide says."""
    pattern = "".join(".*" if part == "…" else re.escape(part) for part in re.split("(…)", expected.rstrip("\n")))
    return re.fullmatch(pattern, printed.rstrip("\n")) is not None


class Server:
    """A command in a terminal of its own."""

    def __init__(self, text: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.output = bytearray()
        self.errors = bytearray()
        self._first = threading.Event()
        self.process = subprocess.Popen(
            ["sh", "-e", "-c", text], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._threads = [
            threading.Thread(target=self._pump, args=(stream, into), daemon=True)
            for stream, into in ((self.process.stdout, self.output), (self.process.stderr, self.errors))
        ]
        for thread in self._threads:
            thread.start()
        assert self._first.wait(20), (text, self.errors)
        assert self.output, (text, self.errors.decode())

    def _pump(self, stream: IO[bytes], into: bytearray) -> None:
        while read := os.read(stream.fileno(), 65536):
            into += read
            if into is self.output and b"\n" in into:
                self._first.set()
        if into is self.output:
            self._first.set()

    def stop(self, timeout_s: float = 20) -> int:
        """Ctrl-C, or whatever has ended it before; its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise
        finally:
            for thread in self._threads:
                thread.join(5)


@dataclass
class Reader:
    """Somebody in an empty folder."""

    folder: Path
    environment: Mapping[str, str]
    replaced: Mapping[str, str] = field(default_factory=dict)
    egress: str = ""
    typed: str = ""
    """What is typed where a command asks for something."""
    servers: list[Server] = field(default_factory=list)

    @classmethod
    def at(cls, tmp_path: Path, **given: object) -> Reader:
        """A reader with `ostiary`, `python` and `bao` in the PATH, and an empty home."""
        folder, home = tmp_path / "reader", tmp_path / "home"
        folder.mkdir()
        home.mkdir()
        bao = f'"{Path(sys.executable).parent / "bao"}"'
        python = f'"{sys.executable}"'
        path = shims(tmp_path / "bin", python=python, python3=python, bao=bao, vault=bao)
        environment = clean_environment(PATH=path, PYTHONPATH=str(ROOT), HOME=str(home))
        return cls(folder, environment, **given)  # type: ignore[arg-type]  # as the fields say

    def follow(self, found: list[Block]) -> None:
        """Does what the blocks say, in their order."""
        printed: str | None = None
        for block in found:
            text = self._own(block.text)
            if (name := FILES.get((block.language, block.mark))) is not None:
                more = self.egress if name == "ostiary.yaml" and "\negress:" not in text else ""
                (self.folder / name).write_text(text + more)
            elif block.language == "sh" and block.mark == "server":
                self.servers.append(Server(self._again(text), self.folder, self.environment))
            elif block.language == "sh":
                assert block.mark in {"", "fails"}, block.mark
                printed = self.type(text, fails=block.mark == "fails")
            elif block.language == "text":
                assert printed is not None
                assert matches(text, printed), f"the guide says:\n{text}\nand it is:\n{printed}"
            elif block.mark not in UNWRITTEN:
                (self.folder / block.mark).write_text(text)

    def type(self, text: str, *, fails: bool = False) -> str:
        """Runs commands in the reader's shell; what they print on stdout."""
        kept = '\nstatus=$?\nexport -p > "$HOME/shell"\nprintf "cd \'%s\'\\n" "$PWD" >> "$HOME/shell"\nexit $status\n'
        done = subprocess.run(
            ["sh", "-e" if not fails else "+e", "-c", self._again(text) + kept],
            cwd=self.folder, env=self.environment, input=self.typed, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        told = f"{text}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert (done.returncode != 0) is fails, told
        return done.stdout

    def _again(self, text: str) -> str:
        state = Path(self.environment["HOME"]) / "shell"
        return f'. "{state}"\n{text}' if state.exists() else text

    def _own(self, text: str) -> str:
        for said, own in self.replaced.items():
            text = text.replace(said, own)
        return text

    def outputs(self) -> list[tuple[str, bytes]]:
        """Everything that the servers said, and the audit."""
        files = [(str(path), path.read_bytes()) for path in sorted(self.folder.glob("audit*.jsonl"))]
        return files + [
            (part, bytes(said)) for one in self.servers for part, said in (("out", one.output), ("err", one.errors))
        ]

    def stop(self) -> None:
        """Ends every server, the last one first."""
        for one in reversed(self.servers):
            one.stop()


def wait_until(what: str, holds: Callable[[], object], timeout_s: float = 10) -> None:
    """Waits for something that another process does."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)
