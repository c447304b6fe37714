"""The process of a soak seen from outside: how it is started, what it holds, and the uses its audit has not closed."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.contenders import CREDENTIAL, POLICY
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki


@dataclass(frozen=True, slots=True)
class Reading:
    """What the process holds at one instant."""

    at_s: float
    rss_kib: int
    descriptors: int
    callers: int
    upstream: int
    cpu_s: float


@dataclass
class Books:
    """Follows an audit file; knows the records that were opened and not closed."""

    path: Path
    open: set[str] = field(default_factory=set)
    closed: int = 0
    _offset: int = 0
    _rest: bytes = b""

    def follow(self) -> None:
        """Reads what has come since."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            while block := file.read(1 << 20):
                self._offset += len(block)
                *lines, self._rest = (self._rest + block).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))

    def _take(self, record: dict[str, object]) -> None:
        if record["event"] == "credential.opened":
            self.open.add(str(record["id"]))
        elif record["event"] == "credential.closed":
            self.open.remove(str(record["id"]))
            self.closed += 1


def start(folder: Path, pki: Pki, upstream: int) -> Ostiary:
    """The fast engine with every stage on."""
    return Ostiary(
        folder,
        POLICY.replace("PORT", str(upstream)).replace("TTL", "15s"),
        ca_file=pki.ca_file,
        listen='[{name: sidecar, bind: "127.0.0.1:0", workload: bench}]',
        secrets={"secret/egress/bench": {"key": CREDENTIAL}},
        engine="fast",
    ).start()


def _gauge(text: str, name: str) -> int:
    return int(sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)))


def read(one: Ostiary) -> Reading:
    """Looks at a process."""
    process = Path(f"/proc/{one.ready['pid']}")
    _, told = one.get("/metrics")
    one.told.clear()  # it would grow with every reading
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    text = told.decode()
    return Reading(
        time.monotonic(),
        one.rss_bytes() // 1024,
        sum(1 for _ in (process / "fd").iterdir()),
        _gauge(text, "ostiary_connections"),
        _gauge(text, "ostiary_upstream_connections"),
        (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
    )
