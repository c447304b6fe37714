"""A small HTTP/2 client over a tunnel."""

from __future__ import annotations

from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events

from tests.harness.client import Raw


@dataclass
class Stream:
    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None
    """The error code of a reset."""


class Http2:
    """A small client over a tunnel."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self.conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.conn.initiate_connection()
        self.streams: dict[int, Stream] = {}

    def send(
        self,
        method: str,
        path: str,
        *headers: tuple[str, str],
        body: bytes | None = None,
        authority: str = "api.test",
        trailers: tuple[tuple[str, str], ...] = (),
        ends: bool = True,
    ) -> int:
        """Sends a request: without `body` none, unless `ends` says that one will follow."""
        stream = self.conn.get_next_available_stream_id()
        self.streams[stream] = Stream()
        pseudo = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)]
        self.conn.send_headers(stream, [*pseudo, *headers], end_stream=body is None and ends)
        if body is not None:
            self.body(stream, body, trailers)
        self.raw.send(self.conn.data_to_send())
        return stream

    def body(self, stream: int, body: bytes, trailers: tuple[tuple[str, str], ...] = ()) -> None:
        while body:
            window = min(self.conn.local_flow_control_window(stream), self.conn.max_outbound_frame_size, len(body))
            if not window:
                self.raw.send(self.conn.data_to_send())
                self.receive()
                continue
            self.conn.send_data(stream, body[:window])
            body = body[window:]
        if trailers:
            self.conn.send_headers(stream, trailers, end_stream=True)
        else:
            self.conn.end_stream(stream)

    def receive(self) -> None:
        data = self.raw.sock.recv(65536)
        assert data, "closed"
        for event in self.conn.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived) and event.headers:
                self.streams[event.stream_id].headers = {str(name): str(value) for name, value in event.headers}
            elif isinstance(event, h2.events.DataReceived):
                self.streams[event.stream_id].body += event.data
                self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived) and event.headers:
                self.streams[event.stream_id].trailers = {str(name): str(value) for name, value in event.headers}
            elif isinstance(event, h2.events.StreamEnded):
                self.streams[event.stream_id].ended = True
            elif isinstance(event, h2.events.StreamReset):
                self.streams[event.stream_id].ended = True
                self.streams[event.stream_id].reset = event.error_code
        self.raw.send(self.conn.data_to_send())

    def answer(self, stream: int) -> Stream:
        while not self.streams[stream].ended:
            self.receive()
        return self.streams[stream]
