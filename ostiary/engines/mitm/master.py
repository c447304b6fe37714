"""A lean Master: a dispatcher that fails closed, no configuration files, no listeners of mitmproxy's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.master import Master
from mitmproxy.options import Options

from ostiary.dispatch import Dispatcher
from ostiary.engines.mitm.options import check, force


class LeanMaster(Master):
    """Holds the addon chain. Proxyserver is there for the options it declares; its listeners stay off."""

    addons: Dispatcher

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(Options(), event_loop=loop)
        # The constructor offers no way to bring a manager; nothing has been registered yet.
        self.addons = Dispatcher(self)
        # Every record of the process would otherwise be formatted for an event nobody reads.
        self._legacy_log_events.uninstall()
        self.addons.add(Proxyserver())
        force(self.options)

    def install(self, stages: Iterable[object]) -> None:
        """Adds the stages and refuses options that an addon has turned."""
        self.addons.add(*stages)
        check(self.options)
