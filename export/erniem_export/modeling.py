"""ErnieM for transformers 4 and 5: the base model and its six heads.

transformers 5 removed ErnieM; 4.57 is the last release line with it. These classes replace it (transformers 4.57.6,
``models/deprecated/ernie_m/modeling_ernie_m.py``), with the same names, arguments, returns and state-dict names, on the
library's own base classes, so that ``from_pretrained`` and ``save_pretrained`` work as before. Where the reference
crashes or misbehaves, these follow its documentation (``docs/reference-differences.md`` lists each case).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    ModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from erniem_export.configuration import ErnieMConfig

__all__ = [
    "ErnieMConfig",
    "ErnieMForInformationExtraction",
    "ErnieMForMultipleChoice",
    "ErnieMForQuestionAnswering",
    "ErnieMForSequenceClassification",
    "ErnieMForTokenClassification",
    "ErnieMModel",
    "ErnieMPreTrainedModel",
]

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


class ErnieMPreTrainedModel(PreTrainedModel):
    """The base class of all ErnieM models: configuration, weight initialization, loading and saving."""

    config_class = ErnieMConfig
    config: ErnieMConfig
    base_model_prefix = "ernie_m"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ErnieMEmbeddings", "ErnieMEncoderLayer"]

    def prune_heads(self, heads_to_prune: dict[int, list[int]]) -> None:
        """Remove attention heads: layer index to the indices of its heads, counted before any pruning."""
        for layer, heads in heads_to_prune.items():
            gone = set(self.config.pruned_heads.get(layer, []))
            self._base().prune_layer(layer, gone, set(heads))
            self.config.pruned_heads[layer] = sorted(gone | set(heads))

    def _base(self) -> ErnieMModel:
        return self if isinstance(self, ErnieMModel) else self.ernie_m


class ErnieMModel(ErnieMPreTrainedModel):
    """The bare encoder: hidden states of every token and, unless ``add_pooling_layer`` is False, a pooled one."""

    def __init__(self, config: ErnieMConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        _require_absolute_positions(config)
        self.embeddings = ErnieMEmbeddings(config)
        self.encoder = ErnieMEncoder(config)
        self.pooler = ErnieMPooler(config) if add_pooling_layer else None
        for layer, heads in config.pruned_heads.items():
            self.prune_layer(layer, set(), set(heads))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embedding."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding."""
        self.embeddings.word_embeddings = value

    def prune_layer(self, layer: int, already_gone: set[int], heads: set[int]) -> None:
        """Remove ``heads`` of one layer; indices count the layer's original heads."""
        present = [head for head in range(self.config.num_attention_heads) if head not in already_gone]
        kept = [index for index, head in enumerate(present) if head not in heads]
        if not kept:
            raise ValueError(f"layer {layer} must keep at least one of its attention heads")
        cast("ErnieMAttention", self.encoder.layers[layer].self_attn).keep_heads(kept)

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple[Any, ...]:
        """Encode a batch.

        The heads take the same arguments, but with ``attention_mask`` before ``position_ids``: pass them by name.

        Args:
            input_ids: ``(batch, sequence)`` int64, values in ``[0, vocab_size)``.
            position_ids: ``(batch, sequence)`` int64, values in ``[0, max_position_embeddings - 2)``; counts from 0
                when missing. Never modified.
            attention_mask: 1 = attend, 0 = masked; any dtype. ``(batch, key)``, ``(batch, query, key)`` or
                ``(batch, 1 | heads, query, key)``. When missing, tokens equal to ``pad_token_id`` are masked, or
                nothing when ``inputs_embeds`` is given.
            head_mask: ``(heads,)`` or ``(layers, heads)``: factors on the attention weights, 0 removes a head.
            inputs_embeds: ``(batch, sequence, hidden)`` float, in place of ``input_ids``.
            past_key_values: Not supported; an encoder has no cache.
            use_cache: Not supported; an encoder has no cache.
            output_hidden_states: Return the embeddings' output and each layer's, ``(batch, sequence, hidden)``.
            output_attentions: Return each layer's attention weights, ``(batch, heads, sequence, sequence)``.
            return_dict: False for a plain tuple ``(last_hidden_state, pooler_output, hidden_states?, attentions?)``.

        Raises:
            ValueError: Both or neither of ``input_ids`` and ``inputs_embeds``; a cache; a sequence over the limit.
        """
        _refuse_cache(past_key_values, use_cache)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        config = self.config
        want_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        want_attentions = config.output_attentions if output_attentions is None else output_attentions
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        assert tokens is not None
        self._check_length(tokens.shape[1], position_ids)
        embeddings = self.embeddings(input_ids, position_ids, inputs_embeds)
        sequence_output, hidden_states, attentions = self.encoder(
            embeddings,
            self._attend(attention_mask, input_ids, embeddings),
            _layer_head_masks(head_mask, config.num_hidden_layers, embeddings.dtype),
            bool(want_attentions),
            bool(want_states),
        )
        pooler_output = None if self.pooler is None else self.pooler(sequence_output)
        if not _wants_dict(config, return_dict):
            extras = tuple(extra for extra in (hidden_states, attentions) if extra is not None)
            return (sequence_output, pooler_output, *extras)
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=sequence_output,
            pooler_output=pooler_output,
            hidden_states=hidden_states,
            attentions=attentions,
        )

    def _attend(self, mask: Tensor | None, input_ids: Tensor | None, embeddings: Tensor) -> Tensor:
        """Return a bool mask, True = attend, that broadcasts to ``(batch, heads, query, key)``."""
        if mask is None and input_ids is None:
            mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        elif mask is None:
            mask = input_ids != self.config.pad_token_id
        # The reference adds (1 - mask) * lowest float, which masks all values below 1.
        attend = mask if mask.dtype == torch.bool else mask >= 1
        if attend.ndim == 2:
            return attend[:, None, None, :]
        if attend.ndim == 3:
            return attend[:, None, :, :]
        if attend.ndim == 4:
            return attend
        raise ValueError(f"attention_mask must have 2, 3 or 4 dimensions, not {attend.ndim}")

    def _check_length(self, length: int, position_ids: Tensor | None) -> None:
        # During tracing the length is symbolic; a comparison would fix it in the exported graph.
        if position_ids is not None or torch.compiler.is_compiling():
            return
        limit = self.config.max_position_embeddings - POSITION_OFFSET
        if length > limit:
            raise ValueError(f"a sequence of {length} tokens is over the limit of {limit}; truncate it")


