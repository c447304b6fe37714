"""Signatures on the way in: of workloads, and of the senders of webhooks.

Pure functions of the request as it came (`received.py`), in two steps: a `Claim` is what the request says of itself, read
before any key is; the claim then holds, or does not, for the keys that were opened for it. `addons/stages/verification.py`
does both in their turn. Nothing here knows a network or a clock, apart from `certificates.py`, which fetches those of SNS.
"""
