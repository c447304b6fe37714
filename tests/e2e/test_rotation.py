"""U5, V7, G28, G57: a key is rotated in a real Vault, and no workload notices."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.admin import Token, block, call
from tests.harness.canaries import canary
from tests.harness.client import Answer, get, tunnel
from tests.harness.http2 import Http2
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.ostiary_process import Ostiary, command
from tests.harness.scripted_vault import scripted, send
from tests.harness.upstream import Seen, StreamWire, Upstream, Wire, plain

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  api:
    match: {host: api.test}
    allow: billing
    secret: {path: secret/egress/api, field: key, ttl: 1h}
    inject: {bearer: "{secret}"}
  kv1:
    match: {host: kv1.test}
    allow: billing
    secret: {path: old/egress/api, field: key, ttl: 1h}
    inject: {header: X-Api-Key, value: "{secret}"}
"""


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with openbao_server(tmp_path_factory.mktemp("bao")) as server:
        server.api("POST", "sys/mounts/old", {"type": "kv", "options": {"version": "1"}})
        yield server


class Keys:
    """An upstream that takes some keys and rejects the others."""

    def __init__(self) -> None:
        self.good: set[str] = set()
        self.closing = False
        self.early = False
        self.shown = ""

    def __call__(self, seen: Seen, wire: Wire) -> None:
        given = [value for name, value in seen.headers if name.lower() in {"authorization", "x-api-key"}]
        good = len(given) == 1 and given[0] in self.good
        if good and seen.get("Upgrade") is not None:
            head = "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
            wire.send(f"{head}\r\nX-Shown: {self.shown}\r\n\r\n".encode() + b"\x81\x05hello")
        elif good:
            wire.answer(200, b"ok " + seen.method.encode() + self.shown.encode(), head_only=seen.method == "HEAD")
        if good:
            return
        fields = (("WWW-Authenticate", 'Bearer error="invalid_token"'), ("X-First", "yes"))
        if self.closing:
            # The head, and then the body in pieces, as it comes from a slow server that closes behind it.
            wire.send(b"HTTP/1.1 401 X\r\nX-First: yes\r\nConnection: close\r\n\r\nfirst")
            wire.send(b" answer")
            wire.close()
            return
        wire.answer(401, b"first answer" * 100, fields, head_only=seen.method == "HEAD")


def sent(api: Upstream, position: int) -> str | None:
    return api.requests[position].get("Authorization")


def start(ostiary: Callable[..., Ostiary], bao: OpenBao, policy: str, *, admin: str = "", **ports: int) -> Ostiary:
    proxy = ostiary(
        policy,
        **({"admin": admin} if admin else {}),
        start=False,
        upstreams={f"{name}.test:443": port for name, port in ports.items()},
        store=f'vault:\n  addresses: ["{bao.address}"]\n  auth: {{method: token_file, file: vault-token}}',
    )
    (proxy.folder / "vault-token").write_text(bao.token)
    proxy.canaries.append(bao.token)
    return proxy.run()


