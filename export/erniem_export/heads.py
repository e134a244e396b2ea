"""The six heads as the exporter sees them: the class, and the tensors of the exported graph.

Names and axes come from :data:`erniem_rt.manifest.HEADS`, the table that the runtime reads too.
"""

from __future__ import annotations

import torch

from erniem_export import modeling
from erniem_export.configuration import ErnieMConfig
from erniem_export.errors import ExportError
from erniem_export.options import GraphOptions
from erniem_rt.manifest import HEADS, TensorSpec

CLASSES: dict[str, type[modeling.ErnieMPreTrainedModel]] = {
    "base": modeling.ErnieMModel,
    "cls": modeling.ErnieMForSequenceClassification,
    "ner": modeling.ErnieMForTokenClassification,
    "mc": modeling.ErnieMForMultipleChoice,
    "qa": modeling.ErnieMForQuestionAnswering,
    "ie": modeling.ErnieMForInformationExtraction,
}


# The heads whose labels have names.
LABELLED = ("cls", "ner")
# The heads whose graphs need no pooler, though their classes have one.
POOLER_OPTIONAL = ("base", "ie")


def make_model(head: str, config: ErnieMConfig, *, pooler: bool = True) -> modeling.ErnieMPreTrainedModel:
    """Return a model without memory for its parameters; ``pooler=False`` omits the pooler of heads that need none."""
    with torch.device("meta"):
        model = CLASSES[head](config)
    if not pooler:
        model.base_model.pooler = None
    return model


def graph_inputs(head: str, config: ErnieMConfig, options: GraphOptions) -> tuple[TensorSpec, ...]:
    """Return the inputs of the exported graph, in order; :class:`ExportError` for unsupported ones."""
    rows = HEADS[head].axes
    tokens = (
        TensorSpec("inputs_embeds", "float32", (*rows, config.hidden_size))
        if options.inputs_embeds
        else TensorSpec("input_ids", "int64", rows)
    )
    specs = [tokens, TensorSpec("attention_mask", "int64", rows)]
    if options.position_ids and getattr(config, "positions_skip_padding", False):
        raise ExportError("XLM-R finds positions by the ids: leave out --with-position-ids")
    if options.position_ids:
        specs.append(TensorSpec("position_ids", "int64", rows))
    if options.head_mask:
        if config.pruned_heads:
            raise ExportError("a head mask needs the same number of heads in every layer; this checkpoint is pruned")
        specs.append(TensorSpec("head_mask", "float32", (config.num_hidden_layers, config.num_attention_heads)))
    return tuple(specs)


def graph_outputs(head: str, model: modeling.ErnieMPreTrainedModel, options: GraphOptions) -> tuple[TensorSpec, ...]:
    """Return the outputs of the exported graph, in order; a base model without pooler has no ``pooler_output``.

    The encoder sees the choices of ``mc`` as rows, so its hidden states and attentions have ``batch*choices`` rows.
    """
    config = model.config
    sizes = {"hidden": config.hidden_size, "labels": config.num_labels}
    specs = [
        TensorSpec(name, "float32", tuple(sizes.get(axis, axis) for axis in axes))
        for name, axes in HEADS[head].outputs.items()
        if name != "pooler_output" or model.base_model.pooler is not None
    ]
    rows = "batch*choices" if head == "mc" else "batch"
    if options.hidden_states:
        shape = (rows, "sequence", config.hidden_size)
        specs += [TensorSpec(f"hidden_states.{i}", "float32", shape) for i in range(config.num_hidden_layers + 1)]
    if options.attentions:
        pruned = [len(config.pruned_heads.get(i, ())) for i in range(config.num_hidden_layers)]
        heads = [config.num_attention_heads - gone for gone in pruned]
        specs += [
            TensorSpec(f"attentions.{i}", "float32", (rows, count, "sequence", "sequence"))
            for i, count in enumerate(heads)
        ]
    return tuple(specs)
