"""``python -m erniem_export``: the same as ``erniem-export``, for when its script is not on the path."""

from __future__ import annotations

import sys

from erniem_export.cli import main

if __name__ == "__main__":
    sys.exit(main())
