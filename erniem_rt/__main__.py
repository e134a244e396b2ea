"""``python -m erniem_rt ARTIFACT``: JSON lines in, JSON lines out."""

from __future__ import annotations

import sys

from erniem_rt._cli import main

if __name__ == "__main__":
    sys.exit(main())
