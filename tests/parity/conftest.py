"""The reference (transformers 4.57.x) beside our classes, on one set of random weights."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import erniem_export.modeling as erniem_modeling

CLASS_NAMES = {
    "base": "ErnieMModel",
    "cls": "ErnieMForSequenceClassification",
    "ner": "ErnieMForTokenClassification",
    "mc": "ErnieMForMultipleChoice",
    "qa": "ErnieMForQuestionAnswering",
    "ie": "ErnieMForInformationExtraction",
}

# Small, with no two sizes alike, so that a swapped axis cannot go unseen.
TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 35,
}

Pair = tuple[nn.Module, nn.Module]


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """Return the reference's modeling module; skip the test where transformers no longer has it."""
    return pytest.importorskip(
        "transformers.models.deprecated.ernie_m.modeling_ernie_m",
        reason="needs transformers 4.57, the last line that has ErnieM",
        exc_type=ImportError,
    )


@pytest.fixture(params=list(CLASS_NAMES))
def head(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_pair(reference: ModuleType) -> Callable[..., Pair]:
    """Return a builder of ``(reference model, our model)`` with the same random weights, in eval mode."""

    def build(head: str, add_pooling_layer: bool | None = None, **overrides: Any) -> Pair:
        name = CLASS_NAMES[head]
        options = {} if add_pooling_layer is None else {"add_pooling_layer": add_pooling_layer}
        theirs = getattr(reference, name)(reference.ErnieMConfig(**TINY | overrides), **options)
        _randomize(theirs)
        ours = getattr(erniem_modeling, name)(erniem_modeling.ErnieMConfig(**TINY | overrides), **options)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        return theirs.eval(), ours.eval()

    return build


def _randomize(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter values that matter: biases far from 0, norms far from the identity, sharp attention."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            values = 0.3 * values + ("norm" in name and name.endswith("weight"))
        elif "embeddings" not in name:
            values *= (2 if "q_proj" in name or "k_proj" in name else 1) / parameter.shape[1] ** 0.5
        with torch.no_grad():
            parameter.copy_(values)
