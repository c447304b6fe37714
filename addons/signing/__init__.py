"""Signs requests: computes a credential from the bytes that leave and a secret (`policies/sign.py` says which).

Everything here is a function of values. A signer is given the request as it will leave, and gives back the same request
with its signature in it; whatever it cannot sign it refuses. `apply.Signing` is the door, one module a scheme lies behind
it; `taken` says what the caller's request loses to it.
"""
