"""Run the tests of this folder on a device and fail if none ran: ``make test-gpu``.

Usage: python tests/gpu/run.py [--device cuda|cuda:N|cpu] [pytest's arguments]; --device cpu tries them out.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
DEVICE = "ERNIEM_GPU_TEST_DEVICE"


class Counter:
    """Counts the tests that ran to their end, whatever came out."""

    def __init__(self) -> None:
        self.ran = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count what was called and not skipped."""
        self.ran += report.when == "call" and report.outcome != "skipped"


def main(argv: list[str] | None = None) -> int:
    """Return pytest's exit code; 1 if everything passed and nothing ran."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    options, arguments = parser.parse_known_args(argv)
    os.environ[DEVICE] = options.device
    counter = Counter()
    code = int(pytest.main([str(HERE), "-ra", *arguments], plugins=[counter]))
    if code == pytest.ExitCode.NO_TESTS_COLLECTED or (code == pytest.ExitCode.OK and not counter.ran):
        print(f"error: no test ran on {options.device}, so nothing is proven", file=sys.stderr)
        return 1
    print(f"{counter.ran} tests ran on {options.device}")
    return code


if __name__ == "__main__":
    sys.exit(main())
