"""One measurement: the load generator for a while against one contender, and what a process tells of itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import ROOT, WORK, Contender, cores


class Failed(Exception):
    """A measurement that is none: told in the report, and the rest goes on."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round gave. `cpu_us` is that of the proxy for a request; 0 where there is no proxy."""

    rps: float
    cpu_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    failed: int
    requests: int
    resumed: int = 0


def build_generator() -> Path:
    """Compiles bench/lg.c."""
    target, source = WORK / "lg", ROOT / "bench" / "lg.c"
    WORK.mkdir(parents=True, exist_ok=True)
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise SystemExit("bench needs a C compiler and the OpenSSL headers (apt-get install gcc libssl-dev)")
        subprocess.run([compiler, "-O2", "-o", str(target), str(source), "-lssl", "-lcrypto"], check=True)
    return target


def command(contender: Contender, arguments: tuple[str, ...], path: str, seconds: float, warm_s: float) -> list[str]:
    """How the generator is called."""
    found = ["taskset", "-c", cores()[1], str(WORK / "lg"), "-d", f"{seconds:g}", "-w", f"{warm_s:g}", *arguments]
    found += ["-x" if contender.forward else "-t", f"127.0.0.1:{contender.port}"]
    if contender.pid is not None:
        found += ["-P", str(contender.pid)]
    return [*found, f"https://localhost:{contender.upstream}{path}"]


def load(contender: Contender, arguments: tuple[str, ...], path: str, seconds: float, *, warm_s: float = 0.5) -> Sample:
    """Drives one contender."""
    line = command(contender, arguments, path, seconds, warm_s)
    try:
        done = subprocess.run(line, capture_output=True, check=False, timeout=seconds + warm_s + 30)
    except subprocess.TimeoutExpired:
        raise Failed("the load generator did not end") from None
    if done.returncode or not done.stdout:
        raise Failed(done.stderr.decode().strip() or f"the load generator ended with {done.returncode}")
    found = json.loads(done.stdout)
    if not found["n"]:
        raise Failed(done.stderr.decode().strip() or "no request was answered")
    return Sample(
        found["rps"], max(found["cpu_us_per_req"], 0), found["p50_us"], found["p99_us"], found["p999_us"],
        found["errors"] + found["non200"], found["n"], found["resumed"],
    )  # fmt: skip


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[round(share * (len(values) - 1))]


def of_times(took: list[float], seconds: float, cpu_s: float) -> Sample:
    """The sample of a caller of our own, which notes what each request took."""
    if not took:
        raise Failed("no request was answered")
    return Sample(
        len(took) / seconds, cpu_s * 1e6 / len(took), quantile(took, 0.5) * 1e6, quantile(took, 0.99) * 1e6,
        quantile(took, 0.999) * 1e6, 0, len(took),
    )  # fmt: skip


def cpu_s(pid: int | None) -> float:
    """CPU that a process has used; 0 for none."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def metric(contender: Contender, name: str) -> float:
    """The sum over the labels of one of Ostiary's metrics."""
    if contender.process is None:
        raise Failed(f"{contender.name} has no metrics")
    text = contender.process.get("/metrics")[1].decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def wait_metric(contender: Contender, name: str, least: float, patience_s: float) -> float:
    """Seconds until a metric has reached a value."""
    began = time.perf_counter()
    while time.perf_counter() - began < patience_s:
        if metric(contender, name) >= least:
            return time.perf_counter() - began
        time.sleep(0.05)
    raise Failed(f"{name} did not reach {least:g} in {patience_s:g} s")
