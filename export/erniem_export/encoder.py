"""The building blocks of ErnieM: embeddings, self-attention, encoder, pooler.

Module and parameter names are those of the reference (transformers 4.57.6,
``models/deprecated/ernie_m/modeling_ernie_m.py``), so that its checkpoints load unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from erniem_export.configuration import ErnieMConfig

# The reference shifts every position id by two and leaves the first two rows of the table unused.
POSITION_OFFSET = 2


class ErnieMEmbeddings(nn.Module):
    """The sum of word and position embeddings, normalized."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # XLM-R counts tokens, where ErnieM counts columns: the two differ behind padding.
        self.padding_id = config.pad_token_id
        self.skips_padding = bool(getattr(config, "positions_skip_padding", False))

    def forward(self, input_ids: Tensor | None, position_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Return ``(batch, sequence, hidden)`` from ``(batch, sequence)`` ids or from word embeddings."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None and input_ids is not None and self.skips_padding:
            counts = (input_ids.ne(self.padding_id)).to(input_ids.dtype)
            position_ids = counts.cumsum(1) * counts - 1
        elif position_ids is None:
            position_ids = torch.arange(words.shape[1], device=words.device).unsqueeze(0)
        embeddings = words + self.position_embeddings(position_ids + POSITION_OFFSET)
        return self.dropout(self.layer_norm(embeddings))  # type: ignore[no-any-return]


class ErnieMSelfAttention(nn.Module):
    """Multi-head scaled dot-product attention, before the output projection."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size ({config.hidden_size}) must be a multiple of "
                f"num_attention_heads ({config.num_attention_heads})"
            )
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self, hidden_states: Tensor, attend: Tensor, head_mask: Tensor | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the context ``(batch, sequence, hidden)`` and, if requested, the attention weights.

        ``attend`` is a bool tensor that broadcasts to ``(batch, heads, query, key)``; True means "attend". If no
        weights are requested, it may be floats to add to the scores.
        """
        query, key, value = (
            self._split_heads(projection(hidden_states)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights: Tensor | None = None
        if output_attentions or head_mask is not None:
            weights = self._weights(query, key, attend)
            if head_mask is not None:
                weights = weights * head_mask
            context = torch.matmul(weights, value)
        else:
            if query.dtype == torch.float16:
                # In float16, unlike in wider types, the lowest value plus a score is another value. Queries of zero
                # give a row of padding only its uniform weights here too.
                query = query * attend.any(-1, keepdim=True)
            bias = attend
            if attend.dtype == torch.bool:
                bias = torch.zeros_like(attend, dtype=query.dtype).masked_fill(~attend, _lowest(query.dtype))
            context = functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=bias,
                dropout_p=self.dropout.p if self.training else 0.0,
            )
        return context.transpose(1, 2).flatten(2), weights if output_attentions else None

    def _split_heads(self, states: Tensor) -> Tensor:
        batch, length, _ = states.shape
        return states.view(batch, length, self.num_attention_heads, self.attention_head_size).transpose(1, 2)

    def _weights(self, query: Tensor, key: Tensor, attend: Tensor) -> Tensor:
        scores = torch.matmul(query / math.sqrt(self.attention_head_size), key.transpose(-1, -2))
        # Unlike addition, overwriting cannot overflow in any dtype; a row that is all padding gets uniform weights,
        # as in the reference.
        scores = scores.masked_fill(~attend, _lowest(query.dtype))
        return self.dropout(functional.softmax(scores, dim=-1))  # type: ignore[no-any-return]


class ErnieMAttention(nn.Module):
    """Self-attention and its output projection."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        self.self_attn = ErnieMSelfAttention(config)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, attend: Tensor, head_mask: Tensor | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the projected output of :meth:`ErnieMSelfAttention.forward`."""
        context, weights = self.self_attn(hidden_states, attend, head_mask, output_attentions)
        return self.out_proj(context), weights

    def keep_heads(self, heads: Iterable[int]) -> None:
        """Remove every head that is not in ``heads`` (indices into the current heads)."""
        attention = self.self_attn
        size = attention.attention_head_size
        kept = sorted(heads)
        rows = torch.cat([torch.arange(head * size, (head + 1) * size) for head in kept])
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(attention, name, _select(getattr(attention, name), rows, dim=0))
        self.out_proj = _select(self.out_proj, rows, dim=1)
        attention.num_attention_heads = len(kept)


class ErnieMEncoderLayer(nn.Module):
    """Post-norm transformer layer: attention, then the feed-forward network."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        dropout = 0.1 if config.hidden_dropout_prob is None else config.hidden_dropout_prob
        act_dropout = dropout if config.act_dropout is None else config.act_dropout
        self.self_attn = ErnieMAttention(config)
        self.linear1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dropout = nn.Dropout(act_dropout)
        self.linear2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.activation = ACT2FN[config.hidden_act] if isinstance(config.hidden_act, str) else config.hidden_act

    def forward(
        self, hidden_states: Tensor, attend: Tensor, head_mask: Tensor | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the layer's output ``(batch, sequence, hidden)`` and, if asked for, its attention weights."""
        attended, weights = self.self_attn(hidden_states, attend, head_mask, output_attentions)
        hidden_states = self.norm1(hidden_states + self.dropout1(attended))
        transformed = self.linear2(self.dropout(self.activation(self.linear1(hidden_states))))
        return self.norm2(hidden_states + self.dropout2(transformed)), weights


class ErnieMEncoder(nn.Module):
    """The stack of encoder layers."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ErnieMEncoderLayer(config) for _ in range(config.num_hidden_layers))
        # Set by transformers' gradient_checkpointing_enable().
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] | None = None

    def forward(
        self,
        hidden_states: Tensor,
        attend: Tensor,
        head_mask: Tensor | None,
        output_attentions: bool,
        output_hidden_states: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """Return the last hidden state, all hidden states or None, all attention weights or None."""
        states, attentions = [hidden_states], []
        for index, layer in enumerate(self.layers):
            layer_head_mask = None if head_mask is None else head_mask[index]
            arguments = (hidden_states, attend, layer_head_mask, output_attentions)
            if self.gradient_checkpointing and self.training and self._gradient_checkpointing_func is not None:
                hidden_states, weights = self._gradient_checkpointing_func(layer.__call__, *arguments)
            else:
                hidden_states, weights = layer(*arguments)
            states.append(hidden_states)
            attentions.append(weights)
        return (
            hidden_states,
            tuple(states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )


class ErnieMPooler(nn.Module):
    """Computes tanh(dense(first token))."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Pool ``(batch, sequence, hidden)`` to ``(batch, hidden)``."""
        return self.activation(self.dense(hidden_states[:, 0]))  # type: ignore[no-any-return]


def _lowest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).min


def _select(linear: nn.Linear, index: Tensor, dim: int) -> nn.Linear:
    """Return ``linear`` with only the given output rows (dim 0) or input columns (dim 1)."""
    index = index.to(linear.weight.device)
    weight = linear.weight.detach().index_select(dim, index)
    bias = linear.bias.detach() if dim == 1 else linear.bias.detach()[index]
    selected = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        selected.weight.copy_(weight)
        selected.bias.copy_(bias)
    return selected
