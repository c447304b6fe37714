"""Stand-ins for asyncio's transport and loop that note what is done to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Wire:
    """A transport."""

    def __init__(self) -> None:
        self.sent = b""
        self.done: list[str] = []
        self.waiting_bytes = 0
        self.closing = False
        self.writable_end = True

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.done.append("close")
        self.closing = True

    def abort(self) -> None:
        self.done.append("abort")
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.done.append("pause")

    def resume_reading(self) -> None:
        self.done.append("resume")

    def can_write_eof(self) -> bool:
        return self.writable_end

    def write_eof(self) -> None:
        self.done.append("eof")

    def get_write_buffer_size(self) -> int:
        return self.waiting_bytes

    def set_write_buffer_limits(self, **_: int) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 443) if name in {"peername", "sockname"} else default


class Timer:
    def __init__(self, after_s: float, call: Callable[[], object]) -> None:
        self.after_s, self.call, self.cancelled = after_s, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """A loop whose timers fire when told."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def time(self) -> float:
        return 1000.0

    def call_later(self, after_s: float, call: Callable[[], object]) -> Timer:
        self.timers.append(Timer(after_s, call))
        return self.timers[-1]

    def call_at(self, when_s: float, call: Callable[[], object]) -> Timer:
        return self.call_later(when_s - self.time(), call)

    def live(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]