class ErnieMForSequenceClassification(ErnieMPreTrainedModel):
    """A linear layer on the pooled output: classification of one or several labels, or regression."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.ernie_m = ErnieMModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = True,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Return ``logits (batch, labels)``; the other arguments are those of :meth:`ErnieMModel.forward`.

        ``labels`` are, by ``config.problem_type`` or else by their dtype and ``num_labels``: ``(batch,)`` int64 classes
        (cross-entropy), ``(batch, labels)`` 0/1 values (binary cross-entropy), or ``(batch,)`` / ``(batch, labels)``
        floats (mean squared error).
        """
        _refuse_cache(past_key_values, use_cache)
        outputs = self.ernie_m(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None if labels is None else _sequence_loss(self.config, logits, labels)
        output = SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)
        return _finish(self.config, return_dict, output)


class ErnieMForMultipleChoice(ErnieMPreTrainedModel):
    """One score per choice from the pooled output."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__(config)
        self.ernie_m = ErnieMModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = True,
    ) -> MultipleChoiceModelOutput | tuple[Any, ...]:
        """Return ``logits (batch, choices)``.

        Ids, mask and positions are ``(batch, choices, sequence)``, embeddings ``(batch, choices, sequence, hidden)``;
        the rest is as in :meth:`ErnieMModel.forward`. ``labels`` are ``(batch,)`` integers, the right choice's index.
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        if tokens is None:
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        outputs = self.ernie_m(
            input_ids=_merge_choices(input_ids),
            attention_mask=_merge_choices(attention_mask),
            position_ids=_merge_choices(position_ids),
            head_mask=head_mask,
            inputs_embeds=_merge_choices(inputs_embeds),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output)).reshape(tokens.shape[:2])
        loss = None if labels is None else functional.cross_entropy(logits, labels.long())
        output = MultipleChoiceModelOutput(loss, logits, outputs.hidden_states, outputs.attentions)
        return _finish(self.config, return_dict, output)


class ErnieMForTokenClassification(ErnieMPreTrainedModel):
    """A linear layer on every token's hidden state."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.ernie_m = ErnieMModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = True,
        labels: Tensor | None = None,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Return ``logits (batch, sequence, labels)``; the other arguments are those of :meth:`ErnieMModel.forward`.

        ``labels`` are ``(batch, sequence)`` integer classes; -100 is ignored.
        """
        _refuse_cache(past_key_values, None)
        outputs = self.ernie_m(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else functional.cross_entropy(logits.flatten(0, 1), labels.flatten().long())
        output = TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)
        return _finish(self.config, return_dict, output)


