"""Where along the layers do the graph and the PyTorch model part?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import nn

from erniem_export.onnx_export import open_session
from erniem_export.parity.measures import Thresholds, measure

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from erniem_export.modeling import ErnieMPreTrainedModel
    from erniem_export.parity.cases import Case

__all__ = ["first_difference"]


def first_difference(artifact: Path, model: ErnieMPreTrainedModel, case: Case, limits: Thresholds) -> str:
    """Say from which part of the model on the numbers differ, as the end of a sentence; empty if it cannot be told.

    Every part of the encoder ends in a LayerNorm, which the graph and the model know by the name of its weight.
    """
    expected = _model_norms(model, case)
    try:
        found = _graph_norms(artifact, case)
    # Whatever the engine says of the edited graph, it is the gate's findings that must be reported.
    except Exception:
        return ""
    if not found:
        return ""
    for name, values in expected.items():
        if name not in found:
            return f": it has no {name}"
        if found[name].shape != values.shape:
            return ""
        if measure(found[name], values).excess(limits) > 1.0:
            return f", first in {_part(name)}"
    return ", after the encoder"


def _part(norm: str) -> str:
    """Name what lies before a LayerNorm: ``encoder.layers.3.norm1`` closes the self-attention of layer 3."""
    *_, layer, last = norm.split(".")
    if last == "layer_norm":
        return "the embeddings"
    return f"the {'self-attention' if last == 'norm1' else 'feed-forward part'} of layer {layer}"


def _model_norms(model: ErnieMPreTrainedModel, case: Case) -> dict[str, NDArray[Any]]:
    """Run the model; the output of each LayerNorm by its name, in the order of computation."""
    outputs: dict[str, NDArray[Any]] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            outputs[name] = output.numpy()

        return hook

    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
    ]
    try:
        with torch.no_grad():
            model(**{name: torch.from_numpy(array) for name, array in case.feeds.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _graph_norms(artifact: Path, case: Case) -> dict[str, NDArray[Any]]:
    """Run the graph; the output of each LayerNormalization by the name of its weight, without ``.weight``."""
    graph = onnx.load(artifact, load_external_data=False)
    norms = {
        node.input[1].removesuffix(".weight"): node.output[0]
        for node in graph.graph.node
        if node.op_type == "LayerNormalization" and node.input[1].endswith(".weight")
    }
    known = {value.name for value in graph.graph.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=value) for value in norms.values() if value not in known)
    session = open_session(graph.SerializeToString(), weights=artifact.parent)
    feeds = {"attention_mask": case.attend.astype("int64"), **case.feeds}
    return dict(zip(norms, session.run(list(norms.values()), feeds), strict=True))
