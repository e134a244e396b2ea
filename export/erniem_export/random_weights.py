"""Seeded random models for benchmarks, trials and tests."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from erniem_export.configuration import ErnieMConfig

__all__ = ["SIZES", "random_config", "randomize"]

# base and large are the released sizes; tiny is small enough for a test.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 1000,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    },
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}


def random_config(size: str, head: str) -> ErnieMConfig:
    """Return the config of ``tiny``, ``base`` or ``large``; two labels for ``qa``, three elsewhere."""
    return ErnieMConfig(**SIZES[size], num_labels=2 if head == "qa" else 3)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> None:
    """Overwrite every parameter with seeded random values, so that every part of the model affects its output.

    New models have zero biases, trivial LayerNorms and almost uniform attention: a missing bias or a wrong mask hardly
    changes their output. Here biases and norms are random too, queries and keys are scaled up for peaked
    attention, and embeddings are small, so that a LayerNorm's epsilon matters.
    """
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: torch.Tensor, std: float, mean: float = 0.0) -> None:
        tensor.normal_(mean, std, generator=generator)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            gain = 2.0 if name.endswith(("q_proj", "k_proj")) else 1.0
            fill(module.weight, gain / math.sqrt(module.in_features))
            fill(module.bias, 0.2)
        elif isinstance(module, nn.LayerNorm):
            fill(module.weight, 0.2, mean=1.0)
            fill(module.bias, 0.2)
        elif isinstance(module, nn.Embedding):
            fill(module.weight, 0.05)
            if module.padding_idx is not None:
                module.weight[module.padding_idx] = 0.0
