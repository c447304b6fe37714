"""How a caller's request heads are read: bytes in, requests out, or a refusal.

Nothing here knows a connection. The grammar is the strict edge's (`addons/edge.py`), the same as for mitmproxy's
engine; here is where a head ends, and where its request goes.
"""

from __future__ import annotations

from mitmproxy import http
from mitmproxy.net.http import url

from addons.edge import HeadLimits, judge_head, judge_partial
from addons.exchange import Tunnel
from addons.refusal import Code, Refusal
from ostiary.engines.mitm.http1 import MAX_LEAD_BYTES, request_of


class HeadReader:
    """Reads the heads of one connection.

    Args:
        limits: sizes.
        reverse: whether it came in on a reverse listener: then the route says where requests go.
    """

    __slots__ = ("_lead_bytes", "_limits", "_reverse")

    def __init__(self, limits: HeadLimits, *, reverse: bool = False) -> None:
        self._limits = limits
        self._reverse = reverse
        self._lead_bytes = 0

    def read(self, raw: bytes, tunnel: Tunnel | None) -> tuple[http.Request | None, int | None, bytes]:
        """Reads one head.

        Args:
            raw: at least one byte, all that is there.
            tunnel: that the bytes came through.

        Returns:
            The request, or None while its head is not there; the size of its body in bytes, None where it is chunked;
            what is behind the head, or all there is of it.

        Raises:
            Refusal: the bytes are no head, or can become none.
        """
        if raw[0] in b"\r\n":
            raw = self._without_lead(raw)
        end = raw.find(b"\r\n\r\n")
        if end < 0:
            judge_partial(raw, self._limits)
            return None, 0, raw
        head = judge_head(raw[: end + 4], tunnelled=tunnel is not None or self._reverse, limits=self._limits)
        self._lead_bytes = 0
        request = request_of(head)
        if request.data.method != b"CONNECT" and not self._reverse:
            address(request, tunnel)
        return request, head.size, raw[end + 4 :]

    def _without_lead(self, raw: bytes) -> bytes:
        """Without empty lines before a request line: they are legal (RFC 9112 section 2.2) and mean nothing."""
        stripped = raw.lstrip(b"\r\n")
        self._lead_bytes += len(raw) - len(stripped)
        if self._lead_bytes > MAX_LEAD_BYTES:
            raise Refusal(Code.BAD_REQUEST, "There are too many empty lines before a request.", close=True)
        return stripped


def address(request: http.Request, tunnel: Tunnel | None) -> None:
    """Tells a request where it goes, as mitmproxy does: to the tunnel's authority, or to that of its absolute form."""
    data = request.data
    if tunnel is not None:
        data.scheme = b"https"
        data.host, data.port = tunnel.authority.host, tunnel.authority.port
        return
    scheme, host, port, path = url.parse(data.path)
    data.scheme, data.host, data.port, data.path = scheme, host.decode("ascii", "replace"), port, path
