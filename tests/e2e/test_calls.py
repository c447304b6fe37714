"""What a keep-alive request may cost, counted in calls of Python functions: a clock on a busy machine says too little.

The bounds are what was counted when they were set and a tenth. Whoever meets one has made every request dearer: either
make it cheaper, or raise the bound and say in docs/adr/0007 what the calls are for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.harness.called import calls, prefix
from tests.harness.client import tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.upstream import Upstream, plain

POLICY = """
workloads: {billing: {proofs: [{any: true}]}}
routes:
  api:
    match: {host: api.test}
    allow: billing
    secret: {path: secret/egress/api, field: key, ttl: 10m}
    inject: {bearer: "{secret}"}
"""
GET = b"GET /v1 HTTP/1.1\r\nHost: api.test\r\nUser-Agent: test/1.0\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n\r\n"
POST = b"POST /v1 HTTP/1.1\r\nHost: api.test\r\nUser-Agent: test/1.0\r\nContent-Length: 5\r\n\r\nhello"
BOUNDS = {GET: 295, POST: 325}
TIMES, WINDOWS = 10, 5


def test_calls_of_a_keep_alive_request(upstream: Callable[..., Upstream], pki: Pki, tmp_path: Path) -> None:
    fields = ("Date", "Wed, 25 Nov 2026 20:00:00 GMT"), ("Content-Type", "text/plain"), ("Accept-Ranges", "bytes")
    one, target = upstream(plain(b"x" * 1024, 200, *fields)), tmp_path / "calls"
    proxy = Ostiary(
        tmp_path / "p",
        POLICY,
        {"api.test:443": one.port},
        {"secret/egress/api": {"key": "of no worth"}},
        pki.ca_file,
        engine="fast",
        prefix=prefix(target),
    ).start()
    try:
        with tunnel(proxy.address("sidecar"), proxy.ca) as raw:

            def ask(request: bytes) -> None:
                for _ in range(TIMES):
                    assert raw.request(request).status == 200

            for request, bound in BOUNDS.items():
                ask(request)
                # The least of some: a look at the audit's file, or a sweep, may fall into one of them.
                found = min(calls(proxy, target, partial(ask, request)) for _ in range(WINDOWS)) / TIMES
                assert bound * 0.6 < found <= bound, f"{found} calls for {request[:4]!r}"
        assert one.requests[-1].get("authorization") == "Bearer of no worth"
    finally:
        proxy.stop()
