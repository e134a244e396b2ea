"""Memory that only a large run needed is given back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import erniem_rt
from erniem_rt import InvalidInputError
from erniem_rt.engines import onnxruntime

MB = 1 << 20
STATUS = Path("/proc/self/statm")


def resident() -> int:
    return int(STATUS.read_text().split()[1]) * 4096 // MB


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc")
@pytest.mark.parametrize(("shrink", "kept"), [(None, False), (True, False), (False, True)])
def test_what_a_large_run_took_is_given_back(
    nano_artifact: Callable[[str], Path], shrink: bool | None, kept: bool
) -> None:
    with erniem_rt.Session(nano_artifact("qa"), threads=2, shrink_memory=shrink) as session:
        small = np.full((1, 8), 5)
        session.run(input_ids=small)
        before = resident()
        session.run(input_ids=np.full((16, 512), 5))  # takes about 250 MB, and of an onnxruntime before 1.30 less
        session.run(input_ids=small)
        session.run(input_ids=small)
        assert (resident() - before > 60) is kept


def test_when_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ort:
        class RunOptions:
            def add_run_config_entry(self, name: str, value: str) -> None:
                assert (name, value) == ("memory.enable_memory_arena_shrinkage", "cpu:0")

    class Session:
        def run(self, outputs: list[str], feeds: Any, options: Any) -> list[bool]:
            return [options is not None]

    def shrinks(shrink: bool | None, sizes: list[int]) -> list[bool]:
        runs = onnxruntime.ShrinkingRuns(Ort, Session(), shrink)
        return [bool(runs.run([], {"attention_mask": np.ones((1, size))})[0]) for size in sizes]

    sizes = [8192, 8192, 4096, 2048, 2048, 10, 3000, 10, 4096, 1024, 4096, 4096]
    expected = [False, False, False, True, False, False, False, False, False, True, False, False]
    assert shrinks(None, sizes) == expected
    assert shrinks(True, sizes) == [True] * len(sizes)
    assert shrinks(False, sizes) == [False] * len(sizes)


def test_it_is_for_graphs_on_a_cpu(nano_artifact: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidInputError, match="shrink_memory=True needs device='cpu', got device='cuda:0'"):
        erniem_rt.Session(nano_artifact("qa"), device="cuda", shrink_memory=True)
