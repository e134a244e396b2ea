"""Text in, answers out: one pipeline per task, without torch and transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from erniem_rt._files import as_path
from erniem_rt._workers import Workers
from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines.base import require_options
from erniem_rt.session import Session
from erniem_rt.tokenizer import Tokenizer

if TYPE_CHECKING:
    import os

    from erniem_rt.pipelines.base import Pipeline

__all__ = ["pipeline"]

_TASKS = (
    "feature-extraction",
    "text-classification",
    "zero-shot-classification",
    "token-classification",
    "multiple-choice",
    "question-answering",
    "information-extraction",
)


def pipeline(
    path: str | os.PathLike[str],
    task: str | None = None,
    *,
    device: str | None = None,
    threads: int | None = None,
    spinning: bool | None = None,
    shrink_memory: bool | None = None,
    share_weights: bool = False,
    cuda_graphs: bool | None = None,
    verify: bool = True,
    trust_plan: bool = False,
    runtime_cache: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Pipeline:
    """Load an exported folder as a pipeline.

    Args:
        path: ``HEAD.onnx``, ``HEAD.plan`` or ``HEAD.json`` in the exported folder, beside the tokenizer's files.
        task: The manifest's task if left out; ``"zero-shot-classification"`` for a ``cls`` head trained on NLI.
        device: As for :class:`erniem_rt.Session`.
        threads: As for :class:`erniem_rt.Session`.
        spinning: As for :class:`erniem_rt.Session`.
        shrink_memory: As for :class:`erniem_rt.Session`.
        share_weights: As for :class:`erniem_rt.Session`.
        cuda_graphs: As for :class:`erniem_rt.Session`.
        verify: As for :class:`erniem_rt.Session`.
        trust_plan: As for :class:`erniem_rt.Session`.
        runtime_cache: As for :class:`erniem_rt.Session`.
        **options: What the task's pipeline class takes, for example ``batch_size`` or, for information extraction,
            ``schema``. What concerns a single question, like ``top_k``, goes into the call of the pipeline.

    Raises:
        ArtifactError: A file is missing or damaged.
        EngineUnavailableError: A package or the device is not there, or the device cannot compute the graph.
        InvalidInputError: The task is unknown or belongs to another head, the graph takes ``inputs_embeds``, or an
            option does not exist.
    """
    wanted = None if task is None else _class(task)
    path = as_path("path", path)
    # Side by side: both take their time outside of Python. What is wrong with the artifact is said first.
    with Workers(1) as pool:
        tokenizer = pool.submit(Tokenizer.from_dir, path.parent, verify=False)  # the session does
        session = Session(
            path,
            device=device,
            threads=threads,
            spinning=spinning,
            shrink_memory=shrink_memory,
            share_weights=share_weights,
            cuda_graphs=cuda_graphs,
            verify=verify,
            trust_plan=trust_plan,
            runtime_cache=runtime_cache,
        )
        try:
            cls = wanted or _class(session.manifest.task)
            if session.manifest.head != cls.head:
                raise InvalidInputError(
                    f"task {task!r} needs an artifact of head {cls.head!r}; {path} has head "
                    f"{session.manifest.head!r} ({session.manifest.task})."
                )
            if all(spec.name != "input_ids" for spec in session.manifest.inputs):
                raise InvalidInputError(
                    f"{path} takes inputs_embeds and a pipeline gives input_ids; export again without "
                    "--with-inputs-embeds."
                )
            require_options(cls, options)
            return cls(session, tokenizer.result(), **options)
        except BaseException:
            session.close()
            raise


def _class(task: str) -> type[Pipeline]:
    """The task's class, imported when it is asked for, by imports that tools which pack programs can read."""
    if task == "feature-extraction":
        from erniem_rt.pipelines.feature_extraction import FeatureExtractionPipeline

        return FeatureExtractionPipeline
    if task == "text-classification":
        from erniem_rt.pipelines.text_classification import TextClassificationPipeline

        return TextClassificationPipeline
    if task == "zero-shot-classification":
        from erniem_rt.pipelines.zero_shot_classification import ZeroShotClassificationPipeline

        return ZeroShotClassificationPipeline
    if task == "token-classification":
        from erniem_rt.pipelines.token_classification import TokenClassificationPipeline

        return TokenClassificationPipeline
    if task == "multiple-choice":
        from erniem_rt.pipelines.multiple_choice import MultipleChoicePipeline

        return MultipleChoicePipeline
    if task == "question-answering":
        from erniem_rt.pipelines.question_answering import QuestionAnsweringPipeline

        return QuestionAnsweringPipeline
    if task == "information-extraction":
        from erniem_rt.pipelines.information_extraction import InformationExtractionPipeline

        return InformationExtractionPipeline
    raise InvalidInputError(f"task {task!r} is not known; expected one of {', '.join(_TASKS)}.")
