"""Keeps the credential out of the answer: the first stage that sees one, so that not even a user's addon is shown it."""

from __future__ import annotations

from mitmproxy import http

from addons.exchange import Exchange
from addons.head import Fields
from addons.reply.scrub import Scrub, scrub_head, scrub_trailers
from addons.stages.registry import Registry

_CHUNKED = (b"Transfer-Encoding", b"chunked")


class ScrubStage:
    """Puts `BodyScrub`, where the request carried a credential and the route scrubs."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        scrub = exchange.find(Scrub)
        response = flow.response
        if scrub is None or exchange.refused is not None or response is None:
            return
        data = response.data
        before = data.headers.fields
        head = scrub_head(scrub, exchange.head.method, data.status_code, data.reason, before)
        exchange.redactions = head.redactions
        fields = head.fields
        if head.body.decodes:
            exchange.reframed = True
            if flow.request.data.http_version == b"HTTP/1.1" and data.http_version != b"HTTP/2.0":
                fields = (*fields, _CHUNKED)
                data.http_version = b"HTTP/1.1"  # HTTP/1.0 knows no chunks
        data.reason = head.reason
        if fields is not before:
            response.headers.fields = fields
        exchange.put(head.body)


def clean_trailers(exchange: Exchange | None, fields: Fields) -> Fields:
    """An answer's trailers without the credential."""
    if exchange is None:
        return fields
    kept, count = scrub_trailers(exchange.find(Scrub), fields)
    exchange.redactions += count
    return kept
