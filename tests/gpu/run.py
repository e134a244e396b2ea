"""Run the tests of this folder on a device and fail if none ran: ``make test-gpu``.

Usage: python tests/gpu/run.py [--device cuda|cuda:N|cpu] [--budget SECONDS] [pytest's arguments]
The most telling tests come first. What the budget has no time for is skipped and named; 0 is no limit. ``--device cpu``
tries the tests out.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
DEVICE = "ERNIEM_GPU_TEST_DEVICE"
BUDGET = 440.0


class TimedRun:
    """Orders the tests, counts those that ran to their end, whatever came out, and skips the rest when time is up."""

    def __init__(self, budget: float, clock: Any = time.monotonic) -> None:
        self.ran, self.left_out = 0, dict[str, list[str]]()
        self._budget, self._clock, self._started = budget, clock, clock()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the most telling tests first; those alike stay in their order."""
        items.sort(key=lambda item: rank(getattr(item, "callspec", None)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip what there is no time for."""
        if self._budget and self._clock() - self._started > self._budget:
            test, _, parameters = item.name.rstrip("]").partition("[")
            self.left_out.setdefault(test, []).append(parameters or "once")
            pytest.skip(f"the time budget of {self._budget:.0f} s was spent")

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count what was called and not skipped."""
        self.ran += report.when == "call" and report.outcome != "skipped"


def rank(callspec: Any) -> int:
    """When a test comes: kernels and ``qa`` in fp16 with every engine, its other precisions, then the other heads."""
    given = {} if callspec is None else callspec.params
    return 2 * (given.get("head", "qa") != "qa") + (given.get("precision", "fp16") != "fp16")


def main(argv: list[str] | None = None) -> int:
    """Return pytest's exit code; 1 if everything passed and nothing ran."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds; 0 for no limit")
    options, arguments = parser.parse_known_args(argv)
    os.environ[DEVICE] = options.device
    timed = TimedRun(options.budget)
    code = int(pytest.main([str(HERE), "-ra", *arguments], plugins=[timed]))
    for test, parameters in timed.left_out.items():
        print(
            f"left out, because the time budget of {options.budget:.0f} s was used up: {test}: {', '.join(parameters)}"
        )
    if code == pytest.ExitCode.NO_TESTS_COLLECTED or (code == pytest.ExitCode.OK and not timed.ran):
        print(f"error: no test ran on {options.device}, so nothing is proven", file=sys.stderr)
        return 1
    print(f"{timed.ran} tests ran on {options.device}")
    return code


if __name__ == "__main__":
    sys.exit(main())
