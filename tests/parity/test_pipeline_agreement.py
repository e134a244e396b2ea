"""Every pipeline beside the reference on nano's held-out texts: what ``benchmarks/pipeline_agreement.py`` reports.

Where the two differ on purpose, see ``test_pipeline_differences_*.py``.
"""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.parity.agreement import COMPARISONS, TOLERANCE, Artifact, Comparison, HeldOut

# transformers hands tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.mark.slow
@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda comparison: comparison.name)
def test_pipelines_agree(
    comparison: Comparison, reference: ModuleType, nano_artifact: Artifact, nano_heldout: HeldOut
) -> None:
    tally = comparison.run(nano_artifact, nano_heldout, **comparison.arguments)

    assert tally.differing[:3] == []
    assert tally.same == tally.inputs >= 200
    assert len(tally.languages) == 6
    assert tally.scores >= 200
    assert tally.largest <= TOLERANCE
