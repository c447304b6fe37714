"""Bodies of any size pass both ways as they come, in flat memory."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable

import pytest

from tests.harness.canaries import canary
from tests.harness.client import tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, Upstream, Wire

MIB = 1 << 20
FLAT = 48 * MIB
"""What a transfer may add to the process: buffers of sockets and TLS, not the body."""


def start(ostiary: Callable[..., Ostiary], api: Upstream) -> Ostiary:
    return ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}})


def test_server_sent_events_arrive_one_by_one(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    step = threading.Semaphore(0)

    def events(seen: Seen, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for index in range(5):
            wire.chunk(b"data: %d\n\n" % index)
            assert step.acquire(timeout=10)
        wire.chunk(b"")

    proxy = start(ostiary, upstream(events))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET /events HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert raw.head().get("Content-Type") == "text/event-stream"
        for index in range(5):
            # Each event is read before the upstream is let go on: had it been buffered, this would wait for ever.
            assert raw.read_until(b"data: %d\n\n" % index)
            step.release()
        assert raw.read_until(b"0\r\n\r\n")
    (closed,) = proxy.wait_audit("credential.closed")
    assert (closed["outcome"], closed["bytes_out"]) == ("ok", 45)


def _peak(proxy: Ostiary, stop: threading.Event, peaks: list[int]) -> None:
    while not stop.wait(0.05):
        peaks.append(proxy.rss_bytes())


def _transfer(proxy: Ostiary, work: Callable[[], None]) -> int:
    """Runs a transfer; how much memory it added at its peak."""
    before = proxy.rss_bytes()
    stop, peaks = threading.Event(), [before]
    watcher = threading.Thread(target=_peak, args=(proxy, stop, peaks))
    watcher.start()
    try:
        work()
    finally:
        stop.set()
        watcher.join()
    return max(peaks) - before


SIZES = [pytest.param(192 * MIB), pytest.param(1024 * MIB, marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", SIZES)
def test_f2_an_upload_in_flat_memory(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], size: int
) -> None:
    api = upstream()
    proxy = start(ostiary, api)
    block = bytes(range(256)) * 4096
    digest = hashlib.sha256()

    def work() -> None:
        with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
            raw.sock.settimeout(120)
            raw.send(f"PUT /upload HTTP/1.1\r\nHost: api.test\r\nContent-Length: {size}\r\n\r\n".encode())
            for _ in range(size // len(block)):
                digest.update(block)
                raw.send(block)
            assert raw.answer().status == 200

    assert _transfer(proxy, work) < FLAT
    (seen,) = api.requests
    assert (seen.body_bytes, seen.body_sha256) == (size, digest.hexdigest())
    (closed,) = proxy.wait_audit("credential.closed")
    assert (closed["bytes_in"], closed["payload_sha256"]) == (size, digest.hexdigest())


@pytest.mark.parametrize("size", SIZES)
def test_c1_f2_a_download_to_a_slow_reader_in_flat_memory(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], size: int
) -> None:
    block = b"y" * MIB

    def download(seen: Seen, wire: Wire) -> None:
        wire.send(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(size // MIB):
            wire.send(block)

    proxy = start(ostiary, upstream(download))

    def work() -> None:
        with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
            raw.sock.settimeout(120)
            raw.send(b"GET /download HTTP/1.1\r\nHost: api.test\r\n\r\n")
            assert raw.head().status == 200
            left = size - len(raw.buffer)
            raw.buffer = b""
            time.sleep(1.0)  # the upstream goes on sending: it must be held back, not buffered
            while left:
                left -= len(raw.sock.recv(min(left, MIB)))

    assert _transfer(proxy, work) < FLAT
    (closed,) = proxy.wait_audit("credential.closed")
    assert closed["bytes_out"] == size


def test_chunked_uploads_stay_chunked(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    proxy = start(ostiary, api)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(
            b"POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n"
        )
        assert raw.answer().status == 200
    assert (api.requests[0].body, api.requests[0].get("Content-Length")) == (b"abcdefgh", None)


def test_an_answer_that_ends_with_the_connection(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    def until_close(seen: Seen, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
        wire.close()

    proxy = start(ostiary, upstream(until_close))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").body == b"all of it"


def test_answers_without_a_body(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    def none(seen: Seen, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n" if seen.target == "/100" else b"")
        wire.send(
            b"HTTP/1.1 204 No Content\r\n\r\n"
            if seen.target == "/204"
            else b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"
        )

    proxy = start(ostiary, upstream(none))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        for path, status in (("/204", 204), ("/304", 304), ("/204", 204)):
            assert raw.request(f"GET {path} HTTP/1.1\r\nHost: api.test\r\n\r\n").status == status
    assert [record["status"] for record in proxy.wait_audit("credential.closed", 3)] == [204, 304, 204]
