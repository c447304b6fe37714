"""How a worker is started, and how its end is told."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ostiary.workers import place as module
from ostiary.workers.place import Place, exit_code, interpreter, told


def test_the_working_folder_is_no_place_for_modules_unless_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit(99)\n")
    monkeypatch.setattr(sys, "path", ["/usr/bin", *sys.path])
    assert "-P" in interpreter()
    assert (
        subprocess.run([*interpreter(), "-m", "json.tool", "--help"], capture_output=True, check=False).returncode == 0
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "-P" not in interpreter()


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit 0"), (74, "exit 74"), (-9, "SIGKILL"), (-34, "SIGRTMIN"), (-99, "signal 99")]
)
def test_an_end_in_words(code: int, words: str) -> None:
    assert told(code) == words


async def test_the_end_of_a_process_is_noticed() -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    assert await exit_code(process) == 7
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ended = exit_code(killed)
    killed.kill()
    assert await ended == -9


async def test_keys_of_a_terminal_do_not_reach_one_that_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it says itself what becomes of them: a hang-up is a reload, and must not end the start."""
    code = "import signal, sys; sys.exit(40 + len({2, 1} & signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    monkeypatch.setattr(module, "interpreter", lambda: [sys.executable, "-c", code])
    running, ended = await module.start(Place(0), {}, {}, ())
    assert await ended == 42
    await running
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
