"""The admin listener: for now its three probes."""

from ostiary.admin.probes import Health, start_probes

__all__ = ["Health", "start_probes"]
