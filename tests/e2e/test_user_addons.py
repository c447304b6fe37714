"""Users' own addons in the real process: what they may do, what they may not, and that they never see a credential."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_websocket import HANDSHAKE, switching
from tests.harness.canaries import canary, scan
from tests.harness.client import Answer, get, tunnel
from tests.harness.http2 import Http2
from tests.harness.ostiary_process import Ostiary, clean_environment, command
from tests.harness.upstream import Cleartext, Seen, Upstream, Wire, plain

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  api:
    match: {host: api.test, methods: [GET, POST, HEAD], paths: ["/v1", "/v1/**"]}
    allow: billing
    secret: {path: secret/egress/api, field: key, ttl: 0}
    inject: [{bearer: "{secret}"}, {query: api_key, value: "{secret}"}]
"""

# Everything that can be reached from a flow without looking into functions.
SPY = """
import json, pathlib

class Spy:
    def __init__(self, file):
        self.file = pathlib.Path(file)

    def _dump(self, hook, flow):
        seen, found = set(), [hook]
        def walk(thing, depth):
            if id(thing) in seen or depth > 8:
                return
            seen.add(id(thing))
            found.append(repr(thing))
            if isinstance(thing, (list, tuple, set, frozenset)):
                inner = list(thing)
            elif isinstance(thing, dict):
                inner = [*thing.keys(), *thing.values()]
            else:
                inner = list(getattr(thing, "__dict__", {}).values())
                inner += [getattr(thing, name, None) for name in getattr(type(thing), "__slots__", ())]
            for one in inner:
                walk(one, depth + 1)
        walk(flow, 0)
        walk(flow.get_state(), 0)
        with self.file.open("a") as out:
            out.write(json.dumps(found) + "\\n")

    def requestheaders(self, flow): self._dump("requestheaders", flow)
    def responseheaders(self, flow): self._dump("responseheaders", flow)
    def response(self, flow): self._dump("response", flow)
    def error(self, flow): self._dump("error", flow)
    async def running(self): self._log("running")
    async def done(self): self._log("done")

    def _log(self, word):
        with self.file.open("a") as out:
            out.write(json.dumps([word]) + "\\n")
"""

