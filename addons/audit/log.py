"""The audit log: opens and closes records, notes events, and never lets a record wait without bound.

Rules:
- `open` returns only once one sink has made the record durable; else it raises and no credential is used.
- `close`, `refused` and `note` never raise and never wait. A closing that cannot be written is kept (bounded) and tried
  again; what is lost all the same is closed as `interrupted` at the next start.
- Refusals of callers that have proven nothing are coalesced, and below the space reserve only `credential.*` records
  are written, those of callers that are proven (`scarce`): nobody can fill the disk from outside.
- Everything here runs on the event loop but the watchdog, and the writer threads of `threaded.py`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
import time
from typing import Final

from addons.audit.coalesce import Coalescer
from addons.audit.config import AuditConfig, FileSink
from addons.audit.files import SinkError, is_regular, open_file, sync_folder
from addons.audit.left import close_left, left_behind
from addons.audit.record import AuditUnavailable, Encoder, Fields, OpenRecord, make_open
from addons.audit.recovery import recover
from addons.audit.sinks import InlineFile, Sink, Stopwatch
from addons.audit.threaded import Entry, ThreadedSink
from addons.audit.watchdog import Watchdog
from addons.clock import Clock
from addons.telemetry import Metrics
from addons.uuid7 import uuid7

_log = logging.getLogger("ostiary.audit")

TICK_S: Final = 1.0
"""How often files are inspected and what failed is tried again."""


class AuditLog:
    """One process's audit log.

    Args:
        config: sinks and durability.
        metrics: counts records.
        clock: times of records.
    """

    def __init__(self, config: AuditConfig, metrics: Metrics, clock: Clock) -> None:
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._encoder = Encoder(clock)
        self._inline: list[InlineFile] = []
        self._threaded: list[ThreadedSink] = []
        self._sinks: list[Sink] = []
        self._failed: dict[str, str] = {}
        self._probes: dict[str, Entry] = {}
        self._open: set[str] = set()
        self._refusals = Coalescer()
        self._stopwatch = Stopwatch()
        self._watchdog = Watchdog(self._stopwatch)
        self._stopping = asyncio.Event()
        self._inspecting = asyncio.Lock()
        self._tick: asyncio.Task[None] | None = None
        self.ignored_closes = 0
        """Calls of `close` for a record that was closed before: a programming error, counted and without effect."""

    # --- life ---

    async def start(self) -> None:
        """Opens the sinks, closes what an earlier run left open, starts the watchdog.

        Raises:
            SinkError: a sink cannot be opened.
        """
        for sink in self._config.sinks:
            if isinstance(sink, FileSink):
                await self._open_file(sink)
            else:
                self._add(self._thread_for("stdout", os.dup(sys.stdout.fileno())))
        for path in left_behind(self._config):
            sync = self._config.durability == "fsync"
            for _ in range(await asyncio.to_thread(close_left, path, self._encoder, sync=sync)):
                self._metrics.audit_record("credential.closed")
        self._tick = asyncio.get_running_loop().create_task(self._keep_ticking())
        self._watchdog.start()

    async def _open_file(self, config: FileSink) -> None:
        descriptor = open_file(config.path)
        if not is_regular(descriptor):
            self._add(self._thread_for(str(config.path), descriptor, config))
            return
        try:
            left_open = await asyncio.to_thread(recover, descriptor, config.path)
            if self._config.durability == "fsync":
                await asyncio.to_thread(sync_folder, config.path)
        except OSError as error:
            os.close(descriptor)
            reason = os.strerror(error.errno or errno.EIO)
            raise SinkError(error.errno, f"audit file {config.path} cannot be recovered: {reason}") from None
        sink: InlineFile | ThreadedSink = (
            InlineFile(config.path, descriptor, self._stopwatch, self._reported, self._metrics.audit_lost)
            if self._config.durability == "written"
            else self._thread_for(str(config.path), descriptor, config)
        )
        self._add(sink)
        for record_id, fields in left_open:
            if sink.append(self._encoder.line("credential.closed", record_id, fields), keep=True):
                self._metrics.audit_record("credential.closed")

    def _thread_for(self, name: str, descriptor: int, config: FileSink | None = None) -> ThreadedSink:
        return ThreadedSink(
            name,
            descriptor,
            config.path if config else None,
            sync=self._config.durability == "fsync" and is_regular(descriptor),
            capacity=self._config.queue,
            report=self._reported,
            lost=self._metrics.audit_lost,
        )

    def _add(self, sink: InlineFile | ThreadedSink) -> None:
        self._sinks.append(sink)
        if isinstance(sink, InlineFile):
            self._inline.append(sink)
        else:
            self._threaded.append(sink)

    async def reopen(self) -> None:
        """Looks at once whether the files were rotated (which is done every second in any case)."""
        await self._inspect()

    async def stop(self) -> None:
        """Writes what waits, for at most `wait_s` a sink, then lets go. Later calls of `open` raise."""
        self._watchdog.stop()
        self._stopping.set()
        if self._tick is not None:
            # Not cancelled at once: an inspection under way may hold a new descriptor.
            await asyncio.wait([self._tick], timeout=self._config.wait_s)
            self._tick.cancel()
        for fields in self._refusals.due(self._clock.monotonic_s(), everything=True):
            self._emit("request.refused", fields)
        sinks = tuple(self._sinks)
        for sink in sinks:
            sink.retry()
        for held in (self._sinks, self._inline, self._threaded):
            held.clear()
        for sink in sinks:
            await asyncio.to_thread(sink.close, self._config.wait_s)

    # --- records ---

    async def open(self, fields: Fields) -> OpenRecord:
        """Makes `credential.opened` durable. With a regular file and `written` this does not suspend.

        Raises:
            AuditUnavailable: no sink took it in time.
        """
        record = self.open_now(fields) if self._inline else None
        if record is not None:
            return record
        record_id = uuid7()
        body = self._encoder.body(fields)
        line = self._encoder.join("credential.opened", record_id, body)
        began_s = self._clock.monotonic_s()
        done = await self._wait_for(line, record_id, fields) if self._threaded else False
        return self._opened(record_id, fields, body, began_s, done=done)

    def open_now(self, fields: Fields) -> OpenRecord | None:
        """As `open`, by the sinks that make nobody wait; None where one has to be waited for.

        Raises:
            AuditUnavailable: there are no others, and none of these took it.
        """
        record_id = uuid7()
        body = self._encoder.body(fields)
        line = self._encoder.join("credential.opened", record_id, body)
        began_s = self._clock.monotonic_s()
        done = False
        for file in self._inline:
            done = self._write(file, line) or done
        if self._threaded:
            if not done:
                return None
            for sink in self._threaded:
                sink.append(line)
        return self._opened(record_id, fields, body, began_s, done=done)

    def _opened(self, record_id: str, fields: Fields, body: str, began_s: float, *, done: bool) -> OpenRecord:
        now_s = self._clock.monotonic_s()
        self._metrics.audit_lag(now_s - began_s)
        if not done:
            raise AuditUnavailable
        self._metrics.audit_record("credential.opened")
        self._open.add(record_id)
        return make_open(record_id, fields, now_s, body)

    def _write(self, file: InlineFile, line: bytes) -> bool:
        try:
            file.write(line)
        except OSError as error:
            self._reported(file, error)
            return False
        if self._failed:
            self._reported(file, None)
        return True

    async def _wait_for(self, line: bytes, record_id: str, fields: Fields) -> bool:
        """Whether one of the threaded sinks has made the line durable in time."""
        waiting: dict[asyncio.Future[OSError | None], tuple[ThreadedSink, Entry]] = {}
        for sink in self._threaded:
            entry = sink.submit(line)
            if entry is None or entry.waiter is None:
                self._reported(sink, OSError(errno.EAGAIN, "its queue is full"))
            else:
                waiting[entry.waiter] = (sink, entry)
        in_doubt: list[ThreadedSink] = []
        ending: Fields = {"outcome": "interrupted"}
        deadline_s = time.monotonic() + self._config.wait_s
        done = False
        try:
            while waiting and not done:
                left_s = deadline_s - time.monotonic()
                ended, late = await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                if not ended:
                    for waiter in late:
                        self._reported(waiting[waiter][0], OSError(errno.ETIMEDOUT, "it takes too long"))
                    break
                for waiter in ended:
                    sink, entry = waiting.pop(waiter)
                    if waiter.result() is None:
                        done = True
                    elif entry.arrived:
                        in_doubt.append(sink)
            ending = {"outcome": "refused", "code": "audit_unavailable"}
        finally:
            if not done:
                # What may still arrive, or stands there unsynced, must not look as if the credential had been used
                # without end. The caller may also have gone while it waited.
                in_doubt += [sink for sink, entry in waiting.values() if not sink.withdraw(entry)]
                closing = self._encoder.line("credential.closed", record_id, {**fields, **ending})
                for sink in in_doubt:
                    if sink.append(closing, keep=True):
                        self._metrics.audit_record("credential.closed")
        return done

    def close(self, record: OpenRecord, ended: Fields) -> None:
        """Closes a record with its outcome; a second call for the same record does nothing."""
        if record.id not in self._open:
            self.ignored_closes += 1
            return
        self._open.remove(record.id)
        if record.fields.keys().isdisjoint(ended):
            line = self._encoder.join("credential.closed", record.id, record.body, self._encoder.body(ended))
        else:
            line = self._encoder.line("credential.closed", record.id, {**record.fields, **ended})
        self._hand_over("credential.closed", line, keep=True)

    def note(self, event: str, fields: Fields) -> None:
        """Records an event that opens nothing."""
        self._emit(event, fields)

    def refused(self, fields: Fields) -> None:
        """Records a refusal; those of a source that has proven nothing are coalesced."""
        written = fields if "workload" in fields else self._refusals.take(fields, self._clock.monotonic_s())
        if written is not None:
            self._emit("request.refused", written)

    def _emit(self, event: str, fields: Fields) -> None:
        self._hand_over(event, self._encoder.line(event, uuid7(), fields))

    def _hand_over(self, event: str, line: bytes, *, keep: bool = False) -> None:
        taken = False
        for sink in self._sinks:
            if not keep and sink.scarce(self._config.reserve_bytes):
                self._metrics.audit_lost(sink.name, "reserve")
            elif sink.append(line, keep=keep):
                taken = True
        if taken:
            self._metrics.audit_record(event)

    # --- health ---

    @property
    def healthy(self) -> bool:
        """Whether a record could be opened now, as far as the last attempts tell."""
        return not self._watchdog.hung and len(self._failed) < len(self._sinks)

    @property
    def scarce(self) -> bool:
        """Whether space is below the reserve somewhere: what is left is not for records that a stranger can bring about."""
        return any(sink.scarce(self._config.reserve_bytes) for sink in self._sinks)

    @property
    def why(self) -> str:
        """What is wrong, in words; empty while nothing is."""
        if self._watchdog.hung:
            return "a write to an audit file hangs"
        if not self._sinks:
            return "no sink is open"
        return "; ".join(f"{name}: {reason}" for name, reason in self._failed.items())

    @property
    def lag_s(self) -> float:
        """Age of the event loop's write that is under way; 0 while there is none."""
        return self._watchdog.lag_s

    def _reported(self, sink: Sink, failure: OSError | None) -> None:
        """How an attempt to write ended. A failure is logged once, until the sink works again."""
        if failure is None:
            if self._failed and self._failed.pop(sink.name, None) is not None:
                _log.warning("audit sink %s takes records again", sink.name)
        elif sink.name not in self._failed:
            self._failed[sink.name] = reason = failure.strerror or type(failure).__name__
            _log.error("audit sink %s takes no records: %s", sink.name, reason)

    async def _keep_ticking(self) -> None:
        while not self._stopping.is_set():
            try:
                async with asyncio.timeout(TICK_S):
                    await self._stopping.wait()
            except TimeoutError:
                await self._inspect()
                self._try_again()
                for fields in self._refusals.due(self._clock.monotonic_s()):
                    self._emit("request.refused", fields)

    async def _inspect(self) -> None:
        # One at a time: two would both open the new file, and its lock would refuse the second.
        async with self._inspecting:
            for file in tuple(self._inline):
                file.adopt(await asyncio.to_thread(file.inspect))

    def _try_again(self) -> None:
        for sink in self._sinks:
            sink.retry()
        # Nothing is asked of a process that is not ready, so it must find out for itself that there is room again.
        for file in self._inline:
            if file.name in self._failed:
                self._write(file, self._encoder.line("audit.restored", uuid7(), {}))
        for sink in self._threaded:
            probe = self._probes.get(sink.name)
            under_way = probe is not None and probe.waiter is not None and not probe.waiter.done()
            if sink.name in self._failed and not under_way:
                entry = sink.submit(self._encoder.line("audit.restored", uuid7(), {}))
                if entry is not None:
                    self._probes[sink.name] = entry
