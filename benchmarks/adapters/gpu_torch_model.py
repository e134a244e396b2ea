"""PyTorch on a GPU with the package's own class, which computes what transformers 4's does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.adapters.base import Array, PaddedAdapter
from erniem_export.checkpoint import load_checkpoint

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchModel(PaddedAdapter):
    """``kind``: ``eager`` keeps the attention weights, as the reference always does; ``sdpa`` has PyTorch's fused
    attention; ``compile`` compiles that.
    """

    def __init__(self, artifact: Path, threads: int, device: str, precision: str, kind: str) -> None:
        torch.set_num_threads(threads)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self._device, self._options = device, {"output_attentions": True} if kind == "eager" else {}
        model = load_checkpoint(str(artifact)).model.eval().to(device, _DTYPES[precision])
        self._model: Any = torch.compile(model) if kind == "compile" else model

    @torch.inference_mode()
    def run_batch(self, input_ids: Array, attention_mask: Array, output: str) -> Array:
        ids, mask = (torch.from_numpy(array).to(self._device) for array in (input_ids, attention_mask))
        found: Array = self._model(input_ids=ids, attention_mask=mask, **self._options)[output].float().cpu().numpy()
        return found


load = TorchModel
