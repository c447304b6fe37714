"""`python -m ostiary`, and the `ostiary` script."""

from __future__ import annotations

import sys

from ostiary.cli import run_command


def main() -> int:
    """Runs the command line of this process."""
    return run_command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
