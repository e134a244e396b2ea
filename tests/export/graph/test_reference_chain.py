"""From the reference's own classes to the artifact: what ONNX Runtime answers is what transformers 4.57 answers."""

import numpy as np
import pytest
import torch

from erniem_export.gate.cases import build_cases
from erniem_rt.session import Session


@pytest.fixture(scope="module")
def reference():
    """Return the reference's modeling module; skip the test where transformers no longer has it."""
    return pytest.importorskip(
        "transformers.models.deprecated.ernie_m.modeling_ernie_m",
        reason="needs transformers 4.57, the last line that has ErnieM",
        exc_type=ImportError,
    )


def test_artifact_computes_what_the_reference_computes(head, exported, reference):
    artifact = exported(head)
    config = reference.ErnieMConfig(**artifact.model.config.to_dict())
    theirs = getattr(reference, type(artifact.model).__name__)(config).eval()
    theirs.load_state_dict(artifact.model.state_dict(), strict=True)
    with Session(artifact.path) as session:
        for case in build_cases(session.manifest):
            with torch.no_grad():
                expected = theirs(**{name: torch.from_numpy(array) for name, array in case.feeds.items()})
            for name, found in session.run(case.feeds).items():
                values = expected[name].numpy()
                assert found.shape == values.shape
                scale = max(1.0, np.abs(values).max())
                np.testing.assert_allclose(found, values, rtol=0, atol=1e-5 * scale, err_msg=f"{name} on {case.name}")
