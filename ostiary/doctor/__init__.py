"""`ostiary doctor`: walks the chain that a request walks and says how to mend each break.

One module a group of checks; `chain.py` puts them in order and skips what stands on a check that failed.
"""
