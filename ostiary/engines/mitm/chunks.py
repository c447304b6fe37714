"""Chunked bodies for mitmproxy's HTTP/1 connections, read by the same strict reader as the fast lane's
(`ostiary/engines/framing.py`): in bounded memory, trailers kept apart.
"""

from __future__ import annotations

import h11
from h11._receivebuffer import ReceiveBuffer

from addons.head import Fields
from ostiary.engines.framing import Chunked, Malformed


class StrictChunks:
    """Takes a chunked body apart. Called with the buffer until it has nothing more to give, as h11's readers are."""

    def __init__(self) -> None:
        self._chunks = Chunked()
        self._ended = False

    @property
    def trailers(self) -> Fields:
        return self._chunks.trailers

    def __call__(self, buffer: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        if not self._ended:
            held = buffer.maybe_extract_at_most(len(buffer)) if len(buffer) else None
            if held is None:
                return None
            try:
                payload, rest = self._chunks.read(bytes(held))
            except Malformed as error:
                raise h11.LocalProtocolError(str(error)) from None
            if rest is not None:
                self._ended = True
                buffer += rest
            if payload:
                return h11.Data(data=payload)
        return h11.EndOfMessage() if self._ended else None

    def read_eof(self) -> h11.EndOfMessage:
        raise h11.RemoteProtocolError("the body was cut off")