# One class for each thing that an addon may try; the path says which request it is for.
TRIES = """
import asyncio, sys, time
from mitmproxy import http
from mitmproxy.flow import Error

class Tries:
    def requestheaders(self, flow):
        name = flow.request.path.split("?")[0].rpartition("/")[2]
        return getattr(self, "_" + name.replace("-", "_"), lambda flow: None)(flow)

    def _field(self, flow):
        flow.request.headers["X-Team"] = "blue"
        flow.request.headers.pop("X-Drop", None)
    def _authorization(self, flow): flow.request.headers["Authorization"] = "Bearer mine"
    def _override(self, flow): flow.request.headers["X-HTTP-Method-Override"] = "DELETE"
    def _method(self, flow): flow.request.method = "DELETE"
    def _path(self, flow): flow.request.path = "/v2/admin"
    def _query(self, flow): flow.request.query["a"] = "b"
    def _host(self, flow): flow.request.host = "evil.test"
    def _host_header(self, flow): flow.request.headers["Host"] = "evil.test"
    def _port(self, flow): flow.request.port = 22
    def _scheme(self, flow): flow.request.scheme = "http"
    def _version(self, flow): flow.request.http_version = "HTTP/2.0"
    def _replaced(self, flow): flow.request = http.Request.make("GET", "https://evil.test/")
    def _length(self, flow): flow.request.headers["Content-Length"] = "5"
    def _chunked(self, flow): flow.request.headers["Transfer-Encoding"] = "chunked"
    def _upgrade(self, flow):
        flow.request.headers["Upgrade"] = "websocket"
        flow.request.headers["Connection"] = "Upgrade"
    def _body(self, flow): flow.request.content = b"other"
    def _stream(self, flow): flow.request.stream = lambda chunk: b"other"
    def _trailers(self, flow): flow.request.trailers = http.Headers([(b"x", b"y")])
    def _splitting(self, flow): flow.request.headers["X-A"] = "a\\r\\nX-B: b"
    def _bad_name(self, flow): flow.request.headers.fields += ((b"X A", b"b"),)
    def _floods(self, flow): flow.request.headers.fields += tuple((b"x", b"y") for _ in range(200))
    def _server(self, flow): flow.server_conn.address = ("127.0.0.1", 22)
    def _intercepts(self, flow): flow.intercept()
    def _kills(self, flow): flow.kill()
    def _errs(self, flow): flow.error = Error("nothing to see")
    def _raises(self, flow): raise ValueError("cnry-text-of-an-addon")
    def _exits(self, flow): sys.exit(3)
    def _cancels(self, flow): raise asyncio.CancelledError
    def _replays(self, flow):
        from mitmproxy import ctx
        ctx.master.commands.call("replay.client", [flow])
    async def _hangs(self, flow): await asyncio.sleep(60)
    async def _clings(self, flow):
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass
    async def _waits(self, flow):
        await asyncio.sleep(0.05)
        flow.request.headers["X-Team"] = "late"
    async def _raises_late(self, flow):
        await asyncio.sleep(0.01)
        raise ValueError("cnry-text-of-an-addon")
    async def _exits_late(self, flow):
        await asyncio.sleep(0.01)
        sys.exit(3)
    def _blocks(self, flow): time.sleep(0.25)
    def _after(self, flow):
        # What it does behind the hook's back changes nothing of what was granted.
        async def later():
            while True:
                flow.request.method = "DELETE"
                flow.request.path = "/v2"
                flow.request.host = "evil.test"
                await asyncio.sleep(0)
        self.task = asyncio.get_running_loop().create_task(later())
    def _mock(self, flow):
        flow.response = http.Response.make(
            418, b"teapot", {"X-Mine": "1", "X-Ostiary-Error": "internal", "Proxy-Status": "x", "Connection": "close",
                             "Content-Length": "999", "Alt-Svc": "h3"})
    def _empty_mock(self, flow): flow.response = http.Response.make(204)
    def _switching(self, flow): flow.response = http.Response.make(101)
    def _text(self, flow): flow.response = "no"
    def _bad_mock(self, flow): flow.response = http.Response.make(200, b"", [(b"X-A", b"a\\r\\nb: c")])

class Replies:
    def responseheaders(self, flow):
        name = flow.request.path.split("?")[0].rpartition("/")[2]
        return getattr(self, "_" + name.replace("-", "_"), lambda flow: None)(flow)
    def response(self, flow):
        name = flow.request.path.split("?")[0].rpartition("/")[2]
        return getattr(self, "_end_" + name.replace("-", "_"), lambda flow: None)(flow)

    def _reply_field(self, flow):
        flow.response.headers["X-Seen"] = "yes"
        flow.response.headers["X-Ostiary-Error"] = "internal"
        flow.response.headers["Alt-Svc"] = "h3"
        flow.response.headers.pop("X-Secretive", None)
    def _reply_status(self, flow): flow.response.status_code = 101
    def _reply_length(self, flow): flow.response.headers["Content-Length"] = "1"
    def _reply_stream(self, flow): flow.response.stream = lambda chunk: b""
    def _reply_body(self, flow): flow.response.content = b"other"
    def _reply_replaced(self, flow): flow.response = type(flow.response).make(200, b"other")
    def _reply_gone(self, flow): flow.response = None
    def _reply_splitting(self, flow): flow.response.headers["X-A"] = "a\\r\\nX-B: b"
    def _reply_request(self, flow): flow.request.headers["X-A"] = "b"
    def _reply_raises(self, flow): raise ValueError("cnry-text-of-an-addon")
    def _reply_kills(self, flow): flow.kill()
    async def _reply_hangs(self, flow): await __import__("asyncio").sleep(60)
    def _end_end_raises(self, flow): raise ValueError("cnry-text-of-an-addon")
    def _end_end_field(self, flow): flow.response.headers["X-Seen"] = "yes"
    def _end_end_body(self, flow): flow.response.content = b"other"
"""


