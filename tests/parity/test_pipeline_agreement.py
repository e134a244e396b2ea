"""Every pipeline beside the reference on a third of the texts of ``benchmarks/pipeline_agreement.py``.

Where the two differ on purpose, see ``test_pipeline_differences_*.py``.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.parity.agreement import COMPARISONS, TOLERANCE

# transformers hands tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.mark.slow
@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda comparison: comparison.name)
def test_pipelines_agree(comparison, reference, nano_artifact, nano_heldout):
    def third(task: str, seed: int, count: int, *options: float) -> list[Any]:
        return nano_heldout(task, seed, count // 3, *options)

    tally = comparison.run(nano_artifact, third, **comparison.arguments)

    assert tally.differing[:3] == []
    assert tally.same == tally.inputs >= 60
    assert len(tally.languages) == 6
    assert tally.scores >= 60
    assert tally.largest <= TOLERANCE