def test_u5_a_rotated_key_is_found_by_the_first_401(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    keys = Keys()
    api = upstream(keys, names=("api.test", "kv1.test"))
    proxy = start(ostiary, bao, POLICY, api=api.port, kv1=api.port)
    address = proxy.address("sidecar")

    def put(path: str = "egress/api") -> str:
        key = canary("key")
        proxy.canaries.append(key)
        bao.put(path, key=key)
        return key

    def ask(method: str = "GET", body: bytes = b"", *headers: str) -> Answer:
        return get(address, proxy.ca, "/v1/x?q=1", *headers, method=method, body=body)

    first = put()
    version = int(bao.api("GET", "secret/metadata/egress/api")["data"]["current_version"])
    keys.good = {f"Bearer {first}"}
    assert ask().status == 200

    # Rotated, and the old key killed at once: the request is sent again with the new one, and the caller sees one answer.
    second = put()
    keys.good = {f"Bearer {second}"}
    answer = ask()
    assert (answer.status, answer.body, answer.get("X-First"), answer.get("WWW-Authenticate")) == (
        200, b"ok GET", None, None,
    )  # fmt: skip
    assert [sent(api, -2), sent(api, -1)] == [f"Bearer {first}", f"Bearer {second}"]
    assert [seen.target for seen in api.requests[-2:]] == ["/v1/x?q=1"] * 2
    # The audit: two records of one request, each with its version and its end.
    opened = proxy.wait_audit("credential.opened", 3)[1:]
    closed = proxy.wait_audit("credential.closed", 3)[1:]
    assert [record["secret_version"] for record in opened] == [str(version), str(version + 1)]
    assert len({record["request_id"] for record in opened}) == 1
    assert [(one["id"], one["status"], one["outcome"]) for one in closed] == [
        (opened[0]["id"], 401, "upstream_error"),
        (opened[1]["id"], 200, "ok"),
    ]
    assert closed[1]["retries"] == 1
    assert opened[1]["cache"] == "bypass"
    (changed,) = proxy.wait_audit("secret.version_changed")
    assert (changed["secret"], changed["version_before"], changed["secret_version"]) == (
        "secret/egress/api", str(version), str(version + 1),
    )  # fmt: skip
    (last,) = proxy.wait_audit("secret.last_use_of_version")
    assert (last["secret_version"], last["workload"], last["route"], last["request_id"]) == (
        str(version), "billing", "api", opened[0]["request_id"],
    )  # fmt: skip

    # Every method, and small bodies, which are sent again byte for byte: by length and in chunks.
    for method, body in (("POST", b'{"amount":1}'), ("PUT", b"x" * 60_000), ("HEAD", b""), ("DELETE", b"")):
        keys.good = {f"Bearer {put()}"}
        before = len(api.requests)
        assert ask(method, body).status == 200
        again = api.requests[before:]
        assert [(seen.method, seen.body, seen.complete) for seen in again] == [(method, body, True)] * 2
        assert again[0].headers[1:] != again[1].headers[1:]
    keys.good = {f"Bearer {put()}"}
    with tunnel(address, proxy.ca) as raw:
        raw.send(b"POST /v1 HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        raw.send(b"4\r\ndefg\r\n0\r\n\r\n")
        assert raw.answer().body == b"ok POST"
        assert [seen.body for seen in api.requests[-2:]] == [b"abcdefg"] * 2
        # The connection goes on.
        assert raw.request("GET /v1 HTTP/1.1\r\nHost: api.test\r\n\r\n").body == b"ok GET"
    put_twice = [record for record in proxy.audit("credential.closed") if record["method"] == "PUT"]
    assert [record["payload_sha256"] for record in put_twice] == [hashlib.sha256(b"x" * 60_000).hexdigest()] * 2
    assert [record["bytes_in"] for record in put_twice] == [60_000] * 2
    # The second answer shows what the first try was made with: perhaps other upstreams take it for a while.
    keys.shown = put()
    keys.good = {f"Bearer {keys.shown}"}
    assert ask().status == 200
    keys.good = {f"Bearer {put()}"}
    assert ask("POST", b"abc").body == b"ok POST" + b"*" * len(keys.shown)
    # The handshake of a WebSocket.
    keys.shown = next(iter(keys.good)).removeprefix("Bearer ")
    keys.good = {f"Bearer {put()}"}
    with tunnel(address, proxy.ca) as raw:
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        raw.send(f"GET /ws HTTP/1.1\r\nHost: api.test\r\n{upgrade}\r\n\r\n".encode())
        switched = raw.read_until(b"hello")
    assert switched.startswith(b"HTTP/1.1 101 ")
    assert b"X-Shown: ****" in switched
    assert b"first" not in switched
    assert keys.shown.encode() not in switched
    keys.shown = ""
    # A server that closes behind its 401, whose body ends with the connection.
    keys.closing = True
    keys.good = {f"Bearer {put()}"}
    assert ask("POST", b"abc").body == b"ok POST"
    # Nothing new: the caller gets that very answer, in full.
    keys.good = set()
    assert (ask().status, ask().body) == (401, b"first answer")
    keys.closing = False
    # KV version 1 has no versions: what counts is the value.
    bao.api("POST", "old/egress/api", {"key": (one := canary("v1"))})
    keys.good = {one}
    assert get(address, proxy.ca, authority="kv1.test:443").status == 200
    bao.api("POST", "old/egress/api", {"key": (two := canary("v1"))})
    proxy.canaries += [one, two]
    keys.good = {two}
    assert get(address, proxy.ca, authority="kv1.test:443").status == 200
    metrics = proxy.get("/metrics")[1].decode()
    assert 'ostiary_secret_rejected_total{result="retried"} 11.0' in metrics
    assert 'ostiary_secret_rejected_total{result="unchanged"} 2.0' in metrics


def test_u5_what_is_not_sent_twice(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    keys = Keys()
    api = upstream(keys, names=("api.test",))
    proxy = start(ostiary, bao, POLICY, api=api.port)
    address = proxy.address("sidecar")

    def put(**fields: str) -> str:
        key = canary("key")
        proxy.canaries.append(key)
        bao.put("egress/api", **({"key": key} | fields))
        return key

    keys.good = {f"Bearer {put()}"}
    assert get(address, proxy.ca).status == 200
    # A body that is not held: its caller gets the 401, and the next request has the new key already.
    keys.good = {f"Bearer {put()}"}
    seen = len(api.requests)
    assert get(address, proxy.ca, method="POST", body=b"y" * 200_000).status == 401
    deadline = time.monotonic() + 10
    while proxy.get("/metrics")[1].decode().count('ostiary_secret_reads_total{result="ok",store="vault"} 2.0') == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert get(address, proxy.ca, method="POST", body=b"y" * 200_000).status == 200
    assert [(one.body_bytes, one.method) for one in api.requests[seen:]] == [(200_000, "POST")] * 2
    assert 'ostiary_secret_rejected_total{result="not_replayable"} 1.0' in proxy.get("/metrics")[1].decode()
    # A 401 to a version that is not the newest any more costs no read, and is tried again with the newest.
    # A new version that cannot be used: the caller gets the 401, and then the next ones are refused.
    keys.good = set()
    put(key="two\nlines")
    time.sleep(0)
    answer = get(address, proxy.ca)
    assert (answer.status, answer.body[:12]) == (401, b"first answer")
    assert get(address, proxy.ca).code == "secret_malformed"
    closed = proxy.wait_audit("credential.closed", 5)
    assert [record.get("code") for record in closed[-3:]].count("secret_malformed") == 2
    # No second request left for either.
    assert len(api.requests) == seen + 3


def test_g28_g57_provoked_401s(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    keys = Keys()
    api = upstream(keys, names=("api.test",))
    proxy = start(ostiary, bao, POLICY, api=api.port)
    address = proxy.address("sidecar")
    key = canary("key")
    bao.put("egress/api", key=key)
    began_s = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: get(address, proxy.ca).status, range(80)))
    assert set(statuses) == {401}
    elapsed_s = time.monotonic() - began_s
    reads = next(
        float(line.rpartition(" ")[2])
        for line in proxy.get("/metrics")[1].decode().splitlines()
        if line.startswith('ostiary_secret_reads_total{result="ok"')
    )
    # The first read, and one forced read at most every 5 s.
    assert reads <= 2 + elapsed_s / 5
    assert len(api.requests) == 80
    # And nobody has lost the secret by it.
    keys.good = {f"Bearer {key}"}
    assert get(address, proxy.ca).status == 200
    assert proxy.wait_audit("credential.opened", 81)[-1]["cache"] == "hit"


def test_overlap_pending_and_evidence(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    keys = Keys()
    api = upstream(keys, names=("api.test",))
    policy = POLICY.replace("secret/egress/api, field: key, ttl: 1h", "secret/egress/staged, field: key, ttl: 0")
    proxy = start(ostiary, bao, policy, api=api.port)
    address = proxy.address("sidecar")

    def tell(**metadata: str) -> None:
        bao.api("POST", "secret/metadata/egress/staged", {"custom_metadata": metadata})

    one, two = canary("one"), canary("two")
    proxy.canaries += [one, two]
    bao.api("DELETE", "secret/metadata/egress/staged")
    bao.put("egress/staged", key=one)
    # Staged: version 2 is there and is not used, for as long as it is pending.
    tell(pending_version="2", owner="team-pay")
    bao.put("egress/staged", key=two)
    keys.good = {f"Bearer {one}"}
    assert get(address, proxy.ca).status == 200
    tell(owner="team-pay")
    keys.good = {f"Bearer {two}"}
    assert get(address, proxy.ca).status == 200
    # The new key does not work everywhere yet: inside the overlap the one before serves.
    keys.good = {f"Bearer {one}"}
    assert get(address, proxy.ca).status == 401
    tell(overlap_until="2100-01-01T00:00:00Z", expires_at="2020-01-01T00:00:00Z")
    assert get(address, proxy.ca).status == 200
    assert [sent(api, -2), sent(api, -1)] == [f"Bearer {two}", f"Bearer {one}"]
    assert [record["secret_version"] for record in proxy.wait_audit("credential.opened", 5)[-2:]] == ["2", "1"]
    # Past it, and where the version before is gone, it does not.
    tell(overlap_until="2020-01-01T00:00:00Z")
    assert get(address, proxy.ca).status == 401
    tell(overlap_until="2100-01-01T00:00:00Z")
    bao.destroy("egress/staged", 1)
    assert get(address, proxy.ca).status == 401
    metrics = proxy.get("/metrics")[1].decode()
    assert 'ostiary_secret_rejected_total{result="retried_before"} 1.0' in metrics
    assert 'ostiary_secret_expires_timestamp_seconds{secret="secret/egress/staged"} +Inf' in metrics
    assert b"secret secret/egress/staged has expired at 2020-01-01T00:00:00Z" in proxy.stderr


def test_v7_rotation_under_load_with_an_overlap(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    keys = Keys()
    api = upstream(keys, names=("api.test",))
    proxy = start(ostiary, bao, POLICY.replace("ttl: 1h", "ttl: 300ms"), api=api.port)
    address = proxy.address("sidecar")
    current = canary("key")
    bao.put("egress/api", key=current)
    keys.good = {f"Bearer {current}"}
    failed: list[tuple[int, str | None]] = []
    done = threading.Event()

    def load() -> int:
        count = 0
        while not done.is_set():
            answer = get(address, proxy.ca, method="POST" if count % 2 else "GET", body=b"b" * (count % 2))
            count += 1
            if answer.status != 200:
                failed.append((answer.status, answer.code))
        return count

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load) for _ in range(4)]
        for _ in range(8):
            new = canary("key")
            # Of each two rotations one has no overlap at all: the old key dies as the new one is written.
            keys.good = {f"Bearer {current}", f"Bearer {new}"}
            bao.put("egress/api", key=new)
            keys.good = {f"Bearer {new}"}
            current = new
            time.sleep(0.4)
        done.set()
        total = sum(one.result() for one in loads)
    assert failed == []
    assert total > 8
    assert {seen.body for seen in api.requests} <= {b"", b"b"}


def test_u5_no_mixture_of_two_answers(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao
) -> None:
    """HTTP/2 on either side, several streams at once, and first answers with long bodies and trailers: of a 401 that was
    not the last word not a byte reaches a caller."""
    good: set[str] = set()

    def script(seen: Seen, wire: StreamWire) -> None:
        if seen.get("authorization") in good:
            wire.head(200, (("x-answer", "second"),))
            wire.send(seen.method.encode() + b" second" * 100, ends=True)
            return
        wire.head(401, (("x-answer", "first"),))
        wire.send(b"first" * 6000)
        wire.trailers(("x-check", "first"))

    def slow(seen: Seen, wire: Wire) -> None:
        if seen.get("X-Api-Key") in good:
            wire.answer(200, seen.method.encode() + b" second" * 100, (("x-answer", "second"),))
            return
        wire.send(b"HTTP/1.1 401 X\r\nx-answer: first\r\nTransfer-Encoding: chunked\r\nTrailer: x-check\r\n\r\n")
        for _ in range(30):
            wire.chunk(b"first" * 1000)
        wire.send(b"0\r\nx-check: first\r\n\r\nHTTP/1.1 200 X\r\nContent-Length: 5\r\n\r\nthird")

    policy = POLICY.replace("inject: {bearer", "http2: prefer\n    inject: {bearer")
    h2up = upstream(names=("api.test",), alpn=("h2",), http2_script=script)
    h1up = upstream(slow, names=("kv1.test",))
    proxy = start(ostiary, bao, policy.replace("old/egress/api", "secret/egress/api"), api=h2up.port, kv1=h1up.port)
    policy_of = {"api.test": h2up, "kv1.test": h1up}
    address = proxy.address("sidecar")

    def rotate() -> None:
        key = canary("key")
        proxy.canaries.append(key)
        bao.put("egress/api", key=key)
        good.clear()
        good.update({f"Bearer {key}", key})

    rotate()
    for host in policy_of:
        assert get(address, proxy.ca, authority=f"{host}:443").status == 200
    for host in policy_of:
        with tunnel(address, proxy.ca, f"{host}:443") as raw:
            for method, body in (("GET", b""), ("POST", b"abc"), ("GET", b"")):
                rotate()
                raw.send(
                    f"{method} /v1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
                )
                answer = raw.answer()
                assert (answer.status, answer.all("x-answer")) == (200, ["second"])
                assert answer.body == method.encode() + b" second" * 100
        with tunnel(address, proxy.ca, f"{host}:443", alpn=("h2",)) as raw:
            client = Http2(raw)
            for _ in range(2):
                rotate()
                streams = [client.send("GET", f"/{number}", authority=host) for number in range(6)]
                streams += [client.send("POST", "/p", authority=host, body=b"x" * 3000) for _ in range(3)]
                for stream in streams:
                    found = client.answer(stream)
                    assert (found.headers[":status"], found.headers["x-answer"], found.reset) == ("200", "second", None)
                    assert bytes(found.body) in {b"GET" + b" second" * 100, b"POST" + b" second" * 100}
                    assert not found.trailers
    opened = proxy.audit("credential.opened")
    proxy.wait_audit("credential.closed", len(opened))
    assert {record["outcome"] for record in proxy.audit("credential.closed")} == {"ok", "upstream_error"}


def test_u5_a_401_without_end_is_not_kept_while_the_store_is_asked(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    taken = 0
    reads: list[str] = []
    begun, looked = threading.Event(), threading.Event()

    def endless(seen: Seen, wire: Wire) -> None:
        nonlocal taken
        if seen.get("Authorization") != "Bearer cnry-1":
            wire.answer(200, b"ok")
            return
        wire.send(b"HTTP/1.1 401 X\r\nTransfer-Encoding: chunked\r\n\r\n")
        begun.wait(10)
        while not looked.is_set():
            wire.chunk(b"endless" * 9000)
            taken += 63_000
        wire.send(b"0\r\n\r\n")

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("lookup-self"):
            send(handler, 200, {"data": {"ttl": 0}})
        elif "mounts" in handler.path:
            send(handler, 200, {"data": {"options": {"version": "2"}}})
        else:
            reads.append(handler.path)
            if len(reads) > 1:
                begun.set()
                time.sleep(0.8)  # a store that is slow, and not too slow to be waited for
                looked.set()
            data = {"data": {"key": f"cnry-{len(reads)}"}, "metadata": {"version": len(reads)}}
            send(handler, 200, {"data": data})

    api = upstream(endless)
    with scripted(answer) as (address, _):
        store = f'vault:\n  addresses: ["{address}"]\n  auth: {{method: token_file, file: vault-token}}'
        proxy = ostiary(POLICY, start=False, upstreams={"api.test:443": api.port}, store=store)
        (proxy.folder / "vault-token").write_text("cnry-token")
        proxy.run()
        assert get(proxy.address("sidecar"), proxy.ca).status in {200, 401}
    # What stands in the buffers of the sockets, and a little.
    assert taken < 24 << 20


@pytest.mark.parametrize("http2", [False, True])
def test_u5_a_caller_that_goes_while_the_store_is_asked(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], http2: bool
) -> None:
    """The store takes its time; the caller leaves, or its connection is all there is: no second request, no open record."""
    api = upstream(plain(b"no", 401))
    asked = threading.Event()
    reads: list[str] = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("lookup-self"):
            send(handler, 200, {"data": {"ttl": 0}})
        elif "mounts" in handler.path:
            send(handler, 200, {"data": {"options": {"version": "2"}}})
        else:
            reads.append(handler.path)
            if len(reads) > 1:
                asked.set()
                time.sleep(1.0)
            data = {"data": {"key": f"cnry-{len(reads)}"}, "metadata": {"version": len(reads)}}
            send(handler, 200, {"data": data})

    with scripted(answer) as (address, _):
        store = f'vault:\n  addresses: ["{address}"]\n  auth: {{method: token_file, file: vault-token}}'
        proxy = ostiary(POLICY, start=False, upstreams={"api.test:443": api.port}, store=store)
        (proxy.folder / "vault-token").write_text(canary())
        proxy.run()
        with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",) if http2 else ("http/1.1",)) as raw:
            if http2:
                # Not its connection, but this one stream of it.
                client = Http2(raw)
                stream = client.send("GET", "/v1")
                assert asked.wait(10)
                client.conn.reset_stream(stream)
                raw.send(client.conn.data_to_send())
                # The credential of the second try was opened by then, and is not used.
                proxy.wait_audit("credential.closed", 2)
            else:
                raw.send(b"GET /v1 HTTP/1.1\r\nHost: api.test\r\n\r\n")
                assert asked.wait(10)
        closed = proxy.wait_audit("credential.closed")
        assert [record["outcome"] for record in closed] == ["upstream_error"] * http2 + ["client_gone"]
        assert len(api.requests) == 1
        # Another caller joins the read that the first one has left behind, or finds what it has brought.
        assert get(proxy.address("sidecar"), proxy.ca).status == 401
        version = proxy.wait_audit("credential.opened", 2 + http2)[-1]["secret_version"]
        assert version in ({"2", "3"} if http2 else {"2"})  # the first may have left nothing to look for
        assert api.requests[-1].get("Authorization") == f"Bearer cnry-{version}"
        assert len(reads) <= 3
        ids = {record["id"] for record in proxy.audit("credential.opened")}
        assert ids == {record["id"] for record in proxy.wait_audit("credential.closed", len(ids))}


def test_refresh_and_status(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao) -> None:
    keys = Keys()
    api = upstream(keys, names=("api.test",))
    token = Token("security", "operator")
    proxy = start(ostiary, bao, POLICY, admin=block(token), api=api.port)
    one, two = canary("one"), canary("two")
    proxy.canaries += [one, two]
    bao.api("DELETE", "secret/metadata/egress/api")
    bao.put("egress/api", key=one)
    bao.api("POST", "secret/metadata/egress/api", {"custom_metadata": {"owner": "team-pay"}})
    keys.good = {f"Bearer {one}", f"Bearer {two}"}
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    first = proxy.wait_audit("credential.closed")[0]["request_id"]

    def run(*arguments: str, code: int = 0) -> str:
        done = command("secret", *arguments, cwd=proxy.folder, environ={"OSTIARY_ADMIN_TOKEN": token.value})
        assert done.returncode == code, (done.stdout, done.stderr)
        assert not {value for value in (one, two, token.value) if value.encode() in done.stdout + done.stderr}
        return (done.stderr if code else done.stdout).decode()

    bao.put("egress/api", key=two)
    # The ttl is an hour: without being asked, nobody would look.
    admin = ("--admin", proxy.ready["admin"])
    assert run("refresh", "secret/egress/api", *admin) == "secret/egress/api version 2 is in use\n"
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    assert sent(api, -1) == f"Bearer {two}"
    assert run("refresh", "secret/egress/api", *admin) == "secret/egress/api version 2 is in use, unchanged\n"
    assert "no route reads" in run("refresh", "secret/egress/other", *admin, code=1).lower()
    told = run("status", "secret/egress/api", *admin)
    for line in (
        "secret/egress/api, read by api",
        "version 2 in use",
        "version 1 before it",
        "last used by billing on api",
        f"(request {first})",
        "owner team-pay",
    ):
        assert line in told, told
    (shown,) = [
        one
        for one in call(proxy, "GET", "/secrets", token=token).json()["secrets"]
        if one["secret"] == "secret/egress/api"
    ]
    assert (shown["version"], shown["before"], shown["before_last_use"]["request_id"]) == ("2", "1", first)
    assert (shown["requests"], shown["before_requests"]) == (0, 0)
    assert [record["by"] for record in proxy.wait_audit("secret.refreshed", 2)] == ["security"] * 2
    bao.api("DELETE", "secret/metadata/egress/api")
    assert "does not exist" in run("refresh", "secret/egress/api", *admin, code=1)
    # Asked for in this way too, what is gone is gone.
    assert get(proxy.address("sidecar"), proxy.ca).code == "secret_missing"


def test_v1_v8_a_rotation_that_goes_wrong(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], tmp_path: Path
) -> None:
    """A new version without the field, a Vault that is sealed as a key dies, two processes: each caller gets one whole
    answer, and what the upstream saw is a version that was recorded."""
    keys = Keys()
    api = upstream(keys, names=("api.test",))
    with openbao_server(tmp_path / "sealable", sealable=True) as bao:
        one, two, three = (canary(name) for name in ("one", "two", "three"))
        bao.put("egress/api", key=one)
        first, second = (start(ostiary, bao, POLICY, api=api.port) for _ in range(2))
        for proxy in (first, second):
            proxy.canaries += [one, two, three]
        keys.good = {f"Bearer {one}"}

        def ask(proxy: Ostiary) -> tuple[int, str | None]:
            answer = get(proxy.address("sidecar"), proxy.ca)
            return answer.status, answer.code

        assert [ask(first), ask(second)] == [(200, None)] * 2
        # The new version lacks the field: the caller gets the upstream's own 401, and the next one is told why.
        keys.good = {f"Bearer {two}"}
        bao.put("egress/api", other="x")
        assert [ask(first), ask(first)] == [(401, None), (502, "secret_missing")]
        # Mended: a version that lacks a field is not believed in for its whole ttl.
        bao.put("egress/api", key=two)
        assert ask(second) == (200, None)
        deadline = time.monotonic() + 20
        while ask(first) != (200, None):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        # Sealed as the key dies: no outage becomes another answer than the upstream's 401.
        keys.good = {f"Bearer {three}"}
        bao.seal()
        assert ask(second) == (401, None)
        bao.unseal()
        bao.put("egress/api", key=three)
        deadline = time.monotonic() + 30
        while ask(second) != (200, None):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        opened = second.wait_audit("credential.opened", 5)
        assert [opened[0]["secret_version"], opened[-1]["secret_version"]] == ["1", "4"]
        assert {record["secret_version"] for record in opened} == {"1", "3", "4"}
