"""Whether a GPU runs a plan, settled by trying: lists of the GPUs that a release builds for name those that it knew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from erniem_rt import EngineUnavailableError, ErnieMError, Session

# What Session says of a GPU that the manifest does not list, before TensorRT is asked.
NOT_LISTED = "was built for GPUs of compute capability"


@dataclass(frozen=True)
class Outcome:
    """``listed``: the manifest names the GPU. ``refusal``: why it does not run the plan, in one line, or None."""

    listed: bool
    refusal: str | None = None

    def __str__(self) -> str:
        named = "" if self.listed else ", which its manifest does not list"
        return f"the plan runs on this GPU{named}" if self.refusal is None else f"does not run here: {self.refusal}"


def try_plan(plan: Path, device: str) -> Outcome:
    """Open and run the plan; where only the list of GPUs is against it, leave it to TensorRT.

    Raises:
        ErnieMError: It does not run although the GPU is listed, or could not be tried.
    """
    try:
        _run(plan, device, trust=False)
    except EngineUnavailableError as error:
        if NOT_LISTED not in str(error):
            raise
    else:
        return Outcome(listed=True)
    try:
        _run(plan, device, trust=True)
    except ErnieMError as error:
        return Outcome(listed=False, refusal=str(error))
    return Outcome(listed=False)


def _run(plan: Path, device: str, *, trust: bool) -> None:
    """Answer a short batch, of a head whose ids have two axes."""
    with Session(plan, device=device, trust_plan=trust) as session:
        for name, array in session.run(input_ids=[[5, 6, 7], [8, 9, 1]]).items():
            if not np.isfinite(array).all():
                raise AssertionError(f"{plan} answers {name} with values that are not finite")
