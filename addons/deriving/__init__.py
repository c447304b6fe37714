"""Derived tokens: what `derive:` makes of stored secrets, by asking a token endpoint or by signing here.

One file a grant, each two pure functions: what is asked, and what an answer means (`grants.py` is the table of them).
`asking.py` is the one way to an endpoint, `tokens.py` the one memory: flights, renewal, failures. A route sees neither:
it sees a `TokenSource` (`source.py`).
"""
