"""Scripted vendor APIs: as much of OpenAI, Anthropic and Stripe as their SDKs need, and a WebSocket that echoes."""

from __future__ import annotations

import base64
import hashlib
import json

from tests.harness.upstream import Seen, Wire


def events(wire: Wire, *pieces: tuple[str | None, object]) -> None:
    """Server-sent events, one chunk each."""
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for name, data in pieces:
        text = data if isinstance(data, str) else json.dumps(data)
        wire.chunk((f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode())
    wire.chunk(b"")


def answer_json(wire: Wire, body: object) -> None:
    wire.answer(200, json.dumps(body).encode(), (("Content-Type", "application/json"),))


def openai(seen: Seen, wire: Wire) -> None:
    """Chat completions, whole and in pieces."""
    assert (seen.method, seen.target) == ("POST", "/v1/chat/completions")
    common = {"id": "1", "created": 1, "model": "m"}
    if json.loads(seen.body).get("stream"):
        kind = {**common, "object": "chat.completion.chunk"}
        deltas = [{**kind, "choices": [{"index": 0, "delta": {"content": word}}]} for word in ("hel", "lo")]
        events(wire, *((None, delta) for delta in deltas), (None, "[DONE]"))
        return
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}
    answer_json(wire, {**common, "object": "chat.completion", "choices": [choice]})


def anthropic(seen: Seen, wire: Wire) -> None:
    """Messages, whole and in pieces."""
    assert (seen.method, seen.target) == ("POST", "/v1/messages")
    message = {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "stop_reason": None,
        "stop_sequence": None,
    }
    usage = {"input_tokens": 1, "output_tokens": 1}
    if json.loads(seen.body).get("stream"):
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        deltas = [
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            for word in ("hel", "lo")
        ]
        steps: list[dict[str, object]] = [
            {"type": "message_start", "message": {**message, "content": [], "usage": usage}},
            block,
            *deltas,
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
            {"type": "message_stop"},
        ]
        events(wire, *((str(step["type"]), step) for step in steps))
        return
    answer_json(wire, {**message, "content": [{"type": "text", "text": "hello"}], "usage": usage})


def stripe(seen: Seen, wire: Wire) -> None:
    """Customers: create and list."""
    customer = {"id": "cus_1", "object": "customer", "name": "Ada"}
    if seen.method == "POST":
        assert seen.get("Idempotency-Key") == "order-117"
        assert seen.body == b"name=Ada"
        answer_json(wire, customer)
    else:
        answer_json(wire, {"object": "list", "url": "/v1/customers", "has_more": False, "data": [customer]})


def websocket(seen: Seen, wire: Wire) -> None:
    """Takes the handshake, sends each short text frame back, and answers a close (RFC 6455)."""
    nonce = (seen.get("Sec-WebSocket-Key") or "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(nonce.encode(), usedforsecurity=False).digest()).decode()
    head = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    wire.send(f"HTTP/1.1 101 Switching Protocols\r\n{head}".encode())
    buffer = b""
    while not wire.closed:
        while len(buffer) < 6 or len(buffer) < 6 + (buffer[1] & 0x7F):
            data = wire.sock.recv(65536)
            if not data:
                return
            buffer += data
        length = buffer[1] & 0x7F
        mask, masked = buffer[2:6], buffer[6 : 6 + length]
        wire.send(buffer[:1] + bytes([length]) + bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked)))
        if buffer[0] & 0x0F == 8:
            wire.close()
        buffer = buffer[6 + length :]


def openai_files(seen: Seen, wire: Wire) -> None:
    """Takes one file of a multipart form."""
    assert (seen.method, seen.target) == ("POST", "/v1/files")
    boundary = (seen.get("Content-Type") or "").partition("boundary=")[2].strip('"').encode()
    parts = seen.body.split(b"--" + boundary)
    (content,) = (part.partition(b"\r\n\r\n")[2][:-2] for part in parts if b'name="file"' in part)
    assert content == b"a note\n" * 1000
    answer_json(wire, {"id": "file-1", "object": "file", "bytes": len(content), "created_at": 1, "filename": "notes.txt", "purpose": "assistants", "status": "processed"})  # fmt: skip


def gemini(seen: Seen, wire: Wire) -> None:
    """Generated content, whole and in pieces."""

    def candidate(text: str) -> dict[str, object]:
        return {"candidates": [{"content": {"role": "model", "parts": [{"text": text}]}}]}

    if seen.target == "/v1beta/models/m:streamGenerateContent?alt=sse":
        events(wire, *((None, candidate(word)) for word in ("hel", "lo")))
        return
    assert (seen.method, seen.target) == ("POST", "/v1beta/models/m:generateContent")
    answer_json(wire, candidate("hello"))


def github(seen: Seen, wire: Wire) -> None:
    """Who one is."""
    assert (seen.method, seen.target) == ("GET", "/user")
    answer_json(wire, {"login": "ada", "id": 1, "url": "https://api.github.com/users/ada"})


def vault(seen: Seen, wire: Wire) -> None:
    """One secret of a KV version 2 mount."""
    assert (seen.method, seen.target) == ("GET", "/v1/secret/data/app")
    metadata = {"version": 1, "created_time": "2026-01-01T00:00:00Z", "deletion_time": "", "destroyed": False}
    answer_json(wire, {"data": {"data": {"greeting": "hello"}, "metadata": metadata}})


def aws_chunks(body: bytes) -> bytes:
    """The content of an upload in AWS's own chunks, whose last trailer is a checksum."""
    content = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        if not length:
            break
        content, body = content + rest[:length], rest[length + 2 :]
    return content


class Objects:
    """A store of objects that asks for a key in `x-api-key` and knows no signatures."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def __call__(self, seen: Seen, wire: Wire) -> None:
        assert seen.get("Authorization") is None
        path = seen.target.partition("?")[0]
        if seen.method == "PUT":
            self._kept[path] = aws_chunks(seen.body) if seen.get("x-amz-decoded-content-length") else seen.body
            wire.answer(200, b"")
        else:
            wire.answer(200, self._kept[path])
