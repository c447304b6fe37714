"""The fast lane: HTTP/1.1 on asyncio protocols, driving the same stages as mitmproxy's engine with the same flows.

`caller.py` is the caller's connection, `link.py` an upstream's, `turn.py` one request between the two. What is no
HTTP/1.1 goes to `relay.py` (bytes) or `handover.py` (HTTP/2, by mitmproxy's layers).
"""
