"""The network that is trained: one ErnieM encoder under all heads, and how it becomes six checkpoints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from batches import CHOICES, SEPARATOR, UNKNOWN, Batch
from erniem_export.modeling import (
    ErnieMConfig,
    ErnieMForInformationExtraction,
    ErnieMForMultipleChoice,
    ErnieMForQuestionAnswering,
    ErnieMForSequenceClassification,
    ErnieMForTokenClassification,
    ErnieMModel,
    ErnieMPreTrainedModel,
)
from features import IGNORED
from tasks import NER_LABELS, NLI_LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers.modeling_outputs import ModelOutput

HEADS: dict[str, type[ErnieMPreTrainedModel]] = {
    "base": ErnieMModel,
    "cls": ErnieMForSequenceClassification,
    "ner": ErnieMForTokenClassification,
    "mc": ErnieMForMultipleChoice,
    "qa": ErnieMForQuestionAnswering,
    "ie": ErnieMForInformationExtraction,
}
LABELS: dict[str, Sequence[str]] = {"cls": NLI_LABELS, "ner": NER_LABELS}
# The ie loss sums over the many tokens that start nothing; the weights bring the five losses to one scale.
_WEIGHTS = {"qa": 1.0, "ner": 1.0, "cls": 1.0, "mc": 1.0, "ie": 0.5}
_NEVER = -1e4


def make_config(vocab_size: int, head: str = "base") -> ErnieMConfig:
    """The nano configuration with the labels of a head."""
    labels = LABELS.get(head)
    names = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}
    return ErnieMConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=288,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=514,
        **names,
    )


class Network(nn.Module):
    """A shared encoder and pooler with the output layers of five tasks.

    ``seen`` and ``verdict`` are no tasks: they have the lower layers compare the two texts of a pair.
    """

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.encoder = ErnieMModel(config)
        self.cls = nn.Linear(size, len(NLI_LABELS))
        self.ner = nn.Linear(size, len(NER_LABELS))
        self.mc = nn.Linear(size, 1)
        self.qa = nn.Linear(size, 2)
        self.ie_start = nn.Linear(size, 1)
        self.ie_end = nn.Linear(size, 1)
        self.seen = nn.Linear(size, 1)
        self.verdict = nn.Linear(size, len(NLI_LABELS))
        self.fits = nn.Linear(size, 1)
        _initialise(self.encoder)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of each task in the batch, summed over its examples (``ner``, ``seen``: over all rows)."""
        output = self.encoder(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            output_hidden_states=True,
        )
        losses = {task: _WEIGHTS[task] * self._loss(task, output, batch) for task in batch.targets}
        scores = self.ner(output.last_hidden_state).transpose(1, 2)
        tagged = functional.cross_entropy(scores, batch.tags, ignore_index=IGNORED, reduction="none").sum(1)
        losses["ner"] = _WEIGHTS["ner"] * (tagged / (batch.tags != IGNORED).sum(1)).sum()
        losses["seen"] = len(batch.input_ids) * self._seen_loss(output.hidden_states[2], batch.input_ids)
        losses["verdict"] = self._verdict_loss(output.hidden_states[3], batch)
        return losses

    def _verdict_loss(self, states: Tensor, batch: Batch) -> Tensor:
        """The label of ``cls`` and ``mc`` at each token of the second text: where the texts are compared.

        A layer below the last, which is left to gather these verdicts in [CLS]. Only while it trains, as ``seen``.
        """
        asked = (_is_second(batch.input_ids) & (batch.input_ids > UNKNOWN)).float()
        asked = asked / asked.sum(1, keepdim=True).clamp(min=1)
        loss = states.new_zeros(())
        if "cls" in batch.targets:
            rows, target = batch.rows["cls"], batch.targets["cls"]
            scores = self.verdict(states[rows]).transpose(1, 2)
            spread = target[:, None].expand(-1, states.shape[1])
            loss = loss + (functional.cross_entropy(scores, spread, reduction="none") * asked[rows]).sum()
        if "mc" in batch.targets:
            choices, target = batch.rows["mc"].view(-1, CHOICES), batch.targets["mc"]
            right = functional.one_hot(target, CHOICES)[choices >= 0]
            rows = choices[choices >= 0]
            scores = self.fits(states[rows]).squeeze(-1)
            spread = right[:, None].expand(-1, states.shape[1]).to(scores.dtype)
            losses = functional.binary_cross_entropy_with_logits(scores, spread, reduction="none")
            loss = loss + (losses * asked[rows]).sum()
        return loss

    def _seen_loss(self, states: Tensor, ids: Tensor) -> Tensor:
        """Does a token occur in the other text of its pair? Half-way up the encoder, and only while it trains."""
        separators = ids == SEPARATOR
        second = _is_second(ids)
        ordinary = ids > UNKNOWN
        elsewhere = (second[:, :, None] != second[:, None, :]) & ordinary[:, None, :]
        seen = ((ids[:, :, None] == ids[:, None, :]) & elsewhere).any(2)
        asked = ordinary & (separators.sum(1) == 3)[:, None]
        scores = self.seen(states).squeeze(-1)
        losses = functional.binary_cross_entropy_with_logits(scores, seen.to(scores.dtype), reduction="none")
        return (losses * asked).sum() / asked.sum().clamp(min=1)

    def _loss(self, task: str, output: ModelOutput, batch: Batch) -> Tensor:
        rows, target = batch.rows[task], batch.targets[task]
        if task == "cls":
            return functional.cross_entropy(self.cls(output.pooler_output[rows]), target, reduction="sum")
        if task == "mc":
            scores = self.mc(output.pooler_output).squeeze(-1)[rows].view(-1, CHOICES)
            absent = rows.view(-1, CHOICES) < 0
            return functional.cross_entropy(scores.masked_fill(absent, _NEVER), target, reduction="sum")
        states, mask = output.last_hidden_state[rows], batch.attention_mask[rows]
        if task == "qa":
            scores = self.qa(states).masked_fill(mask[..., None] == 0, _NEVER)
            return functional.cross_entropy(scores, target, reduction="sum") / 2
        scores = torch.stack([self.ie_start(states).squeeze(-1), self.ie_end(states).squeeze(-1)], 1)
        losses = functional.binary_cross_entropy_with_logits(scores, target, reduction="none")
        return (losses * mask[:, None]).sum() / 2

    def checkpoint(self, head: str) -> ErnieMPreTrainedModel:
        """An ordinary model of this head with the trained weights."""
        model = HEADS[head](make_config(self.encoder.config.vocab_size, head))
        own = model.state_dict()
        trained = {f"ernie_m.{name}": value for name, value in self.encoder.state_dict().items()}
        trained.update({name.removeprefix("ernie_m."): value for name, value in trained.items()})
        outputs = {"cls": "classifier", "ner": "classifier", "mc": "classifier", "qa": "qa_outputs"}
        if head in outputs:
            trained.update({f"{outputs[head]}.{n}": v for n, v in getattr(self, head).state_dict().items()})
        trained.update({f"linear_start.{n}": v for n, v in self.ie_start.state_dict().items()})
        trained.update({f"linear_end.{n}": v for n, v in self.ie_end.state_dict().items()})
        model.load_state_dict({name: trained[name] for name in own})
        return model


def _is_second(ids: Tensor) -> Tensor:
    """Behind the first separator; in a pair, that is the second text and its separators."""
    separators = ids == SEPARATOR
    return (separators.cumsum(1) - separators.long()) > 0


def _initialise(encoder: ErnieMModel) -> None:
    """Start where a small network learns fast.

    Positions start as sinusoids, so that neighbours are alike; queries and keys of the first two layers start
    equal, so that a token looks at its own copies (compare the mimetic initialisation of Trockman and Kolter, 2023).
    """
    embeddings = encoder.embeddings
    table = embeddings.position_embeddings.weight
    rows, size = table.shape
    angles = torch.arange(rows)[:, None] * torch.exp(torch.arange(0, size, 2) * (-math.log(10000.0) / size))
    with torch.no_grad():
        nn.init.normal_(embeddings.word_embeddings.weight, std=0.1)
        table[:, 0::2], table[:, 1::2] = 0.08 * angles.sin(), 0.08 * angles.cos()
        for layer in encoder.encoder.layers[:2]:
            attention = layer.self_attn.self_attn
            nn.init.normal_(attention.q_proj.weight, std=0.1)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
