"""What every process that serves does at its start and its end: an event loop, the ready line, exit codes."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

import uvloop

from addons.audit import SinkError
from ostiary.ca import CaError
from ostiary.certificate import CertificateFault
from ostiary.listening import Opened
from ostiary.sockets import BindFailed
from ostiary.store_addresses import OwnListener
from ostiary.stores import StoreFailed
from ostiary.user_addons import AddonFailed

EXIT_OK: Final = 0
EXIT_BIND: Final = 71
EXIT_AUDIT: Final = 74
EXIT_SETTINGS: Final = 78


def run_to_the_end(run: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Runs a process on an event loop; what stops its start becomes a sentence and an exit code."""
    try:
        return asyncio.run(run(), loop_factory=uvloop.new_event_loop)
    except (CaError, CertificateFault, StoreFailed, OwnListener, AddonFailed) as error:
        sys.stderr.write(f"ostiary: {error}\n")
        return EXIT_SETTINGS
    except BindFailed as error:
        sys.stderr.write(f"ostiary: {error}\n")
        return EXIT_BIND
    except SinkError as error:
        sys.stderr.write(f"ostiary: {error.strerror}\n")
        return EXIT_AUDIT


def on_hang_up(loop: asyncio.AbstractEventLoop, reload: Callable[[], None]) -> None:
    """From now on a hang-up is a reload; so is one that came during the start."""
    loop.add_signal_handler(signal.SIGHUP, reload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP,))


def tell_ready(opened: Opened, **more: object) -> None:
    """The one line on stdout."""
    told = {"event": "ready", **opened.addresses(), **more, "pid": os.getpid()}
    sys.stdout.write(json.dumps(told, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def settle() -> None:
    """What lives now lives to the end: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
