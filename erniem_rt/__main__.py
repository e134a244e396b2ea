"""``erniem-rt ARTIFACT``, or ``python -m erniem_rt ARTIFACT``: JSON lines in, JSON lines out."""

from __future__ import annotations

import sys

from erniem_rt._cli import main
from erniem_rt._signals import stopped_by_signals

__all__ = ["run"]


def run() -> int:
    """Run the command; SIGTERM and SIGHUP clean up as Ctrl-C does, and exit with 143 and 129."""
    with stopped_by_signals():
        return main()


if __name__ == "__main__":
    sys.exit(run())
