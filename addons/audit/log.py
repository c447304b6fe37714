"""The audit log: opens and closes records, notes events, and never lets a record wait without bound.

Rules:
- `open` returns only once one sink has made the record durable; else it raises and no credential is used.
- `close`, `refused` and `note` never raise and never wait. A `closed` that cannot be written is kept (bounded) and
  tried again; what is lost all the same is closed as `interrupted` at the next start.
- Refusals of callers that have proven nothing are coalesced per source, and stop when free space is short: nobody can
  fill the disk from outside.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Final, cast

from addons.audit.config import AuditConfig, FileSink
from addons.audit.record import AuditUnavailable, Encoder, Fields, OpenRecord, make_open
from addons.audit.recovery import recover
from addons.audit.sinks import InlineFile, Sink, Stopwatch, ThreadedSink, is_regular, open_file
from addons.clock import Clock
from addons.telemetry import Metrics
from addons.uuid7 import uuid7

_log = logging.getLogger("ostiary.audit")

WINDOW_S: Final = 10.0
"""Refusals of one unproven source inside this window after the first become one record with a count."""
MAX_SOURCES: Final = 1000
MAX_PENDING: Final = 1000
HUNG_S: Final = 2.0


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
        self._sinks: list[Sink] = []
        self._failed: dict[str, str] = {}
        self._open: dict[str, float] = {}
        self._pending: deque[bytes] = deque(maxlen=MAX_PENDING)
        self._sources: dict[str, tuple[float, int, Fields]] = {}
        self._stopwatch = Stopwatch()
        self._hung = False
        self._stopping = threading.Event()
        self._tick: asyncio.Task[None] | None = None

    # --- life ---

    async def start(self) -> None:
        """Opens the sinks, closes what an earlier run left open, starts the watchdog.

        Raises:
            SinkError: a sink cannot be opened.
        """
        for sink in self._config.sinks:
            self._sinks.append(await self._opened(sink) if isinstance(sink, FileSink) else self._stdout())
        self._tick = asyncio.get_running_loop().create_task(self._every_second())
        threading.Thread(target=self._watch, name="audit watchdog", daemon=True).start()

    async def _opened(self, config: FileSink) -> Sink:
        descriptor = open_file(config.path)
        if is_regular(descriptor):
            for event, fields in await asyncio.to_thread(recover, descriptor, config.path):
                line = self._encoder.line(event, fields.pop("id"), cast("Fields", fields))
                await asyncio.to_thread(_append_now, descriptor, line)
                self._metrics.audit_record(event)
            if self._config.durability == "written":
                return InlineFile(config.path, descriptor, self._stopwatch)
        return ThreadedSink(
            str(config.path),
            descriptor,
            config.path,
            sync=self._config.durability == "fsync" and is_regular(descriptor),
            capacity=self._config.queue,
            report=self._reported,
        )

    def _stdout(self) -> Sink:
        import os

        return ThreadedSink(
            "stdout", os.dup(sys.stdout.fileno()), None, sync=False, capacity=self._config.queue, report=self._reported
        )

    async def stop(self) -> None:
        """Writes what waits, then lets go."""
        self._stopping.set()
        if self._tick is not None:
            self._tick.cancel()
            with suppress(asyncio.CancelledError):
                await self._tick
        self._flush_sources(everything=True)
        self._retry_pending()
        for sink in self._sinks:
            await asyncio.to_thread(sink.close, self._config.wait_s)

    # --- records ---

    async def open(self, fields: Fields) -> OpenRecord:
        """Makes `credential.opened` durable.

        Raises:
            AuditUnavailable: no sink took it in time.
        """
        record_id = uuid7()
        line = self._encoder.line("credential.opened", record_id, fields)
        began_s = self._clock.monotonic_s()
        done = False
        try:
            if len(self._sinks) == 1:
                done = await self._commit(self._sinks[0], line)
            else:
                done = any(await asyncio.gather(*(self._commit(sink, line) for sink in self._sinks)))
        finally:
            if not done:
                # It may still arrive in a slow sink, or the caller has gone: it must not look as if the credential had
                # been used without end.
                self._keep(
                    self._encoder.line(
                        "credential.closed", record_id, {**fields, "outcome": "refused", "code": "audit_unavailable"}
                    )
                )
        self._metrics.audit_lag(self._clock.monotonic_s() - began_s)
        if not done:
            raise AuditUnavailable
        self._metrics.audit_record("credential.opened")
        self._open[record_id] = began_s
        return make_open(record_id, fields)

    async def _commit(self, sink: Sink, line: bytes) -> bool:
        try:
            await sink.commit(line, self._config.wait_s)
        except (OSError, TimeoutError) as error:
            self._sink_failed(sink, error)
            return False
        self._sink_works(sink)
        return True

    def _reported(self, sink: Sink, failure: OSError | None) -> None:
        """How a batch of a threaded sink ended, whether or not anybody waited for it."""
        if failure is None:
            self._sink_works(sink)
        else:
            self._sink_failed(sink, failure)

    def close(self, record: OpenRecord, ended: Fields) -> None:
        """Closes a record with its outcome; a second call for the same record does nothing."""
        if self._open.pop(record.id, None) is None:
            return
        self._emit("credential.closed", record.id, {**record.fields, **ended})

    def note(self, event: str, fields: Fields) -> None:
        """Records an event that opens nothing."""
        self._emit(event, uuid7(), fields)

    def refused(self, fields: Fields) -> None:
        """Records a refusal; those of a source that has proven nothing are coalesced."""
        if "workload" in fields:
            self._emit("request.refused", uuid7(), fields)
            return
        source = fields.get("source", "unknown")
        if source not in self._sources and len(self._sources) >= MAX_SOURCES:
            source = "other"
        now_s = self._clock.monotonic_s()
        known = self._sources.get(source)
        if known is None:
            self._sources[source] = (now_s, 0, fields)
            self._emit("request.refused", uuid7(), fields)
        else:
            self._sources[source] = (known[0], known[1] + 1, fields)

    def _emit(self, event: str, record_id: str, fields: Fields) -> None:
        line = self._encoder.line(event, record_id, fields)
        credential = event.startswith("credential.")
        taken = False
        for sink in self._sinks:
            if not credential and sink.scarce(self._config.reserve_bytes):
                continue
            if sink.append(line):
                taken = True
            else:
                self._sink_failed(sink, OSError("not taken"))
        if taken:
            self._metrics.audit_record(event)
        elif credential:
            self._keep(line)

    def _keep(self, line: bytes) -> None:
        self._pending.append(line)

    # --- health ---

    @property
    def healthy(self) -> bool:
        """Whether a record could be opened now, as far as the last attempts tell."""
        return not self._hung and len(self._failed) < max(1, len(self._sinks))

    @property
    def why(self) -> str:
        """What is wrong, in words; empty while nothing is."""
        if self._hung:
            return "a write to an audit file hangs"
        return "; ".join(f"{name}: {reason}" for name, reason in self._failed.items())

    @property
    def lag_s(self) -> float:
        """Age of the write that is under way."""
        since_s = self._stopwatch.since_s
        return time.monotonic() - since_s if since_s else 0.0

    def _sink_failed(self, sink: Sink, error: Exception) -> None:
        if sink.name not in self._failed:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            self._failed[sink.name] = reason
            _log.error("audit sink %s takes no records: %s", sink.name, reason)

    def _sink_works(self, sink: Sink) -> None:
        if self._failed and self._failed.pop(sink.name, None) is not None:
            _log.warning("audit sink %s takes records again", sink.name)

    def _watch(self) -> None:
        """The watchdog thread: a disk that hangs stops the loop, so only another thread can say so."""
        while not self._stopping.wait(0.25):
            hung = self.lag_s > HUNG_S
            if hung and not self._hung:
                _log.critical("a write to an audit file has been hanging for %.0f s; nothing is sent meanwhile", HUNG_S)
            self._hung = hung

    async def _every_second(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for sink in self._sinks:
                sink.refresh()
            self._flush_sources(everything=False)
            self._retry_pending()
            if self._failed and not self._pending:
                # Nothing is asked of a process that is not ready, so it must find out for itself that the disk has room
                # again.
                for sink in self._sinks:
                    if sink.name in self._failed:
                        await self._commit(sink, self._encoder.line("audit.restored", uuid7(), {}))

    def _flush_sources(self, *, everything: bool) -> None:
        now_s = self._clock.monotonic_s()
        for source, (since_s, count, fields) in tuple(self._sources.items()):
            if everything or now_s - since_s >= WINDOW_S:
                del self._sources[source]
                if count:
                    self._emit("request.refused", uuid7(), {**fields, "count": count})

    def _retry_pending(self) -> None:
        for _ in range(len(self._pending)):
            line = self._pending.popleft()
            taken = [sink.append(line) for sink in self._sinks]
            if not any(taken):
                self._pending.appendleft(line)
                return
            self._metrics.audit_record("credential.closed")
            for sink in self._sinks:
                if sink.immediate:
                    self._sink_works(sink)


def _append_now(descriptor: int, line: bytes) -> None:
    import os

    os.write(descriptor, line)
