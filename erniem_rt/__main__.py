"""``python -m erniem_rt ARTIFACT``: JSON lines in, JSON lines out."""

from __future__ import annotations

import sys

from erniem_rt._cli import main
from erniem_rt._signals import stopped_by_signals

if __name__ == "__main__":
    with stopped_by_signals():
        sys.exit(main())