@pytest.fixture
def proxy(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> Callable[..., tuple[Ostiary, Upstream, str]]:
    """A process with these addons; an upstream that does not show what reached it."""

    def make(addons: str, code: str, api: Upstream | None = None) -> tuple[Ostiary, Upstream, str]:
        one = api or upstream(plain(b"hello", 200, ("X-Secretive", "x")))
        key = canary()
        made = ostiary(
            POLICY,
            start=False,
            upstreams={"api.test:443": one.port},
            secrets={"secret/egress/api": {"key": key}},
            settings=f"addons: {addons}\n",
        )
        (made.folder / "my_addon.py").write_text(code)
        return made.run(), one, key

    return make


type Proxy = Callable[..., tuple[Ostiary, Upstream, str]]


def ask(one: Ostiary, path: str, *headers: str, method: str = "GET", body: bytes = b"") -> Answer:
    return get(one.address("sidecar"), one.ca, path, *headers, method=method, body=body)


def test_g12_an_addon_sees_no_credential_in_any_hook(proxy: Proxy, upstream: Callable[..., Upstream]) -> None:
    def answers(seen: Seen, wire: Wire) -> None:
        if seen.target.startswith("/v1/breaks"):
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            time.sleep(0.3)
            wire.reset()
        else:
            wire.answer(200, b"hello", head_only=seen.method == "HEAD")

    one, api, key = proxy("{addon: ./my_addon.py:Spy, options: {file: spied.jsonl}}", SPY, upstream(answers))
    assert ask(one, "/v1/a", method="POST", body=b"abc").status == 200
    assert ask(one, "/v1/b").status == 200
    with tunnel(one.address("sidecar"), one.ca) as raw, pytest.raises(ConnectionError):
        raw.send(b"GET /v1/breaks HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert raw.head().status == 200
        raw.read_exactly(100)
    one.wait_audit("credential.closed", 3)
    assert len(api.requests) == 3
    for request in api.requests:
        assert request.get("Authorization") == f"Bearer {key}"
        assert request.target.endswith(f"api_key={key}")
    assert one.stop() == 0
    spied = [json.loads(line) for line in (one.folder / "spied.jsonl").read_text().splitlines()]
    hooks = [line[0] for line in spied]
    assert (hooks[0], hooks[-1]) == ("running", "done")
    assert {"requestheaders", "responseheaders", "response", "error"} <= set(hooks)
    assert any("ostiary.workload" in text for line in spied for text in line)
    assert scan([("spied", json.dumps(spied).encode())], [key]) == []


def test_it_may_change_fields_and_they_are_the_callers(proxy: Proxy) -> None:
    one, api, key = proxy("[./my_addon.py:Tries]", TRIES)
    assert ask(one, "/v1/field", "X-Drop: me").status == 200
    assert ask(one, "/v1/authorization").status == 200
    assert ask(one, "/v1/override").status == 200
    assert ask(one, "/v1/waits").status == 200
    field, authorization, override, late = api.requests
    assert (field.get("X-Team"), field.get("X-Drop"), late.get("X-Team")) == ("blue", None, "late")
    assert override.get("X-HTTP-Method-Override") is None
    assert {seen.get("Authorization") for seen in api.requests} == {f"Bearer {key}"}
    assert authorization.get("Host") == "api.test"


FORBIDDEN = (
    "method", "path", "query", "host", "host-header", "port", "scheme", "version", "replaced", "length", "chunked", "upgrade", "body",
    "stream", "trailers", "splitting", "bad-name", "floods", "server", "intercepts", "raises", "exits", "cancels", "replays", "hangs", "clings",
    "raises-late", "exits-late", "switching", "text", "bad-mock",
)  # fmt: skip


def test_g12_whatever_else_it_does_nothing_leaves(proxy: Proxy) -> None:
    """The grant is for what was asked: what an addon changes of it is refused, never forwarded and never judged again."""
    one, api, _ = proxy("[{addon: ./my_addon.py:Tries, timeout: 300ms}]", TRIES)
    for name in FORBIDDEN:
        answer = ask(one, f"/v1/{name}")
        assert (answer.status, answer.code) == (500, "internal"), name
    for name in ("kills", "errs"):
        answer = ask(one, f"/v1/{name}")
        assert (answer.status, answer.code) == (403, "access_denied"), name
    with tunnel(one.address("sidecar"), one.ca) as raw:
        raw.send(b"POST /v1/raises HTTP/1.1\r\nHost: api.test\r\nContent-Length: 100000\r\n\r\nx")
        assert raw.answer().status == 500  # at once, whatever of the body is still to come
    assert api.connections == 0
    assert one.audit("credential.opened") == []
    refused = one.wait_audit("request.refused", len(FORBIDDEN) + 3)
    assert {record["addon"] for record in refused} == {"./my_addon.py:Tries"}
    assert ask(one, "/v1/fine").status == 200
    said = bytes(one.stderr).decode()
    assert "cnry-text-of-an-addon" not in said
    assert "failed in requestheaders of request" in said
    assert "ValueError at my_addon.py:" in said
    assert "it changed method of the request" in said
    assert "it did not end within 0.3 s" in said


def test_what_is_done_behind_the_hook_changes_nothing_of_what_was_granted(proxy: Proxy) -> None:
    one, api, _ = proxy("[./my_addon.py:Tries]", TRIES)
    for _ in range(5):
        ask(one, "/v1/after", method="POST", body=b"abc")
    assert api.requests
    for seen in api.requests:
        assert (seen.method, seen.target.partition("?")[0], seen.get("Host")) == ("POST", "/v1/after", "api.test")


def test_it_may_answer_itself(proxy: Proxy) -> None:
    one, api, _ = proxy("[./my_addon.py:Tries]", TRIES)
    with tunnel(one.address("sidecar"), one.ca) as raw:
        for _ in range(2):  # and the connection goes on
            answer = raw.request("GET /v1/mock HTTP/1.1\r\nHost: api.test\r\n\r\n")
            assert (answer.status, answer.body, answer.get("X-Mine")) == (418, b"teapot", "1")
        # What only this proxy says of itself, an addon cannot say.
        assert (answer.get("X-Ostiary-Error"), answer.get("Proxy-Status"), answer.get("Alt-Svc")) == (None, None, None)
        assert (answer.all("Content-Length"), answer.get("Connection")) == (["6"], None)
        shown = answer.get("X-Request-Id")
        assert raw.request("GET /v1/empty-mock HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 204
        assert raw.request("HEAD /v1/mock HTTP/1.1\r\nHost: api.test\r\n\r\n", method="HEAD").status == 418
    assert ask(one, "/v1/mock", method="POST", body=b"abc").status == 418
    assert api.connections == 0
    records = one.wait_audit("request.refused", 5)
    record = next(record for record in records if record["request_id"] == shown)
    assert (record["status"], record["outcome"], record["addon"]) == (418, "refused", "./my_addon.py:Tries")
    assert "code" not in record
    assert one.audit("credential.opened") == one.audit("request.forwarded") == []


def test_a_hook_that_blocks_is_told_of(proxy: Proxy) -> None:
    one, _, _ = proxy("[./my_addon.py:Tries]", TRIES)
    assert ask(one, "/v1/blocks").status == 200
    assert ask(one, "/v1/blocks").status == 200
    assert bytes(one.stderr).count(b"kept every request waiting for") == 1


def test_answers_fields_alone_and_never_ours(proxy: Proxy) -> None:
    one, api, _ = proxy("[{addon: ./my_addon.py:Replies, timeout: 300ms}]", TRIES)
    answer = ask(one, "/v1/reply-field")
    assert (answer.status, answer.body) == (200, b"hello")
    assert (answer.get("X-Seen"), answer.get("X-Secretive")) == ("yes", None)
    assert (answer.get("X-Ostiary-Error"), answer.get("Alt-Svc")) == (None, None)
    tries = ("status", "length", "stream", "body", "replaced", "gone", "splitting", "request", "raises", "hangs")
    for name in tries:
        answer = ask(one, f"/v1/reply-{name}")
        assert (answer.status, answer.code) == (500, "internal"), name
    assert ask(one, "/v1/reply-kills").status == 403
    for name in ("raises", "field", "body"):
        # The answer has been streamed by then: it is cut before its end, or its connection is.
        with tunnel(one.address("sidecar"), one.ca) as raw:
            raw.send(f"GET /v1/end-{name} HTTP/1.1\r\nHost: api.test\r\n\r\n".encode())
            assert raw.head().status == 200
            assert b"other" not in raw.read_exactly(5)
            assert raw.closed(), name
    assert len(api.requests) == 1 + len(tries) + 1 + 3
    closed = one.wait_audit("credential.closed", len(api.requests))
    assert [record["outcome"] for record in closed] == ["ok", *(["refused"] * (len(tries) + 4))]
    assert {record.get("addon") for record in closed[1:]} == {"./my_addon.py:Replies"}
    assert "cnry-text-of-an-addon" not in bytes(one.stderr).decode()


def test_the_same_over_http2(proxy: Proxy) -> None:
    one, api, key = proxy("[./my_addon.py:Tries, ./my_addon.py:Replies]", TRIES)
    with tunnel(one.address("sidecar"), one.ca, alpn=("h2",)) as raw:
        client = Http2(raw)
        streams = [
            client.send("GET", f"/v1/{name}") for name in ("field", "method", "mock", "reply-field", "reply-raises")
        ]
        found = [client.answer(stream) for stream in streams]
    assert [stream.headers[":status"] for stream in found] == ["200", "500", "418", "200", "500"]
    assert bytes(found[2].body) == b"teapot"
    assert found[3].headers["x-seen"] == "yes"
    assert "x-ostiary-error" not in found[3].headers
    assert sorted(seen.target.partition("?")[0] for seen in api.requests) == [
        "/v1/field", "/v1/reply-field", "/v1/reply-raises",
    ]  # fmt: skip
    assert {seen.get("authorization") for seen in api.requests} == {f"Bearer {key}"}


ORDERED = """
from mitmproxy import http

class First:
    name = "first"
    def requestheaders(self, flow):
        flow.request.headers["X-Way"] = flow.request.headers.get("X-Way", "") + self.name + "."
        if flow.request.path.startswith("/v1/first"):
            flow.response = http.Response.make(403, b"no")
    def responseheaders(self, flow):
        flow.response.headers["X-Way"] = flow.response.headers.get("X-Way", "") + self.name + "."

class Second(First):
    name = "second"
"""


MOURNER = """
import asyncio, pathlib

class Mourner:
    async def error(self, flow):
        await asyncio.sleep(0.3)
        pathlib.Path("mourned").write_text(flow.error.msg)
        raise ValueError("cnry-text-of-an-addon")
"""


def test_an_error_hook_ends_though_its_caller_has_gone(proxy: Proxy, upstream: Callable[..., Upstream]) -> None:
    def trickles(seen: Seen, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        time.sleep(2)

    one, _, _ = proxy("[./my_addon.py:Mourner]", MOURNER, upstream(trickles))
    with tunnel(one.address("sidecar"), one.ca) as raw:
        raw.send(b"GET /v1/x HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert raw.head().status == 200
    assert one.wait_audit("credential.closed")[0]["outcome"] == "client_gone"
    deadline = time.monotonic() + 5
    while b"failed in error" not in bytes(one.stderr):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (one.folder / "mourned").exists()
    assert b"cnry-text-of-an-addon" not in bytes(one.stderr)


def test_several_run_in_order_and_back(proxy: Proxy) -> None:
    one, api, _ = proxy("[./my_addon.py:First, ./my_addon.py:Second]", ORDERED)
    answer = ask(one, "/v1/x")
    assert (api.requests[0].get("X-Way"), answer.get("X-Way")) == ("first.second.", "second.first.")
    assert ask(one, "/v1/first").status == 403
    assert one.wait_audit("request.refused")[0]["addon"] == "./my_addon.py:First"
    assert len(api.requests) == 1
    assert 'ostiary_overhead_seconds_count{stage="addons"}' in one.get("/metrics")[1].decode()


def test_it_sees_granted_requests_alone_and_no_proof(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """A plain request brings its proof in its own head: an addon does not see it."""
    key = json.loads(command("key", "mint", "--workload", "billing", cwd=Path.cwd()).stdout)
    policy = (
        f'workloads: {{billing: {{proofs: [{{key_hash: "{key["hash"]}"}}]}}}}\n'
        "routes: {r: {match: {host: plain.test, port: 80, paths: [/v1]}, allow: billing}}\n"
    )
    api = Upstream(Cleartext())
    try:
        one = ostiary(
            policy,
            start=False,
            listen='[{name: sidecar, bind: "127.0.0.1:0"}]',
            upstreams={"plain.test:80": api.port},
            settings="addons: {addon: ./my_addon.py:Spy, options: {file: spied.jsonl}}\n",
        )
        (one.folder / "my_addon.py").write_text(SPY)
        one.run()
        from tests.harness.client import Raw

        head = f"Host: plain.test\r\nProxy-Authorization: Bearer {key['key']}\r\n\r\n"
        with Raw(one.address("sidecar")) as raw:
            assert raw.request(f"GET http://plain.test/v1 HTTP/1.1\r\n{head}").status == 200
            assert raw.request(f"GET http://plain.test/v2 HTTP/1.1\r\n{head}").status == 403
        spied = (one.folder / "spied.jsonl").read_bytes()
        assert b'"requestheaders"' in spied
        assert b"/v2" not in spied
        assert scan([("spied", spied)], [key["key"]]) == []
    finally:
        api.stop()


def test_the_private_proxy_of_exec_runs_them(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream()
    one = ostiary(
        POLICY,
        start=False,
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/api": {"key": canary()}},
        settings="addons: [./my_addon.py:Tries]\n",
    )
    (one.folder / "my_addon.py").write_text(TRIES)
    ran = subprocess.run(
        [
            sys.executable, "-m", "ostiary", "exec", "--config", "ostiary.yaml", "--",
            "curl", "-sS", "https://api.test/v1/mock", "https://api.test/v1/field",
        ],
        cwd=one.folder,
        env=clean_environment(PYTHONPATH=str(Path(__file__).parents[2])),
        capture_output=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, b"teapothello"), ran.stderr
    assert api.requests[0].get("X-Team") == "blue"


def test_a_process_whose_addon_fails_in_running_does_not_start(ostiary: Callable[..., Ostiary]) -> None:
    one = ostiary(POLICY, start=False, settings="addons: [./my_addon.py:Bad]\n")
    (one.folder / "my_addon.py").write_text(
        "class Bad:\n    def requestheaders(self, flow): ...\n    def running(self): raise OSError('cnry-text')\n"
    )
    ran = command("run", "--config", "ostiary.yaml", cwd=one.folder)
    assert ran.returncode == 78
    assert b"addon ./my_addon.py:Bad failed in running: OSError at my_addon.py:3 in running" in ran.stderr
    assert b"cnry-text" not in ran.stderr
    assert ran.stdout == b""


def test_the_example_of_the_guide(proxy: Proxy) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "addons.md").read_text()
    (code,) = re.findall(r"^```python budget\.py\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    (entry,) = re.findall(r"^  - (\{addon: \./budget\.py:Budget.*\})$", guide, re.MULTILINE)
    one, api, _ = proxy(f"[{entry.replace('./budget.py', './my_addon.py')}]", code)
    answer = ask(one, "/v1/x", method="POST", body=b"a" * 100_000)
    assert (answer.status, answer.get("X-Budget"), api.requests[0].get("X-Team")) == (200, "blue", "blue")
    answer = ask(one, "/v1/x", method="POST", body=b"a" * 100_001)
    assert (answer.status, answer.body, len(api.requests)) == (413, b"too large for our budget\n", 1)
    assert b"requests are marked for team blue" in bytes(one.stderr)


def test_a_websocket_handshake_is_seen_and_its_frames_are_not(proxy: Proxy, upstream: Callable[..., Upstream]) -> None:
    one, api, key = proxy("[./my_addon.py:Tries, ./my_addon.py:Replies]", TRIES, upstream(switching()))
    with tunnel(one.address("sidecar"), one.ca) as raw:
        raw.send(f"{HANDSHAKE.replace('/live?x=1', '/v1/reply-field')}\r\n".encode())
        answer = raw.head()
        assert (answer.status, answer.get("X-Seen"), answer.all("Upgrade")) == (101, "yes", ["websocket"])
        raw.send(b"\x81\x09abcd12345")
        assert raw.read_exactly(11) == b"\x81\x09abcd12345"
    assert api.requests[0].get("Authorization") == f"Bearer {key}"
    for name, seen in (("end-raises", 2), ("upgrade", 2)):
        with tunnel(one.address("sidecar"), one.ca) as raw:
            raw.send(f"{HANDSHAKE.replace('/live?x=1', '/v1/' + name)}X-Drop: a\r\n\r\n".encode())
            if name == "end-raises":
                raw.send(b"\x81\x85abcd12345")
                assert b"12345" not in raw.sock.recv(65536) + raw.sock.recv(65536)
                assert raw.closed()
            else:  # it put other values of what it found there
                assert raw.head().status == 500
        assert len(api.requests) == seen
