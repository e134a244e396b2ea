"""The reference: transformers 4.57.6's model, tokenizer and pipelines on nano's checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

NANO = Path(__file__).resolve().parents[2] / "examples" / "nano"
LIMIT = 512

_MODELS = {
    "base": "ErnieMModel",
    "cls": "ErnieMForSequenceClassification",
    "ner": "ErnieMForTokenClassification",
    "mc": "ErnieMForMultipleChoice",
    "qa": "ErnieMForQuestionAnswering",
    "ie": "ErnieMForInformationExtraction",
}


class Parts(NamedTuple):
    """What a pipeline of transformers is made of."""

    model: Any
    tokenizer: Any


def load(head: str) -> Parts:
    """The reference's model and tokenizer of nano's checkpoint."""
    from transformers.models.deprecated.ernie_m import modeling_ernie_m
    from transformers.models.deprecated.ernie_m.tokenization_ernie_m import ErnieMTokenizer

    folder = NANO / "checkpoints" / head
    model = getattr(modeling_ernie_m, _MODELS[head]).from_pretrained(folder, dtype=torch.float32).eval()
    return Parts(model, ErnieMTokenizer.from_pretrained(folder, model_max_length=LIMIT))


def reference_pipeline(name: str, head: str) -> Any:
    """The pipeline class ``name`` of transformers."""
    import transformers

    return getattr(transformers, name)(**load(head)._asdict(), device="cpu")


@contextmanager
def repaired_question_answering() -> Iterator[Any]:
    """transformers' question answering, made to work with ErnieM's tokenizer while the context lasts.

    It wants an attention mask of a tokenizer that gives none, and has to count two separators.
    """
    from transformers.data.processors import squad

    pipe = reference_pipeline("QuestionAnsweringPipeline", "qa")
    pipe.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    with (
        mock.patch.object(squad, "MULTI_SEP_TOKENS_TOKENIZERS_SET", {"erniem"}),
        mock.patch.object(squad, "Pool", ThreadPool),  # in the same process: a new one per question takes longer
    ):
        yield pipe


@contextmanager
def raised_null(ours: Any, theirs: Any, amount: float) -> Iterator[None]:
    """Raise what our pipeline's session and their model say of ``[CLS]``, the first token, while the context lasts."""
    forward, run_all = theirs.forward, ours.session.run_all

    def raised(output: Any) -> Any:
        for name in ("start_logits", "end_logits"):
            output[name][:, 0] += amount
        return output

    def copied(output: dict[str, Any]) -> dict[str, Any]:
        return {name: array.copy() for name, array in output.items()}

    with (
        mock.patch.object(theirs, "forward", functools.wraps(forward)(lambda **inputs: raised(forward(**inputs)))),
        mock.patch.object(ours.session, "run_all", lambda batches: (raised(copied(o)) for o in run_all(batches))),
    ):
        yield
