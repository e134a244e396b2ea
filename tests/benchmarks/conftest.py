"""A small set of results with one engine of each fate, and clients that are no processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).with_name("results.json")


@pytest.fixture
def results() -> dict[str, Any]:
    """Return the fixture: most engines measured, one wrong, one that crashed in a workload, two with a gap."""
    content: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return content
