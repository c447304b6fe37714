"""The settings of a process (`ostiary.yaml`): a frozen model, and loading it with every fault told at once."""

from ostiary.settings.load import Texts, load_all, load_settings, load_to_run
from ostiary.settings.model import Settings

__all__ = ["Settings", "Texts", "load_all", "load_settings", "load_to_run"]
