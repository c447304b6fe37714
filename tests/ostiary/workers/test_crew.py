"""The crew with workers that are no processes: what they are asked, in which order, and what becomes of one that falls,
hangs, or begins while the policy is swapped.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ostiary.admin import AdminRefusal, Rejected, Reloaded
from ostiary.settings.load import Texts
from ostiary.workers import crew as module
from ostiary.workers.beginning import Beginning
from ostiary.workers.channel import Answer, Body, Channel
from ostiary.workers.control import CrewControl
from ostiary.workers.crew import Crew, StartFailed
from ostiary.workers.place import Place
from policies import load_sources
from policies.faults import Place as Written
from policies.sources import Source

POLICY = "workloads: {w: {proofs: {any: true}}}\nroutes: {r: {match: {host: HOST.test}, allow: w}}\n"


class Process:
    """Stands for one: it answers as a worker does, and can be told to do it wrong."""

    def __init__(self, number: int, version: str) -> None:
        self.number = number
        self.version = version
        self.prepared = ""
        self.asked: list[str] = []
        self.wrong: dict[str, Any] = {}
        """What to answer, raise, or wait for, by what is asked."""
        self.code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.channel = Channel({name: self._answer(name) for name in NAMES})
        self.pid = 4000 + number

    def _answer(self, name: str) -> Answer:
        async def answer(body: Body) -> Body:
            self.asked.append(name if name not in {"cover", "uncover"} else f"{name} {body['of']}")
            wrong = self.wrong.get(name)
            if isinstance(wrong, asyncio.Event):
                await wrong.wait()
            elif isinstance(wrong, Exception):
                raise wrong
            elif wrong is not None:
                return dict(wrong)
            match name:
                case "prepare":
                    self.prepared = VERSIONS[body["policy"][0][1]]
                    return {"version": self.prepared}
                case "commit":
                    self.version = self.prepared
                case "metrics":
                    return {"metrics": ""}
                case "readiness":
                    return {"problems": []}
                case "drain":
                    self.end(0)
            return {}

        return answer

    def end(self, code: int) -> None:
        if not self.code.done():
            self.channel.close()
            self.code.set_result(code)

    def kill(self) -> None:
        self.end(-9)

    def send_signal(self, number: int) -> None:
        self.end(-number)


NAMES = "accept cover uncover prepare commit abandon reopen rejected refused metrics readiness ping drain".split()  # noqa: SIM905 - shorter so
VERSIONS: dict[str, str] = {}
"""Text of a policy to its version."""


class Case:
    def __init__(self, folder: Path, workers: int) -> None:
        self.file = folder / "policy.yaml"
        self.sources = (Source("policy.yaml", folder, Written("ostiary.yaml", 6, 11)),)
        texts = Texts(b"workers: 3\n")
        self.write("a")
        self.policy = load_sources(self.sources, texts=texts.policy)
        beginning = Beginning(
            "1", 0, workers, folder / "ostiary.yaml", texts, frozenset(), tuple(() for _ in range(workers))
        )
        self.crew = Crew(beginning, self.policy.version, 0.1)
        self.control = CrewControl(self.crew, self.sources, {}, self.policy)
        self.started: list[Process] = []
        self.hold: dict[int, asyncio.Event] = {}
        """A start that is not to be done yet, by number."""
        self.starting: asyncio.Event | None = None
        """Processes are made once it is set."""
        self.waiting = 0
        self.no_room = 0
        """Starts for which the machine has no room."""
        self.fail: dict[int, int] = {}
        """Exit code instead of a start, by number."""

    def write(self, host: str) -> str:
        text = POLICY.replace("HOST", host)
        self.file.write_text(text)
        VERSIONS[text] = version = load_sources(self.sources).version
        return version

    async def start(
        self, place: Place, answers: Mapping[str, Answer], beginning: Mapping[str, Any], _: Sequence[int]
    ) -> tuple[asyncio.Task[None], asyncio.Future[int]]:
        if self.no_room:
            self.no_room -= 1
            raise OSError(11, "Resource temporarily unavailable")
        if self.starting is not None:
            self.waiting += 1
            await self.starting.wait()
        version = VERSIONS[beginning["policy"][0][1]]
        process = Process(place.number, version)
        self.started.append(process)
        place.process = process  # type: ignore[assignment]  # stands for one
        ours, theirs = socket.socketpair()
        place.channel = Channel(answers)
        await place.channel.open(ours)
        await process.channel.open(theirs)
        loop = asyncio.get_running_loop()
        running = loop.create_task(place.channel.run())
        process.task = loop.create_task(process.channel.run())  # type: ignore[attr-defined]  # kept alive with it
        process.telling = loop.create_task(self._build(process))  # type: ignore[attr-defined]  # likewise
        return running, process.code

    async def _build(self, process: Process) -> None:
        if process.number in self.hold:
            await self.hold[process.number].wait()
        if process.number in self.fail:
            process.end(self.fail[process.number])
        else:
            process.channel.tell("built", policy=process.version)

    def last(self, number: int) -> Process:
        return next(one for one in reversed(self.started) if one.number == number)

    def states(self) -> list[str]:
        return [place.state for place in self.crew.places]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Case]:
    made = Case(tmp_path, 3)
    monkeypatch.setattr(module, "start", made.start)
    monkeypatch.setattr("ostiary.workers.backoff.FIRST_S", 0.01)
    yield made
    await made.crew.end()


async def test_it_begins_when_all_accept_and_ends_when_all_have_drained(case: Case) -> None:
    case.hold[1] = asyncio.Event()
    beginning = asyncio.ensure_future(case.crew.begin())
    await until(lambda: case.states() == ["serving", "starting", "serving"])
    assert not beginning.done()
    case.hold[1].set()
    await beginning
    assert case.states() == ["serving"] * 3
    await case.crew.end()
    assert [one.asked[-1] for one in case.started] == ["drain"] * 3
    assert len(case.started) == 3


@pytest.mark.parametrize("told", ['ostiary_x{a="} 1\n', "ostiary_x one\n", 7, ["x"]])
async def test_one_whose_metrics_are_nonsense_is_replaced_and_hides_nothing(case: Case, told: object) -> None:
    await case.crew.begin()
    case.last(0).wrong["metrics"] = {"metrics": "# TYPE ostiary_y counter\nostiary_y_total 3.0\n"}
    case.last(1).wrong["metrics"] = {"metrics": told}
    body, _ = await case.control.control().metrics("")
    assert b"ostiary_y_total 3.0" in body
    case.last(1).kill()
    await until(lambda: len(case.started) == 4 and case.states() == ["serving"] * 3)


async def test_one_that_does_not_start_ends_the_start_with_its_code(case: Case) -> None:
    case.fail[2] = 74
    with pytest.raises(StartFailed) as failed:
        await case.crew.begin()
    assert failed.value.code == 74
    assert all(one.code.done() for one in case.started)
    assert len(case.started) == 3


async def test_an_end_that_comes_while_processes_are_made(case: Case) -> None:
    """They are told to end as soon as they are there, and nobody waits for them to serve."""
    case.starting = asyncio.Event()
    beginning = asyncio.ensure_future(case.crew.begin())
    await until(lambda: case.waiting == 3)
    ending = asyncio.ensure_future(case.crew.end())
    await asyncio.sleep(0)
    case.starting.set()
    await ending
    assert [one.code.result() for one in case.started] == [-signal.SIGTERM] * 3
    beginning.cancel()


async def test_f5_the_fallen_is_covered_until_the_next_one_serves(case: Case) -> None:
    await case.crew.begin()
    case.hold[0] = asyncio.Event()
    case.last(0).end(-11)
    await until(lambda: "cover 0" in case.last(1).asked)
    # A second one falls, which covered the first: the third has both.
    case.hold[1] = asyncio.Event()
    case.last(1).end(-11)
    await until(lambda: {"cover 0", "cover 1"} <= set(case.last(2).asked))
    case.hold[0].set()
    await until(lambda: "uncover 0" in case.last(2).asked)
    case.hold[1].set()
    await until(lambda: "uncover 1" in case.last(2).asked)
    assert case.states() == ["serving"] * 3
    assert case.crew.restarts == {"SIGSEGV": 2}


async def test_a2_one_that_hangs_is_killed_and_replaced(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_EVERY_S", 0.02)
    monkeypatch.setattr(module, "PING_S", 0.2)
    await case.crew.begin()
    hung = case.last(1)
    hung.wrong["ping"] = asyncio.Event()
    await until(lambda: case.last(1) is not hung and case.states() == ["serving"] * 3)
    assert hung.code.result() == -9
    assert case.crew.restarts == {"SIGKILL": 1}


async def test_a_start_that_never_ends(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    await case.crew.begin()
    monkeypatch.setattr(module, "START_S", 0.1)
    case.hold[1] = asyncio.Event()
    first = case.last(1)
    first.end(1)
    await until(lambda: case.last(1) is not first and case.last(1).code.done())
    assert case.last(1).code.result() == -9


async def test_a_machine_without_room_for_a_process_is_tried_again(case: Case) -> None:
    await case.crew.begin()
    case.no_room = 2
    first = case.last(1)
    first.end(-6)
    await until(lambda: case.last(1) is not first and case.states() == ["serving"] * 3)
    assert case.no_room == 0
    assert case.crew.restarts == {"SIGABRT": 1, "exit 70": 2}


async def test_a_reload_reaches_all(case: Case) -> None:
    await case.crew.begin()
    version = case.write("b")
    assert await case.control.turns.reload("ci") == Reloaded(version, 1, changed=True)
    assert [one.version for one in case.started] == [version] * 3
    # One that comes later begins with it, whatever the file holds by then.
    case.write("c")
    first = case.last(0)
    first.end(1)
    await until(lambda: case.last(0) is not first and case.states() == ["serving"] * 3)
    assert case.last(0).version == version


@pytest.mark.parametrize("wrong", ["fault", "crash", "other", "late"])
async def test_a_reload_that_one_cannot_make_reaches_none(
    case: Case, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ostiary.workers.control.STEP_S", 0.3)
    await case.crew.begin()
    before = [one.version for one in case.started]
    answers = {"fault": {"faults": ["b.yaml:1:1: bad"]}, "crash": LookupError(), "other": {"version": "x"}}
    case.last(1).wrong["prepare"] = answers.get(wrong, asyncio.Event())
    case.write("b")
    found = await case.control.turns.reload("ci")
    assert isinstance(found, Rejected)
    assert found.version == case.policy.version
    assert str(found.faults[0]).startswith("ostiary.yaml:6:11: worker 1 ")
    assert [one.version for one in case.started] == before
    assert all(one.asked[-2:] == ["prepare", "abandon"] or "rejected" in one.asked for one in case.started)
    await until(lambda: sum(one.asked.count("rejected") for one in case.started) == 1)
    # And the next one works.
    case.last(1).wrong.clear()
    assert isinstance(await case.control.turns.reload("ci"), Reloaded)


async def test_one_that_cannot_put_it_in_force_is_replaced_by_one_that_has_it(case: Case) -> None:
    await case.crew.begin()
    stubborn = case.last(2)
    stubborn.wrong["commit"] = LookupError()
    version = case.write("b")
    assert await case.control.turns.reload("ci") == Reloaded(version, 1, changed=True)
    await until(lambda: case.last(2) is not stubborn and case.states() == ["serving"] * 3)
    assert stubborn.code.result() == -9
    assert [case.last(number).version for number in range(3)] == [version] * 3


async def test_one_that_falls_during_a_reload_keeps_it_from_nobody(case: Case) -> None:
    await case.crew.begin()
    falling = case.last(0)
    falling.wrong["prepare"] = asyncio.Event()
    version = case.write("b")
    reload = asyncio.ensure_future(case.control.turns.reload("ci"))
    await until(lambda: "prepare" in falling.asked)
    falling.end(-9)
    assert await reload == Reloaded(version, 1, changed=True)
    await until(lambda: case.last(0) is not falling and case.states() == ["serving"] * 3)
    assert [case.last(number).version for number in range(3)] == [version] * 3


async def test_one_that_was_being_built_takes_the_policy_before_it_accepts(case: Case) -> None:
    await case.crew.begin()
    case.hold[1] = asyncio.Event()
    first = case.last(1)
    first.end(1)
    await until(lambda: case.last(1) is not first)
    version = case.write("b")
    assert isinstance(await case.control.turns.reload("ci"), Reloaded)
    late = case.last(1)
    assert late.version == case.policy.version
    case.hold[1].set()
    await until(lambda: case.states() == ["serving"] * 3)
    assert late.asked[:3] == ["prepare", "commit", "accept"]
    assert late.version == version


async def test_readiness_is_that_of_all_who_serve(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostiary.workers.control.READINESS_S", 0.2)
    control = case.control.control()
    assert (await control.readiness()).problems == ("no worker serves",)
    await case.crew.begin()
    assert (await control.readiness()).problems == ()
    case.last(0).wrong["readiness"] = {"problems": ["audit: no space"]}
    case.last(2).wrong["readiness"] = asyncio.Event()
    assert (await control.readiness()).problems == ("worker 0: audit: no space", "worker 2: does not answer")
    case.last(0).wrong.clear()
    case.hold[2] = asyncio.Event()
    case.last(2).end(1)
    await until(lambda: case.states()[2] == "starting")
    # Others serve its sockets.
    assert (await control.readiness()).problems == ()
    case.control.draining = True
    assert (await control.readiness()).problems == ("draining",)


async def test_metrics_of_one_that_does_not_answer_are_what_it_told_last(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ostiary.workers.control.METRICS_S", 0.2)
    control = case.control.control()
    await case.crew.begin()
    text = '# TYPE ostiary_refusals_total counter\nostiary_refusals_total{{code="killed"}} {}\n'
    for one in case.started:
        one.wrong["metrics"] = {"metrics": text.format(2)}

    async def refusals() -> float:
        body, _ = await control.metrics("")
        return next(
            float(line.split()[-1]) for line in body.decode().splitlines() if line.startswith("ostiary_refusals_total{")
        )

    assert await refusals() == 6
    case.last(0).wrong["metrics"] = asyncio.Event()
    case.last(1).wrong["metrics"] = {"metrics": text.format(5)}
    assert await refusals() == 9
    hung = case.last(0)
    hung.end(-9)
    await until(lambda: case.last(0) is not hung and case.states() == ["serving"] * 3)
    assert await refusals() == 9
    assert await refusals() == 9


async def test_a_refused_call_is_recorded_by_one(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    refusal = AdminRefusal("admin", "127.0.0.1", "GET", "/routes", "token_invalid", 401)
    case.control.control().refused(refusal)
    assert "no worker could record" in caplog.text
    await case.crew.begin()
    case.control.control().refused(refusal)
    await until(lambda: sum(one.asked.count("refused") for one in case.started) == 1)
