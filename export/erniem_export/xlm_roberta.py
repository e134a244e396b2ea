"""Maps XLM-R checkpoints to equal ErnieM models, and builds transformers' own model of them for the gate."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erniem_export import heads
from erniem_export.errors import CheckpointError
from erniem_export.modeling import ErnieMPreTrainedModel
from erniem_export.weights import PREFIX

ROBERTA = "roberta."
# XLM-R's classes and the heads that both models have.
XLM_ROBERTA_CLASSES = {
    "XLMRobertaModel": "base",
    "XLMRobertaForSequenceClassification": "cls",
    "XLMRobertaForTokenClassification": "ner",
    "XLMRobertaForQuestionAnswering": "qa",
}
XLM_ROBERTA_HEADS = tuple(XLM_ROBERTA_CLASSES.values())
POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"

# XLMRobertaConfig's defaults that differ from ErnieMConfig's.
_DEFAULTS = {"vocab_size": 30522, "max_position_embeddings": 512, "layer_norm_eps": 1e-12}
_PAD = 1
# Parts of tensor names: XLM-R's, ErnieM's.
_PARTS = (
    ("embeddings.LayerNorm.", "embeddings.layer_norm."),
    ("encoder.layer.", "encoder.layers."),
    (".attention.self.query.", ".self_attn.self_attn.q_proj."),
    (".attention.self.key.", ".self_attn.self_attn.k_proj."),
    (".attention.self.value.", ".self_attn.self_attn.v_proj."),
    (".attention.output.dense.", ".self_attn.out_proj."),
    (".attention.output.LayerNorm.", ".norm1."),
    (".intermediate.dense.", ".linear1."),
    (".output.dense.", ".linear2."),
    (".output.LayerNorm.", ".norm2."),
)
_INNER = ("embeddings.", "encoder.", "pooler.")
# For cls: XLM-R's classification head is ErnieM's pooler and classifier.
_CLASSIFIER = {"classifier.dense.": "pooler.dense.", "classifier.out_proj.": "classifier."}
_NAMED = re.compile(r"(?:ernie_m\.)?\b(?:embeddings|encoder|pooler|classifier)(?:\.\w+)*")
# What a head reads beside the encoder, and all that any does.
_READ = {
    "base": r"pooler\.dense\.\w+",
    "cls": r"classifier\.(?:dense|out_proj)\.\w+",
    "ner": r"classifier\.\w+",
    "qa": r"qa_outputs\.\w+",
}
_KNOWN = re.compile(rf"{'|'.join(_READ.values())}|lm_head\..+|embeddings\.(?:position_ids|token_type_ids)")


def config_as_ernie_m(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the equal ErnieM model.

    Raises:
        CheckpointError: The model does not use absolute positions from 2 on, or it is a decoder.
    """
    kind = content.get("position_embedding_type") or "absolute"
    if kind != "absolute":
        raise CheckpointError(f"{path} says position_embedding_type = {kind!r}, expected 'absolute', which ErnieM has")
    pad = content.get("pad_token_id", _PAD)
    if pad != _PAD:
        raise CheckpointError(f"{path} says pad_token_id = {pad!r}, expected {_PAD}: positions are counted from it")
    if content.get("pruned_heads"):
        raise CheckpointError(f"{path} names pruned_heads, which XLM-R of transformers 5 cannot have: expected none")
    for key in ("is_decoder", "add_cross_attention"):
        if content.get(key):
            raise CheckpointError(f"{path} says {key} = {content[key]!r}: this is a decoder, expected an encoder")
    given = {**_DEFAULTS, **content, "model_type": "ernie_m", "positions_skip_padding": True}
    if isinstance(given.get("architectures"), list):
        names = given["architectures"]
        given["architectures"] = [
            heads.CLASSES[XLM_ROBERTA_CLASSES[name]].__name__ if name in XLM_ROBERTA_CLASSES else name for name in names
        ]
    return given


def bare(name: str) -> str:
    """Return a tensor's name without XLM-R's prefix."""
    return name.removeprefix(ROBERTA)


def as_ernie_m(name: str, head: str) -> str:
    """Return ErnieM's name of a tensor, from XLM-R's."""
    found = bare(name)
    if found.startswith(_INNER):
        for theirs, ours in _PARTS:
            found = found.replace(theirs, ours)
        return PREFIX + found
    for theirs, ours in _CLASSIFIER.items() if head == "cls" else ():
        if found.startswith(theirs):
            found = ours + found.removeprefix(theirs)
            return PREFIX + found if found.startswith(_INNER) else found
    return found


