"""ErnieM's weights under XLM-R's names, for engines that know XLM-R and not ErnieM.

The two compute the same where positions count from the first token, that is, on rows padded on the right: ErnieM adds
2 to its positions as XLM-R does, and XLM-R's one token type is set to zero.
"""

from __future__ import annotations

from typing import Any

import torch

_LAYER = {
    "self_attn.self_attn.q_proj": "attention.self.query",
    "self_attn.self_attn.k_proj": "attention.self.key",
    "self_attn.self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}
_EMBEDDINGS = {"layer_norm": "LayerNorm"}


def as_xlm_roberta(network: Any) -> Any:
    """Return an ``XLMRobertaForSequenceClassification`` with a pooler that has the encoder weights of ``network``.

    ``network`` is an ``ErnieMModel`` or has one as ``ernie_m``.
    """
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
            pad_token_id=1,  # XLM-R's positions start behind it: at 2, as ErnieM's do whatever its padding
            hidden_act=config.hidden_act,
        )
    )
    target.roberta = XLMRobertaModel(target.config, add_pooling_layer=True)
    state = {_renamed(name): tensor for name, tensor in getattr(network, "ernie_m", network).state_dict().items()}
    state["embeddings.token_type_embeddings.weight"] = torch.zeros(1, config.hidden_size)
    missing, unexpected = target.roberta.load_state_dict(state, strict=False)
    buffers = {"embeddings.position_ids", "embeddings.token_type_ids"}
    if unexpected or set(missing) - buffers:
        raise ValueError(f"expected XLM-R's parameters, got unexpected {unexpected} and missing {missing}")
    return target.eval()


def _renamed(name: str) -> str:
    head, rest = name.split(".", 1)
    if head == "embeddings":
        first, last = rest.rsplit(".", 1)
        return f"embeddings.{_EMBEDDINGS.get(first, first)}.{last}"
    if head == "encoder":
        _, number, part = rest.split(".", 2)
        first, last = part.rsplit(".", 1)
        return f"encoder.layer.{number}.{_LAYER[first]}.{last}"
    return name
