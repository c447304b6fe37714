"""G21: odd and malformed requests, sent to both engines, shown to h11 and sent to nginx.

Every entry of requests.toml is sent inside a tunnel of its own, then, where the connection is still open, a plain
request behind it. The engines must agree: the same answers, and the same requests at the upstream. Where they may not,
the entry names a row of docs/reference/engines.md. What h11 or nginx refuses must be refused. `want` says which verdict that is,
so that two engines cannot be wrong together unseen.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h11
import pytest

from tests.conftest import POLICY
from tests.harness.canaries import canary
from tests.harness.client import Raw, tunnel
from tests.harness.differences import BOTH, differences
from tests.harness.nginx import nginx
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.upstream import Seen, Upstream, plain

ENTRIES: Final = tomllib.loads((Path(__file__).parent / "requests.toml").read_text())["request"]
DIFFERENCES: Final = differences()
PROBE: Final = b"GET /probe HTTP/1.1\r\nHost: api.test\r\n\r\n"
H11_REFUSES_MORE: Final = {
    "an empty line before the request": "RFC 9112 section 2.2 asks for it to be ignored",
    "three empty lines before the request": "as above",
    "a bare LF before the request": "it stands in no request: nothing can be read in two ways",
    "a bare CR before the request": "as above",
}
NGINX_REFUSES_MORE: Final = {
    "an asterisk with OPTIONS": "RFC 9110 section 9.3.7 has it ask the server itself",
    "a lower-case method": "a method is any token (RFC 9110 section 9.1)",
    "a value of 60,000 bytes": "its header buffers are smaller than our cap",
    "a request line of 16,000 bytes": "as above",
    "an encoded NUL": "the policy names no path here: where it does, this is no canonical one",
    "a bad escape": "as above",
}


@dataclass(frozen=True)
class Verdict:
    """What became of an entry."""

    answers: tuple[tuple[int, str | None], ...]
    """Status and refusal code of its answer and of the probe's."""
    upstream: tuple[tuple[str, str, tuple[tuple[str, str], ...], bytes], ...]
    waits: bool

    def __str__(self) -> str:
        if not self.answers:
            return "waits" if self.waits else "closed"
        (status, code), *more = self.answers
        return f"{code or status}{' closes' if status < 400 and not more else ''}"


@dataclass
class Side:
    proxy: Ostiary
    api: Upstream


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[dict[str, Side]]:
    key = canary()
    made: dict[str, Side] = {}
    for engine in BOTH:
        api = Upstream(pki.context("api.test"), plain())
        proxy = Ostiary(
            tmp_path_factory.mktemp(engine) / "o",
            POLICY,
            {"api.test:443": api.port},
            {"secret/egress/api": {"key": key}},
            pki.ca_file,
            engine=engine,
            settings="limits: {idle_timeout: 20s}\n",
        )
        made[engine] = Side(proxy.start(), api)
    yield made
    for side in made.values():
        leaks = side.proxy.leaks()
        assert side.proxy.stop() == 0
        side.api.stop()
        assert not leaks, leaks


def raw_of(entry: dict[str, Any]) -> bytes:
    text = entry["raw"]
    if "fill" in entry:
        text = text.replace("…", entry["fill"] * entry["fill_count"])
    return bytes(text.encode("latin-1"))


def ask(side: Side, raw: bytes, wait_s: float) -> Verdict:
    method = raw.lstrip().split(b" ", 1)[0].decode("latin-1")
    before = len(side.api.requests)
    answers: list[tuple[int, str | None]] = []
    waits = False
    with tunnel(side.proxy.address("sidecar"), side.proxy.ca) as connection:
        connection.sock.settimeout(wait_s)
        try:
            for request, sent in ((raw, method), (PROBE, "GET")):
                connection.send(request)
                answer = connection.answer(method=sent)
                answers.append((answer.status, answer.code))
        except TimeoutError:
            waits = True
        except OSError:
            pass
    assert not (waits and answers), f"nothing came behind {answers}"
    return Verdict(tuple(answers), tuple(as_sent(one) for one in side.api.requests[before:]), waits)


def as_sent(seen: Seen) -> tuple[str, str, tuple[tuple[str, str], ...], bytes]:
    return seen.method, seen.target, tuple(seen.headers), seen.body


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with nginx(tmp_path_factory.mktemp("nginx")) as port:
        yield port


def nginx_refuses(port: int, raw: bytes) -> bool:
    """Whether it answers the first request with a fault of the caller's, or closes without an answer."""
    with Raw(f"127.0.0.1:{port}") as connection:
        connection.sock.settimeout(10)
        try:
            return connection.request(raw).status in range(400, 500)
        except TimeoutError:
            return False  # it waits for more
        except OSError:
            return True


def h11_refuses(raw: bytes) -> bool:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(raw)
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.EndOfMessage):
                return False
    except h11.RemoteProtocolError:
        return True


def test_the_corpus_is_large_and_says_what_each_is() -> None:
    assert len(ENTRIES) >= 120
    assert len({entry["note"] for entry in ENTRIES}) == len(ENTRIES)
    assert len({raw_of(entry) for entry in ENTRIES}) == len(ENTRIES)
    for entry in ENTRIES:
        assert set(entry) - {"fill", "fill_count"} in ({"note", "raw", "want"}, {"note", "raw", "differs"})
        assert "differs" not in entry or entry["differs"] in DIFFERENCES


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["note"] for entry in ENTRIES])
def test_g21_both_engines_h11_and_nginx(sides: dict[str, Side], reference: int, entry: dict[str, Any]) -> None:
    raw = raw_of(entry)
    if (row := entry.get("differs")) is not None:
        wanted = DIFFERENCES[row].verdicts
        found = {name: ask(side, raw, 1.0 if wanted[name] == "waits" else 10.0) for name, side in sides.items()}
        assert {name: str(verdict) for name, verdict in found.items()} == wanted
    else:
        found = {name: ask(side, raw, 10.0) for name, side in sides.items()}
        assert {str(verdict) for verdict in found.values()} == {entry["want"]}
        assert found["fast"] == found["mitmproxy"]
    for name, verdict in found.items():
        served = bool(verdict.answers) and verdict.answers[0][0] < 400
        if served and entry["note"] not in H11_REFUSES_MORE and (row is None or name == "fast"):
            assert not h11_refuses(raw)
        if served:
            assert nginx_refuses(reference, raw) == (entry["note"] in NGINX_REFUSES_MORE)
        targets = [target for _, target, _, _ in verdict.upstream]
        # Nothing but what was asked for, once, in order; of a body that is refused half-way its head may be there.
        assert targets[-1:] == ["/probe"] if len(verdict.answers) == 2 else "/probe" not in targets
        assert len(targets) <= 2
