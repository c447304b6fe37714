"""A wall clock that jumps under a running process, as NTP or an operator lets it; the monotonic clock goes on.

A few lines of C, put before the C library's own by `LD_PRELOAD`; built with the C compiler of the machine.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static long long ahead(void) {
    static volatile long long *at;
    if (!at) {
        const char *name = getenv("WALL_CLOCK_AHEAD");
        int fd = name ? open(name, O_RDONLY) : -1;
        void *found = fd < 0 ? MAP_FAILED : mmap(0, sizeof *at, PROT_READ, MAP_SHARED, fd, 0);
        if (found == MAP_FAILED) abort();
        at = found;
    }
    return *at;
}

int clock_gettime(clockid_t id, struct timespec *to) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(id, to);
    if (!done && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) to->tv_sec += ahead();
    return done;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *to, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    to->tv_sec = now.tv_sec;
    to->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


class WallClock:
    """The clock of the processes that are started with `environ`.

    Args:
        folder: of its files. Skips the test where there is no C compiler.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("the clock is moved by a library that needs a C compiler, which this machine has not")
        folder.mkdir()
        source, library, self._ahead = folder / "clock.c", folder / "clock.so", folder / "ahead"
        source.write_text(_SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
        self.set(0)
        self.environ = {"LD_PRELOAD": str(library), "WALL_CLOCK_AHEAD": str(self._ahead)}

    def set(self, ahead_s: int) -> None:
        """From now on the wall clock is so far ahead of the machine's; negative: behind it."""
        with self._ahead.open("r+b" if self._ahead.exists() else "wb") as file:
            file.write(struct.pack("=q", ahead_s))
