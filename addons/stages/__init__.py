"""Thin mitmproxy addons, one for each stage: hooks read facts from the exchange, call the pure function beside them and
put what it returns.

The only part of `addons/` that knows mitmproxy. A hook that raises ends the request through the dispatcher; none of
them answers for itself.
"""
