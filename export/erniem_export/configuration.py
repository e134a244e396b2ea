"""ErnieMConfig: the reference's configuration, for transformers 4 and 5."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class ErnieMConfig(PretrainedConfig):
    """Configuration of an ErnieM model; the defaults are those of ``ernie-m-base``.

    Args:
        vocab_size: Rows of the word embedding.
        hidden_size: Width of the embeddings, the encoder layers and the pooler.
        num_hidden_layers: Number of encoder layers.
        num_attention_heads: Attention heads per layer; must divide ``hidden_size``.
        intermediate_size: Width of the feed-forward layer.
        hidden_act: Activation of the feed-forward layer, by its name in transformers; ``"gelu"`` is the erf form.
        hidden_dropout_prob: Dropout of the embeddings and of each sublayer's output.
        attention_probs_dropout_prob: Dropout of the attention weights.
        max_position_embeddings: Rows of the position embedding. Position ids are shifted by 2, so the longest
            usable sequence is two tokens shorter.
        initializer_range: Standard deviation of newly initialized weights.
        pad_token_id: Id of the padding token, which is masked if no attention mask is given.
        layer_norm_eps: Epsilon of every LayerNorm.
        classifier_dropout: Dropout before a head's classifier; ``None`` means ``hidden_dropout_prob``.
        act_dropout: Dropout after the feed-forward activation; ``None`` means ``hidden_dropout_prob``.
        **kwargs: Options of :class:`transformers.PretrainedConfig` (``num_labels``, ``id2label``, ...).
    """

    model_type = "ernie_m"
    attribute_map = {"dropout": "classifier_dropout", "num_classes": "num_labels"}

    def __init__(
        self,
        vocab_size: int = 250002,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 514,
        initializer_range: float = 0.02,
        pad_token_id: int = 1,
        layer_norm_eps: float = 1e-05,
        classifier_dropout: float | None = None,
        act_dropout: float | None = 0.0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.classifier_dropout = classifier_dropout
        self.act_dropout = act_dropout
        pruned_heads = kwargs.pop("pruned_heads", None) or {}
        super().__init__(pad_token_id=pad_token_id, **kwargs)
        # transformers 4's base class has (and resets) it; that of 5 does not.
        self.pruned_heads = {int(layer): list(heads) for layer, heads in pruned_heads.items()}