class _SpanModel(ErnieMPreTrainedModel):
    """A start and an end score for every token; ``_spans`` computes both, ``_loss`` the loss of one of them."""

    def _spans(self, states: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _loss(self, logits: Tensor, positions: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = True,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Return ``start_logits`` and ``end_logits (batch, sequence)``; the rest is as in :meth:`ErnieMModel.forward`.

        ``start_positions`` and ``end_positions``, for the loss, are described in the class.
        """
        outputs = self.ernie_m(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        start_logits, end_logits = self._spans(outputs.last_hidden_state)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (self._loss(start_logits, start_positions) + self._loss(end_logits, end_positions)) / 2
        output = QuestionAnsweringModelOutput(loss, start_logits, end_logits, outputs.hidden_states, outputs.attentions)
        return _finish(self.config, return_dict, output)


class ErnieMForQuestionAnswering(_SpanModel):
    """A start and an end score for every token: extractive question answering.

    ``start_positions`` and ``end_positions`` are ``(batch,)`` integer token indices; the loss ignores those outside the
    sequence.
    """

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__(config)
        if config.num_labels != 2:
            raise ValueError(f"question answering has two labels, start and end; num_labels is {config.num_labels}")
        self.num_labels = config.num_labels
        self.ernie_m = ErnieMModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _spans(self, states: Tensor) -> tuple[Tensor, Tensor]:
        start_logits, end_logits = self.qa_outputs(states).unbind(-1)
        return start_logits.contiguous(), end_logits.contiguous()

    def _loss(self, logits: Tensor, positions: Tensor) -> Tensor:
        ignored = logits.shape[1]
        return functional.cross_entropy(logits, positions.flatten().long().clamp(0, ignored), ignore_index=ignored)


class ErnieMForInformationExtraction(_SpanModel):
    """Universal information extraction (UIE): every token may start or end a span.

    As in the reference, the outputs are logits; apply a sigmoid for UIE's probabilities. ``start_positions`` and
    ``end_positions`` are ``(batch, sequence)`` 0/1 values, 1 where a span starts or ends (binary cross-entropy).
    """

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__(config)
        self.ernie_m = ErnieMModel(config)
        self.linear_start = nn.Linear(config.hidden_size, 1)
        self.linear_end = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def _spans(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear_start(states).squeeze(-1), self.linear_end(states).squeeze(-1)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, labels.reshape(logits.shape).to(logits.dtype))


def _classifier_dropout(config: ErnieMConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def _require_absolute_positions(config: ErnieMConfig) -> None:
    kind = getattr(config, "position_embedding_type", None) or "absolute"
    if kind != "absolute":
        raise ValueError(f"position_embedding_type {kind!r} is not supported; ErnieM checkpoints use 'absolute'")


def _refuse_cache(past_key_values: Any, use_cache: bool | None) -> None:
    if past_key_values is not None or use_cache:
        raise ValueError("ErnieM is an encoder and has no key/value cache: leave past_key_values and use_cache at None")


def _layer_head_masks(head_mask: Tensor | None, layers: int, dtype: torch.dtype) -> Tensor | None:
    """Return ``(layers, 1, heads, 1, 1)`` factors, or None."""
    if head_mask is None:
        return None
    if head_mask.ndim == 1:
        head_mask = head_mask.expand(layers, -1)
    if head_mask.ndim != 2:
        raise ValueError(f"head_mask must be (heads,) or (layers, heads), not {tuple(head_mask.shape)}")
    return head_mask[:, None, :, None, None].to(dtype)


def _merge_choices(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.flatten(0, 1)


def _wants_dict(config: ErnieMConfig, return_dict: bool | None) -> bool:
    return bool(config.return_dict if return_dict is None else return_dict)


def _finish(config: ErnieMConfig, return_dict: bool | None, output: ModelOutput) -> Any:
    return output if _wants_dict(config, return_dict) else output.to_tuple()


def _sequence_loss(config: ErnieMConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of ``logits (batch, labels)`` by ``config.problem_type``, or else by the labels and their dtype.

    Raises:
        ValueError: The problem type is unknown.
    """
    problem = config.problem_type or _problem_type(config.num_labels, labels)
    if problem == "regression":
        return functional.mse_loss(logits, labels.reshape(logits.shape).to(logits.dtype))
    if problem == "single_label_classification":
        return functional.cross_entropy(logits, labels.flatten().long())
    if problem == "multi_label_classification":
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    raise ValueError(f"unknown config.problem_type {problem!r}")


def _problem_type(num_labels: int, labels: Tensor) -> str:
    if num_labels == 1:
        return "regression"
    integral = labels.dtype in (torch.int64, torch.int32)
    return "single_label_classification" if integral else "multi_label_classification"


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
