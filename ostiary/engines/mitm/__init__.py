"""mitmproxy's engine, lean: its protocol layers, driven by a handler, a dispatcher and layers of our own that fail
closed.

What mitmproxy does by default and why that is changed here stands in docs/adr/0002-mitmproxy-engine.md; each such point
has a test.
"""
