"""A soak: the fast engine under half its load for a while, with everything that goes wrong in a day.

Beside callers that keep their connections there are new ones, uploads, WebSockets, streams of events, callers that
hang up in the middle and upstreams that do. `python -m bench.soak --hours 1` writes a curve as CSV and SVG, says whether all
held, and ends with 1 where it did not; `make test-slow` does the same for two minutes. Half the load is half of what the same callers reach without a pause.
The audit grows by about 1 KB a request: an hour takes some gigabytes below .cache/.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import upstream as scripted
from bench.callers import Way, dial, trusting
from bench.chart import draw_curve
from bench.contenders import WORK, raise_descriptors
from bench.soak_process import Books, Reading, read, start
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki

CALLERS = 8
CALIBRATION_S = 3.0
WARM_S = 30.0
"""At most so long all is done without a pause, four at a time: the allocator then has what it will ever need."""
WARM_AT_ONCE = 4
SETTLE_S = 45.0
"""Connections to upstreams idle in the pool for thirty seconds before they are closed."""
MAX_GROWTH = 0.05
SLACK_DESCRIPTORS = 2
KINDS = ("requests", "new", "upload", "stream", "websocket", "abort", "reset")
UPLOAD = b"u" * (1 << 20)
UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
FRAME = b"\x81\x05hello"


@dataclass
class Soak:
    """What was found."""

    readings: list[Reading] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)
    rate: float = 0.0
    before: Reading | None = None
    after: Reading | None = None
    open_records: int = 0

    def growth(self) -> float:
        """How much more memory the end takes than the beginning, as a share. The warm-up lies before both.

        What the allocator kept from the warm-up can hide a slow leak: only a run of hours shows that one.
        """
        count = len(self.readings)
        early = [reading.rss_kib for reading in self.readings[count // 10 : count * 3 // 10]]
        late = [reading.rss_kib for reading in self.readings[count * 8 // 10 :]]
        return statistics.median(late) / statistics.median(early) - 1

    def faults(self, max_growth: float = MAX_GROWTH) -> list[str]:
        """What a sound process would not show; nothing where it held.

        Args:
            max_growth: of memory, as a share.
        """
        found = [f"failed: {text}" for text in self.failures]
        found += [f"{kind} never ran" for kind in KINDS if not self.done.get(kind)]
        if self.growth() > max_growth:
            found.append(f"memory grew by {self.growth():.1%}, more than {max_growth:.0%}")
        if self.open_records:
            found.append(f"{self.open_records} records of credentials were left open")
        before, after = self.before, self.after
        if before is None or after is None:
            return [*found, "nothing was read before or after"]
        if after.callers or after.upstream:
            found.append(f"{after.callers} connections of callers and {after.upstream} of upstreams were left open")
        # Before, one connection waited in the pool.
        most = before.descriptors - before.upstream + SLACK_DESCRIPTORS
        if after.descriptors > most:
            found.append(f"{after.descriptors} descriptors were left open, more than {most}")
        return found


@dataclass
class _Drive:
    """The callers of one soak."""

    way: Way
    found: Soak
    until: float
    pause_s: float

    def __post_init__(self) -> None:
        self.context = trusting()

    def over(self) -> bool:
        return time.monotonic() >= self.until

    async def again(self, name: str, one: Callable[[], Awaitable[None]], pause_s: float) -> None:
        """Does one thing over and over; whatever it raises is a failure."""
        while not self.over():
            try:
                async with asyncio.timeout(30):
                    await one()
            except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
                self.found.failures.append(f"{name}: {type(error).__name__}: {error}")
            else:
                self.found.done[name] = self.found.done.get(name, 0) + 1
            await asyncio.sleep(pause_s)

    async def keep_alive(self) -> None:
        """Two hundred requests on one connection."""
        line = await dial(self.way, self.context)
        try:
            for _ in range(200):
                if self.over():
                    return
                due = time.monotonic() + self.pause_s
                expect(await line.get("/1k"), 200, 1024)
                self.found.done["requests"] = self.found.done.get("requests", 0) + 1
                if self.pause_s:
                    await asyncio.sleep(max(due - time.monotonic(), 0))
        finally:
            await line.close()

    async def new(self) -> None:
        line = await dial(self.way, self.context)
        try:
            expect(await line.get("/1k"), 200, 1024)
        finally:
            await line.close()

    async def upload(self) -> None:
        line = await dial(self.way, self.context)
        try:
            line.send("POST", "/up", UPLOAD)
            await line.writer.drain()
            status, body = await line.answer()
            if (status, body) != (200, b"%d" % len(UPLOAD)):
                raise ValueError(f"{status} {body[:80]!r}")
        finally:
            await line.close()

    async def stream(self) -> None:
        line = await dial(self.way, self.context)
        try:
            status, body = await line.get("/sse")
            if status != 200 or body.count(b"data: ") != scripted.EVENTS:
                raise ValueError(f"{status} {body[:80]!r}")
        finally:
            await line.close()

    async def websocket(self) -> None:
        line = await dial(self.way, self.context)
        try:
            line.send("GET", "/ws", headers=UPGRADE)
            status, _ = await line.head()
            if status != 101:
                raise ValueError(f"no WebSocket: {status}")
            for _ in range(20):
                # A caller masks what it sends, here with zeros.
                line.writer.write(b"\x81\x85\0\0\0\0" + FRAME[2:])
                if await line.reader.readexactly(len(FRAME)) != FRAME:
                    raise ValueError("another message came back")
                await asyncio.sleep(0.02)
        finally:
            await line.close()

    async def abort(self) -> None:
        """Hangs up in the middle of an answer, and in the middle of an upload."""
        line = await dial(self.way, self.context)
        line.send("GET", "/slow")
        await line.head()
        line.writer.transport.abort()
        line = await dial(self.way, self.context)
        line.writer.write(f"POST /up HTTP/1.1\r\nHost: {line.authority}\r\nContent-Length: 1000000\r\n\r\n".encode())
        line.writer.write(UPLOAD[:100_000])
        await asyncio.sleep(0.05)
        line.writer.transport.abort()

    async def reset(self) -> None:
        """An upstream that breaks off: the caller must not take what came for the whole."""
        line = await dial(self.way, self.context)
        try:
            status, _ = await line.get("/reset")
            if status != 502:
                raise ValueError(f"a cut answer looked whole: {status}")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            await line.close()


def expect(found: tuple[int, bytes], status: int, size: int) -> None:
    if found[0] != status or len(found[1]) != size:
        raise ValueError(f"{found[0]} with {len(found[1])} bytes: {found[1][:200]!r}")


async def _calibrate(way: Way) -> float:
    """Requests a second of the callers without a pause."""
    trial = Soak()
    drive = _Drive(way, trial, time.monotonic() + CALIBRATION_S, 0.0)
    await asyncio.gather(*(drive.again("keep-alive", drive.keep_alive, 0) for _ in range(CALLERS)))
    if trial.failures or not trial.done.get("requests"):
        raise SystemExit(f"the soak cannot begin: {trial.failures[:3]}")
    return trial.done["requests"] / CALIBRATION_S


async def _warm(way: Way, found: Soak, seconds: float) -> None:
    drive = _Drive(way, found, time.monotonic() + seconds, 0.0)
    steps = (drive.new, drive.upload, drive.stream, drive.websocket, drive.abort, drive.reset)
    await asyncio.gather(*(drive.again(step.__name__, step, 0) for step in steps for _ in range(WARM_AT_ONCE)))


async def _watch(one: Ostiary, books: Books, found: Soak, until: float, every_s: float) -> None:
    while time.monotonic() < until:
        found.readings.append(await asyncio.to_thread(read, one))
        await asyncio.to_thread(books.follow)
        await asyncio.sleep(every_s)


async def _settle(one: Ostiary, books: Books, found: Soak) -> None:
    """Waits until nothing is under way any more, or gives up."""
    end = time.monotonic() + SETTLE_S
    while True:
        found.after = await asyncio.to_thread(read, one)
        await asyncio.to_thread(books.follow)
        found.open_records = len(books.open)
        quiet = not (found.after.callers or found.after.upstream or found.open_records)
        if quiet or time.monotonic() > end:
            return
        await asyncio.sleep(0.25)


async def _run(folder: Path, seconds: float) -> Soak:
    pki = Pki.make(folder / "pki")
    found = Soak()
    async with scripted.serving(pki.context("localhost")) as port:
        one = await asyncio.to_thread(start, folder / "ostiary", pki, port)
        try:
            way = Way(one.port, port, forward=True)
            books = Books(one.folder / "audit.jsonl")
            # What opens once and stays (the secret store, the connection of /metrics) is there before counting.
            await asyncio.to_thread(read, one)
            await _Drive(way, found, 0, 0).new()
            await asyncio.sleep(0.5)
            found.before = await asyncio.to_thread(read, one)
            found.rate = await _calibrate(way) / 2
            await _warm(way, found, min(WARM_S, seconds / 2))
            drive = _Drive(way, found, time.monotonic() + seconds, CALLERS / found.rate)
            others = (
                (drive.new, 0.2), (drive.upload, 0.5), (drive.stream, 0.2), (drive.websocket, 0.2), (drive.abort, 0.3), (drive.reset, 0.3),
            )  # fmt: skip
            await asyncio.gather(
                _watch(one, books, found, drive.until, min(max(seconds / 200, 0.1), 10.0)),
                *(drive.again("keep-alive", drive.keep_alive, 0) for _ in range(CALLERS)),
                *(drive.again(step.__name__, step, pause_s) for step, pause_s in others),
            )
            await _settle(one, books, found)
        finally:
            await asyncio.to_thread(one.stop)
    return found


def soak(folder: Path, seconds: float) -> Soak:
    """Runs one in an empty folder."""
    raise_descriptors()
    return asyncio.run(_run(folder, seconds))


def curve(found: Soak, target: Path) -> None:
    """The readings as CSV."""
    began = found.readings[0].at_s
    with target.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["seconds", "rss_kib", "descriptors", "callers", "upstream", "cpu_s"])
        for one in found.readings:
            rows.writerow(
                [f"{one.at_s - began:.1f}", one.rss_kib, one.descriptors, one.callers, one.upstream, f"{one.cpu_s:.2f}"]
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="drives the fast engine at half its load and writes a curve")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--csv", type=Path, default=WORK / "soak.csv")
    given = parser.parse_args()
    folder = WORK / "soak"
    shutil.rmtree(folder, ignore_errors=True)
    found = soak(folder, given.hours * 3600)
    curve(found, given.csv)
    began_s = found.readings[0].at_s
    points = [(one.at_s - began_s, one.rss_kib / 1024) for one in found.readings]
    given.csv.with_suffix(".svg").write_text(draw_curve(points, "Resident memory of one worker at half its load"))
    print(f"{found.done}; {found.rate:.0f} requests a second wanted; memory {found.growth():+.1%}")
    print(
        f"before {found.before}\nafter  {found.after}\nopen records {found.open_records}; {len(found.failures)} failures"
    )
    print(f"The curve: {given.csv}")
    faults = found.faults()
    print("It held." if not faults else "\n".join(["It did not hold:", *faults[:20]]))
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
