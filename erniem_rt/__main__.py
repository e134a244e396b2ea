"""``python -m erniem_rt``, and the console script ``erniem-rt``."""

from __future__ import annotations

import sys

from erniem_rt.cli import run

if __name__ == "__main__":
    sys.exit(run())
