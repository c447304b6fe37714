"""Answers that grow as they pass: a coded body that the stages decode leaves a bounded part at a time.

One read of a coded body can become many megabytes. The stages make them piece by piece, as they are asked for; here they
are asked for at most `TURN_BYTES` in one turn of the loop, and not while what has left still waits for a slow caller.
Meanwhile the upstream is not read, and the end of the body waits too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from addons.head import Fields
from ostiary.engines.framing import chunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from ostiary.engines.fast.turn import Turn

TURN_BYTES: Final = 1024 * 1024


class Growing:
    """What has come of one body and has not left.

    Args:
        turn: whose answer it is.
        gone_through: called each time when all that has come has left.
    """

    __slots__ = ("_gone_through", "_source", "_turn", "_waits", "trailers")

    def __init__(self, turn: Turn, gone_through: Callable[[], None]) -> None:
        self._turn = turn
        self._gone_through = gone_through
        self._source: Iterator[bytes] = iter(())
        self._waits = False
        self.trailers: Fields | None = None
        """Those of the body, once its end has come."""

    @property
    def waits(self) -> bool:
        """Whether something of what has come has not left."""
        return self._waits

    def take(self, pieces: Iterable[bytes]) -> None:
        """What the stages make of the bytes that came."""
        self._source = iter(pieces)
        self._pass()

    def _pass(self) -> None:
        turn = self._turn
        if turn.over:
            return
        caller, passed = turn.caller, 0
        caller.deadline.touch()
        for piece in self._source:
            caller.write(chunk(piece) if turn.answer_chunked else piece)
            passed += len(piece)
            if passed >= TURN_BYTES:
                self._wait()
                return
        if self._waits:
            self._waits, turn.answer_open = False, True
        self._gone_through()

    def _wait(self) -> None:
        turn = self._turn
        self._waits = True
        # As while a head is judged: what comes is held, and nothing more is read.
        turn.answer_open = False
        if turn.link is not None:
            turn.link.waiting = True
            turn.link.pause_reading()
        turn.caller.flush()
        turn.caller.when_there_is_room(partial(turn.caller.guarded, self._pass))
