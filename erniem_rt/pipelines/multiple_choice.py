"""Multiple choice: the text that fits a prompt best."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, overload

import numpy as np

from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines.answers import Choice, ChoiceAnswer, softmax
from erniem_rt.pipelines.base import CommonOptions, Job, Pipeline, RunOptions
from erniem_rt.pipelines.inputs import encode_seconds, pair_rows, require_mapping, require_text, require_tokens, strings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from typing_extensions import Unpack

    from erniem_rt.batching import Outputs
    from erniem_rt.pipelines.answers import Column
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer


class MultipleChoiceInput(TypedDict):
    """One prompt and its choices."""

    prompt: str
    choices: Column


class MultipleChoicePipeline(Pipeline[Choice]):
    """Head ``mc``: the choice that fits a prompt best.

    Args:
        session: The model.
        tokenizer: Its tokenizer.
        **options: :class:`~erniem_rt.pipelines.base.RunOptions`; an input makes a row per choice.
    """

    task = "multiple-choice"
    head = "mc"
    required = ("prompt", "choices")

    @overload
    def __init__(
        self: MultipleChoicePipeline, session: Session, tokenizer: Tokenizer, **options: Unpack[CommonOptions]
    ) -> None: ...
    @overload
    def __init__(
        self: MultipleChoicePipeline[Any], session: Session, tokenizer: Tokenizer, **options: Unpack[RunOptions]
    ) -> None: ...
    def __init__(self, session: Session, tokenizer: Tokenizer, **options: Unpack[RunOptions]) -> None:
        super().__init__(session, tokenizer, **options)

    @overload
    def __call__(self, inputs: MultipleChoiceInput, **options: Unpack[CommonOptions]) -> Choice: ...
    @overload
    def __call__(self, inputs: Mapping[str, object], **options: Unpack[CommonOptions]) -> Choice | list[Choice]: ...
    @overload
    def __call__(self, inputs: Column, **options: Unpack[CommonOptions]) -> list[Choice]: ...
    @overload
    def __call__(self, inputs: Iterable[object], **options: Unpack[CommonOptions]) -> Iterator[Choice]: ...
    @overload
    def __call__(self, inputs: MultipleChoiceInput, **options: Unpack[RunOptions]) -> Choice | InvalidInputError: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, object], **options: Unpack[RunOptions]
    ) -> Choice | InvalidInputError | list[Choice | InvalidInputError]: ...
    @overload
    def __call__(self, inputs: Column, **options: Unpack[RunOptions]) -> list[Choice | InvalidInputError]: ...
    @overload
    def __call__(
        self, inputs: Iterable[object], **options: Unpack[RunOptions]
    ) -> Iterator[Choice | InvalidInputError]: ...
    def __call__(self, inputs: Any, **options: Unpack[RunOptions]) -> Any:
        """Answer one ``{"prompt": str, "choices": [str, ...]}``, a list or a stream of them.

        Choices are a list, array or Series, of any number and any lengths. A prompt that exceeds ``max_seq_len``
        together with a choice is cut at its end; choices are never cut.

        Args:
            inputs: One input, a list or a stream of inputs.
            **options: :class:`~erniem_rt.pipelines.base.RunOptions`.

        Returns:
            Per input ``{"answer": str, "index": int, "scores": list[float]}``: the best choice (the first of equal
            ones), its index, and a score per choice, in their order; the scores sum to 1. A list for a list, an
            iterator for a stream.

        Raises:
            InvalidInputError: An input is not such a mapping, a text is empty, there are no choices, or one leaves no
                room for the prompt.
        """
        asked = self.options_for(options)
        return self._answer(inputs, partial(self._job, self._limit(asked)), asked)

    def _job(self, limit: int, item: object) -> Job[ChoiceAnswer]:
        fields = require_mapping(self.task, item, ["prompt", "choices"])
        prompt, choices = require_text("prompt", fields["prompt"]), _choices(fields["choices"])
        first = self.tokenizer(prompt, add_special_tokens=False).input_ids
        require_tokens("prompt", len(first))
        seconds = encode_seconds(
            self.tokenizer,
            choices,
            names=[f"choices[{i}]" for i in range(len(choices))],
            max_length=limit,
        )

        def finish(outputs: list[Outputs]) -> ChoiceAnswer:
            scores = softmax(np.concatenate([output["logits"] for output in outputs]).astype(np.float64))
            index = int(scores.argmax())
            return {"answer": choices[index], "index": index, "scores": [float(score) for score in scores]}

        return Job(pair_rows(self.tokenizer, first, seconds), finish)


def _choices(value: object) -> list[str]:
    choices = strings("choices", value)
    if not choices:
        raise InvalidInputError("choices is empty: expected at least one.")
    return [require_text(f"choices[{i}]", choice) for i, choice in enumerate(choices)]
