"""Calls to Vault: bounded threads, one deadline over all that a call may take, and the choice among several addresses.

hvac is synchronous, so it runs in a small pool of threads, one session a thread and address (`transport`). An address
that cannot serve is left for the next one, a redirect of a standby is a hint to one of the configured addresses
(`addresses`), and a node that is not ready yet (412) is asked again a few times.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import hvac

from vault.hashicorp.addresses import Addresses
from vault.hashicorp.answers import DetectionRefused, VaultAnswer, VaultBusy, VaultResting, VaultUnreachable
from vault.hashicorp.config import VaultConfig
from vault.hashicorp.transport import INFLIGHT, Call, new_client
from vault.secret import Secret

__all__ = ["DetectionRefused", "VaultAnswer", "VaultBusy", "VaultCalls", "VaultResting", "VaultUnreachable"]

_ELSEWHERE: Final = frozenset({472, 473, 474, 501, 502, 503, 504, 530})
"""Statuses of a node that cannot serve while another perhaps can, or of a balancer that reaches none; so does any
redirect, which is never followed."""
MOST_ADDRESSES: Final = 3
"""Asked for one call, each once: a failure of all is an outage."""
MOST_PEERS: Final = 64
NOT_YET_TRIES: Final = 3
NOT_YET_PAUSE_S: Final = 0.05
"""For a node that says it will serve in a moment; pauses double."""

type Stamp = tuple[tuple[int, int] | None, ...]


@dataclass(slots=True)
class _Clients(threading.local):
    """hvac clients of one thread, by address, and what the files were that they were made with."""

    by_address: dict[str, tuple[Stamp, hvac.Client]] = field(default_factory=dict)


class VaultCalls:
    """Runs calls against one of several addresses, preferring the one that worked last.

    Args:
        config: addresses, TLS, deadline.
        jitter: gives a number in [0, 1), for the pauses of probes.
    """

    def __init__(self, config: VaultConfig, jitter: Callable[[], float] = random.random) -> None:
        self._config = config
        self._pool = ThreadPoolExecutor(max_workers=config.threads, thread_name_prefix="vault")
        self._clients = _Clients()
        self._addresses = Addresses(config.addresses, jitter)
        self._jitter = jitter
        self._peers: dict[tuple[str, int], None] = {}
        self._files = [path for path in (config.ca_file, config.client_cert, config.client_key) if path is not None]

    def _client(self, address: str) -> hvac.Client:
        # A certificate that was renewed on disk is presented from the next call on.
        stamp = tuple(map(_stamp_of, self._files))
        known = self._clients.by_address.get(address)
        if known is not None:
            if known[0] == stamp:
                return known[1]
            known[1].session.close()
        client = new_client(self._config, address)
        self._clients.by_address[address] = (stamp, client)
        return client

    async def run[T](
        self,
        work: Callable[[hvac.Client], T],
        token: Secret | None,
        *,
        namespace: str | None = None,
        deadline_s: float | None = None,
        anyhow: bool = False,
    ) -> T:
        """Runs a call in a worker thread.

        Args:
            work: uses the client it is given, in the thread.
            token: sent with the call; None for a login.
            namespace: where the call goes; the configured one by default, the root for "".
            deadline_s: total, over all addresses; the configured one by default.
            anyhow: asks even while the breaker is open.

        Raises:
            VaultAnswer: Vault's own error.
            VaultUnreachable: there was no usable answer from any address.
        """
        ends_s = time.monotonic() + (deadline_s or self._config.deadline_s)
        namespace = self._config.namespace if namespace is None else namespace
        problem: VaultAnswer | VaultUnreachable | None = None
        asked: set[int] = set()
        while len(asked) < MOST_ADDRESSES:
            now_s = time.monotonic()
            index = self._addresses.choose(asked, now_s, anyhow=anyhow) if now_s < ends_s else None
            if index is None:
                break
            asked.add(index)
            last = len(asked) == MOST_ADDRESSES or not self._addresses.another(asked)
            try:
                result = await self._patiently(
                    work, index, token, namespace, ends_s if last else now_s + (ends_s - now_s) / 2
                )
            except VaultAnswer as answer:
                if answer.status not in _ELSEWHERE and not 300 <= answer.status < 400:
                    self._addresses.worked(index)
                    raise
                self._addresses.failed(index, time.monotonic())
                self._addresses.hinted(answer.location)
                problem = answer
            except VaultBusy:
                raise
            except VaultUnreachable as error:
                self._addresses.failed(index, time.monotonic())
                problem = error
            else:
                self._addresses.worked(index)
                return result
        raise problem or VaultResting(self._addresses.wait_s(time.monotonic()))

    async def _patiently[T](
        self,
        work: Callable[[hvac.Client], T],
        index: int,
        token: Secret | None,
        namespace: str | None,
        ends_s: float,
    ) -> T:
        """One address, asked again a few times while it has not yet what was written."""
        for attempt in range(NOT_YET_TRIES):
            pause_s = NOT_YET_PAUSE_S * 2**attempt * (1 + self._jitter())
            try:
                return await self._in_thread(work, self._config.addresses[index], token, namespace, ends_s)
            except VaultAnswer as answer:
                if not answer.passing or time.monotonic() + pause_s >= ends_s:
                    raise
            await asyncio.sleep(pause_s)
        return await self._in_thread(work, self._config.addresses[index], token, namespace, ends_s)

    async def _in_thread[T](
        self,
        work: Callable[[hvac.Client], T],
        address: str,
        token: Secret | None,
        namespace: str | None,
        ends_s: float,
    ) -> T:
        call = Call(ends_s)
        began = False

        def job() -> T:
            nonlocal began
            began = True
            INFLIGHT.call = call
            try:
                if call.left_s() <= 0:
                    raise VaultBusy("all threads are busy")
                client = self._client(address)
                # Both are said anew for each call: a thread's client serves logins and every namespace in turn.
                client.token = token.reveal() if token is not None else ""
                client.adapter.namespace = namespace or None
                return work(client)
            finally:
                INFLIGHT.call = None
                if call.peer is not None:
                    self._connected(call.peer)

        future = asyncio.get_running_loop().run_in_executor(self._pool, job)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + call.left_s()):
                return await asyncio.shield(future)
        except TimeoutError:
            call.abort()
            future.add_done_callback(_forget)
            if not began:
                raise VaultBusy("all threads are busy") from None
            raise VaultUnreachable("the deadline passed") from None
        except asyncio.CancelledError:
            call.abort()
            future.add_done_callback(_forget)
            raise

    def _connected(self, peer: tuple[str, int]) -> None:
        self._peers.pop(peer, None)
        self._peers[peer] = None
        if len(self._peers) > MOST_PEERS:
            self._peers.pop(next(iter(self._peers)), None)

    def peers(self) -> tuple[tuple[str, int], ...]:
        """Addresses that connections were made to, the latest last: a name may lead to others than it is told to."""
        return tuple(self._peers)

    def close(self) -> None:
        """Ends the threads; calls that are still under way end by their deadlines."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _stamp_of(path: Path) -> tuple[int, int] | None:
    """What tells one content of a file from another; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _forget(future: asyncio.Future[Any]) -> None:
    """Takes the result of a call that nobody waits for any more, so that it is not reported as lost."""
    if not future.cancelled():
        future.exception()
