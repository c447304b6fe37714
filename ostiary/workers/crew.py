"""The workers as a whole: fills each place, again after a pause when it falls empty, and has its sockets served meanwhile.

Rules:
- A worker accepts only once it has the policy that is in force; while a policy is being swapped no worker begins.
- The sockets of an empty place are covered by a serving worker: the kernel goes on sending callers there.
- A worker that does not answer is killed and replaced: its event loop hangs, and what it serves hangs with it.
- A worker that falls before the crew has begun ends the start, with its exit code.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from ostiary.settings.load import Texts
from ostiary.workers.beginning import Beginning, policy_body
from ostiary.workers.channel import Answer, Body, ChannelClosed, NotDone
from ostiary.workers.combined import Combined
from ostiary.workers.place import STATES, Place, State, last_words, start, told
from policies import PolicyText

_log = logging.getLogger("ostiary.workers")

START_S: Final = 120.0
"""A start takes a second or two; on a machine that is busy with others, or whose Vault hangs, longer."""
PING_EVERY_S: Final = 5.0
PING_S: Final = 15.0
"""One answer may take as long. Two in a row that take longer are a hang."""
STEP_S: Final = 20.0
"""For one step of a policy's swap in one worker."""
COVER_S: Final = 5.0
GRACE_S: Final = 10.0
"""Beyond `drain_timeout`, for audit, store and addons to end; after it a worker is killed."""

EXIT_NO_PROCESS: Final = 70
"""In the place of an exit code, where there was no process to give one."""

type Spoken = tuple[Place, Body | BaseException]