def as_xlm_roberta(name: str, head: str) -> str:
    """Return XLM-R's name of a tensor, from ErnieM's; a base model's names have no prefix."""
    found = name.removeprefix(PREFIX)
    for theirs, ours in _CLASSIFIER.items() if head == "cls" else ():
        if found.startswith(ours):
            return theirs + found.removeprefix(ours)
    if not found.startswith(_INNER):
        return found
    for theirs, ours in _PARTS:
        found = found.replace(ours, theirs)
    return found if head == "base" else ROBERTA + found


def in_own_names(text: str, head: str) -> str:
    """Return a message about ErnieM's tensors with XLM-R's names."""
    return _NAMED.sub(lambda found: as_xlm_roberta(f"{found[0]}.", head).rstrip("."), text).replace("ErnieM", "XLM-R")


def unused(names: Iterable[str], head: str) -> list[str]:
    """Return XLM-R's tensors that this head does not read: those of other heads and of pretraining."""
    read = re.compile(_READ.get(head, "$^"))
    return [name for name in names if _KNOWN.fullmatch(bare(name)) and not read.fullmatch(bare(name))]


def names_as_ernie_m(names: Collection[str], head: str) -> dict[str, str]:
    """Map ErnieM's names of the tensors that the head reads to XLM-R's names."""
    left = {*unused(names, head), *(name for name in names if bare(name) == TOKEN_TYPES)}
    return {as_ernie_m(name, head): name for name in names if name not in left}


def with_token_type(positions: Tensor, types: Tensor) -> Tensor:
    """Return ErnieM's table of positions: XLM-R's plus token type 0. A type of zeros leaves every bit unchanged."""
    return positions + types[0] if types[0].any() else positions


def head_of_weights(names: Iterable[str]) -> str:
    """Return the head whose weights are among these."""
    found = set(names)
    if "qa_outputs.weight" in found:
        return "qa"
    if "classifier.out_proj.weight" in found:
        return "cls"
    return "ner" if "classifier.weight" in found else "base"


class Original:
    """transformers' own class with a checkpoint's weights, with which the gate compares an artifact.

    Args:
        head: One of :data:`XLM_ROBERTA_HEADS`.
        config_text: The content of config.json.
        model: The ErnieM model with the same weights, in shared memory.
        tables: XLM-R's own tables of positions and token types, by their names without prefix.
    """

    def __init__(self, head: str, config_text: str, model: ErnieMPreTrainedModel, tables: Mapping[str, Tensor]) -> None:
        self.name = next(name for name, its in XLM_ROBERTA_CLASSES.items() if its == head)
        self._head, self._content, self.model = head, json.loads(config_text), model
        self.tables = tables
        self._made: dict[str, Any] = {}

    def __call__(self, *, attention_mask: Tensor, output_attentions: bool = False, **inputs: Any) -> Any:
        """Run like the ErnieM model, with own position ids; ``attention_mask (batch, sequence)`` is 0 or 1."""
        # A row that attends to nothing has uniform weights in eager attention, but none in transformers 5's sdpa.
        kind = "sdpa" if attention_mask.any(-1).all() and not output_attentions else "eager"
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        return self._made[kind](attention_mask=attention_mask, output_attentions=output_attentions, **inputs)

    def _make(self, attention: str) -> Any:
        import transformers

        config = transformers.XLMRobertaConfig.from_dict(self._content)
        config.num_labels, config.vocab_size = self.model.config.num_labels, self.model.config.vocab_size
        config.type_vocab_size = len(self.tables[TOKEN_TYPES])
        config._attn_implementation = attention
        weights = {as_xlm_roberta(name, self._head): tensor for name, tensor in self.model.state_dict().items()}
        has_pooler = any("pooler." in name for name in weights)
        options = {"add_pooling_layer": has_pooler} if self._head == "base" else {}
        with torch.device("meta"):
            model = getattr(transformers, self.name)(config, **options)
        for name, table in self.tables.items():
            weights[name if self._head == "base" else ROBERTA + name] = table
        model.load_state_dict(weights, assign=True)
        embeddings = model.base_model.embeddings
        for name, buffer in list(embeddings.named_buffers()):
            values = torch.arange(buffer.shape[-1]) if name == "position_ids" else torch.zeros(buffer.shape[-1])
            embeddings.register_buffer(name, values.long().expand(buffer.shape), persistent=False)
        return model.eval()
