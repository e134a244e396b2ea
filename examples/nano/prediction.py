"""Logits of a stored checkpoint for many rows of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from network import HEADS

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from erniem_export.modeling import ErnieMPreTrainedModel
    from erniem_rt import Tokenizer

_ROWS = 48


def load_checkpoint(folder: Path, head: str) -> ErnieMPreTrainedModel:
    """The model of this head in float32, ready to predict."""
    return HEADS[head].from_pretrained(folder, dtype=torch.float32).eval()


def predict(
    model: ErnieMPreTrainedModel, tokenizer: Tokenizer, task: str, texts: list[tuple[str, str | None]]
) -> list[Tensor]:
    """The model's logits for each row, ``(outputs, ...)`` without padding, in the order of ``texts``."""
    encodings = [tokenizer(*pair).input_ids for pair in texts]
    order = sorted(range(len(texts)), key=lambda i: len(encodings[i]))
    results: dict[int, Tensor] = {}
    for start in tqdm(range(0, len(order), _ROWS), desc=task, mininterval=2, leave=False):
        chosen = order[start : start + _ROWS]
        longest = max(len(encodings[i]) for i in chosen)
        ids = torch.tensor([encodings[i] + [1] * (longest - len(encodings[i])) for i in chosen])
        inputs = ids.unsqueeze(1) if task == "mc" else ids
        with torch.inference_mode():
            output = model(input_ids=inputs, attention_mask=(inputs != 1).long())
        logits = torch.stack([output.start_logits, output.end_logits], 1) if task in ("qa", "ie") else output.logits
        for row, i in enumerate(chosen):
            results[i] = _without_padding(logits[row], len(encodings[i]), task)
    return [results[i] for i in range(len(texts))]


def _without_padding(logits: Tensor, length: int, task: str) -> Tensor:
    if task in ("qa", "ie"):
        return logits[:, :length]
    return logits[:length] if task == "ner" else logits