class StartFailed(Exception):
    """A worker ended before it served; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Crew:
    """All workers of a supervisor.

    Args:
        beginning: of worker 0; those of the others differ in their number.
        version: of the policy in `beginning`.
        drain_s: how long exchanges may take to finish at the end.
        answers: what workers may ask for beyond their own life.
    """

    def __init__(
        self, beginning: Beginning, version: str, drain_s: float, answers: Mapping[str, Answer] | None = None
    ) -> None:
        self.places = tuple(Place(number) for number in range(beginning.workers))
        self.swapping = asyncio.Lock()
        self.restarts: Counter[str] = Counter()
        self.ended = Combined()
        """What workers that have ended had counted."""
        self.counting = asyncio.Lock()
        """Held while a worker's metrics move from its place to `ended`, and while both are read."""
        self._beginning = beginning
        self._version = version
        self._drain_s = drain_s
        self._answers = answers or {}
        self._descriptors = tuple(dict.fromkeys(number for group in beginning.sockets for number in group))
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._covering = asyncio.Lock()

    # --- life ---

    async def begin(self) -> None:
        """Fills every place; returns when all accept.

        Raises:
            StartFailed: one did not; the others have been ended.
        """
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(self._keep(place)) for place in self.places]
        begun = loop.create_task(self._all_began())
        await asyncio.wait([begun, *self._keepers], return_when=asyncio.FIRST_COMPLETED)
        if begun.done():
            return
        begun.cancel()
        failed = next(keeper for keeper in self._keepers if keeper.done())
        await self.end()
        error = failed.exception()
        raise error if error is not None else StartFailed(1)

    async def _all_began(self) -> None:
        for place in self.places:
            await place.began.wait()

    @property
    def begun(self) -> bool:
        return all(place.began.is_set() for place in self.places)

    async def end(self) -> None:
        """Lets every worker drain; who takes too long is killed."""
        self._stopping.set()
        for place in self.places:
            if place.state == "serving" and place.channel is not None:
                place.channel.tell("drain")
            elif place.process is not None:
                # It may not be listening to us yet.
                place.process.send_signal(signal.SIGTERM)
        if not self._keepers:
            return
        _, late = await asyncio.wait(self._keepers, timeout=self._drain_s + GRACE_S)
        if late:
            for place in self.places:
                if place.process is not None:
                    _log.error("worker %d did not end in time and is killed", place.number)
                    place.kill()
            await asyncio.wait(self._keepers, timeout=GRACE_S)
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def _keep(self, place: Place) -> None:
        """Keeps one place filled until the end."""
        while not self._stopping.is_set():
            try:
                code = await self._fill(place)
            except OSError as error:
                _log.error("worker %d cannot be started: %s", place.number, error.strerror)
                self._stand(place, "fallen")
                code = EXIT_NO_PROCESS
            if self._stopping.is_set():
                return
            if not self.begun:
                raise StartFailed(code)
            pause_s = place.back_off.fallen(time.monotonic())
            self.restarts[told(code)] += 1
            _log.error("worker %d has ended (%s); the next one starts in %.2f s", place.number, told(code), pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()

    async def _fill(self, place: Place) -> int:
        """One process, from its start to its end; gives its exit code."""
        self._stand(place, "starting")
        built = asyncio.Event()

        async def on_built(body: Body) -> None:
            place.version = body["policy"]
            built.set()

        async def on_draining(_: Body) -> None:
            self._stand(place, "ending")
            await self.cover()

        async def on_ended(body: Body) -> None:
            place.metrics = body["metrics"]

        beginning = replace(self._beginning, number=place.number)
        answers = {"built": on_built, "draining": on_draining, "ended": on_ended, **self._answers}
        body = await asyncio.to_thread(beginning.body)
        running, code = await start(place, answers, body, self._descriptors)
        if self._stopping.is_set() and place.process is not None:
            # The end came while it was being started, and found nobody to tell.
            place.process.send_signal(signal.SIGTERM)
        watch = asyncio.get_running_loop().create_task(self._watch(place, built))
        try:
            return await code
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
            await last_words(place, running)
            place.process = None
            self._stand(place, "fallen")
            await self.cover()
            async with self.counting:
                if place.metrics:
                    await asyncio.to_thread(self.ended.add, place.metrics, ended=True)
                    place.metrics = ""

    async def _watch(self, place: Place, built: asyncio.Event) -> None:
        """Lets a worker accept when it can, and looks whether it lives."""
        try:
            async with asyncio.timeout(START_S):
                await built.wait()
                await self._accept(place)
        except TimeoutError:
            _log.error("worker %d did not start within %.0f s and is killed", place.number, START_S)
            place.kill()
            return
        except (ChannelClosed, NotDone) as error:
            _log.error("worker %d did not begin (%s)", place.number, type(error).__name__)
            place.kill()
            return
        place.began.set()
        place.back_off.serving(time.monotonic())
        await self.cover()
        missed = 0
        while missed < 2:
            await asyncio.sleep(PING_EVERY_S)
            # Where a worker did not do it at once, once more.
            await self.cover()
            try:
                await _ask(place, "ping", PING_S)
                missed = 0
            except TimeoutError:
                missed += 1
            except (ChannelClosed, NotDone):
                return
        _log.critical("worker %d does not answer and is killed", place.number)
        place.kill()

    async def _accept(self, place: Place) -> None:
        async with self.swapping:
            if place.version != self._version:
                # The policy was replaced while this one was being built.
                body = policy_body(self._beginning.texts.policy)
                await _ask(place, "prepare", STEP_S, policy=body)
                await _ask(place, "commit", STEP_S, version=self._version, quietly=True)
                place.version = self._version
            await _ask(place, "accept", STEP_S)
            self._stand(place, "serving")
        _log.info("worker %d serves as process %d", place.number, place.process.pid if place.process else 0)

    # --- sockets of empty places ---

    async def cover(self) -> None:
        """Sees to it that the sockets of every place are served, and by its own worker where there is one."""
        if self._stopping.is_set():
            return
        async with self._covering:
            for place in self.places:
                await self._cover(place)

    async def _cover(self, place: Place) -> None:
        by = self.places[place.covered_by] if place.covered_by is not None else None
        if by is not None and by.state != "serving":
            by = place.covered_by = None
        if place.state == "serving":
            place.covered_by = None
            if by is not None:
                await self._quietly(by, "uncover", of=place.number)
        elif by is None:
            loads = Counter(other.covered_by for other in self.places)
            serving = sorted(self.serving(), key=lambda other: loads[other.number])
            if serving and await self._quietly(serving[0], "cover", of=place.number):
                place.covered_by = serving[0].number

    async def _quietly(self, place: Place, what: str, **given: Any) -> bool:
        try:
            await _ask(place, what, COVER_S, **given)
        except (ChannelClosed, NotDone, TimeoutError) as error:
            _log.warning("worker %d did not %s (%s)", place.number, what, type(error).__name__)
            return False
        return True

    # --- asking them ---

    def serving(self) -> Iterator[Place]:
        return (place for place in self.places if place.state == "serving")

    def states(self) -> dict[State, int]:
        counted = Counter(place.state for place in self.places)
        return {state: counted[state] for state in STATES}

    async def ask_all(self, what: str, deadline_s: float, **given: Any) -> list[Spoken]:
        """Asks every serving worker; whoever ends meanwhile is left out of the answer."""
        asked = tuple(self.serving())
        found = await asyncio.gather(
            *(_ask(place, what, deadline_s, **given) for place in asked), return_exceptions=True
        )
        return [
            (place, answer) for place, answer in zip(asked, found, strict=True) if not isinstance(answer, ChannelClosed)
        ]

    async def scrape(self, deadline_s: float) -> None:
        """Has every serving worker tell its metrics; of one that does not, those that it told before stand."""

        async def one(place: Place) -> None:
            # Noted before anything else can happen to the place: its end reads what stands there.
            place.metrics = (await _ask(place, "metrics", deadline_s))["metrics"]

        await asyncio.gather(*(one(place) for place in tuple(self.serving())), return_exceptions=True)

    def tell_one(self, what: str, **given: Any) -> bool:
        """Tells one worker what is to be recorded once; False where there is none to tell."""
        return any(place.channel is not None and place.channel.tell(what, **given) for place in self.serving())

    def in_force(self, texts: list[PolicyText], version: str) -> None:
        """From now on workers begin with this policy."""
        self._beginning = replace(self._beginning, texts=Texts(self._beginning.texts.settings, texts))
        self._version = version

    @staticmethod
    def _stand(place: Place, state: State) -> None:
        place.state = state


async def _ask(place: Place, what: str, deadline_s: float, **given: Any) -> Body:
    if place.channel is None:
        raise ChannelClosed
    return await place.channel.ask(what, deadline_s, **given)
