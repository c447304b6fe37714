"""How Ostiary runs: command line, settings, certificate authority, engines, and the composition root (`serve`)."""

__version__ = "0.1.0"
