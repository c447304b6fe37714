"""Who calls: one file a proof kind, and `prove`, which puts them together into one workload identity."""

from addons.identity.prove import prove, still_proven

__all__ = ["prove", "still_proven"]
