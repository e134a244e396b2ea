"""Text in, answers out: one pipeline per task, without torch and transformers."""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING, Any, Literal, Union, overload

from erniem_rt.errors import InvalidInputError
from erniem_rt.locations import find_artifact, manifest_of
from erniem_rt.pipelines.base import Pipeline, require_options
from erniem_rt.pipelines.feature_extraction import FeatureExtractionPipeline, FeatureExtractionSettings
from erniem_rt.pipelines.information_extraction import InformationExtractionPipeline, InformationExtractionSettings
from erniem_rt.pipelines.multiple_choice import MultipleChoicePipeline
from erniem_rt.pipelines.question_answering import QuestionAnsweringPipeline, QuestionAnsweringSettings
from erniem_rt.pipelines.text_classification import TextClassificationPipeline, TextClassificationSettings
from erniem_rt.pipelines.token_classification import TokenClassificationPipeline, TokenClassificationSettings
from erniem_rt.pipelines.zero_shot_classification import (
    ZeroShotClassificationPipeline,
    ZeroShotClassificationSettings,
)
from erniem_rt.processes import Workers
from erniem_rt.session import Session, SessionOptions
from erniem_rt.tokenizer import Tokenizer

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from typing_extensions import Unpack

    from erniem_rt.pipelines.base import CommonOptions

    class _FeatureExtraction(SessionOptions, FeatureExtractionSettings, total=False): ...

    class _TextClassification(SessionOptions, TextClassificationSettings, total=False): ...

    class _ZeroShotClassification(SessionOptions, ZeroShotClassificationSettings, total=False): ...

    class _TokenClassification(SessionOptions, TokenClassificationSettings, total=False): ...

    class _MultipleChoice(SessionOptions, CommonOptions, total=False): ...

    class _QuestionAnswering(SessionOptions, QuestionAnsweringSettings, total=False): ...

    class _InformationExtraction(SessionOptions, InformationExtractionSettings, total=False): ...


__all__ = ["pipeline"]

# An exported folder, an artifact in it, its hub id, or an open session.
Model = Union[str, "os.PathLike[str]", Session]

_TASKS: dict[str, type[Pipeline]] = {
    cls.task: cls
    for cls in (
        FeatureExtractionPipeline,
        TextClassificationPipeline,
        ZeroShotClassificationPipeline,
        TokenClassificationPipeline,
        MultipleChoicePipeline,
        QuestionAnsweringPipeline,
        InformationExtractionPipeline,
    )
}
# The tokenizer of each session in use, shared by its pipelines.
_TOKENIZERS: weakref.WeakKeyDictionary[Session, weakref.ref[Tokenizer]] = weakref.WeakKeyDictionary()


# Here, options that change the answers' type (such as errors="return") make it Any; in a call it is exact.
@overload
def pipeline(
    task: Literal["feature-extraction"], model: Model, **options: Unpack[_FeatureExtraction]
) -> FeatureExtractionPipeline: ...
@overload
def pipeline(
    task: Literal["feature-extraction"], model: Model, **options: Any
) -> FeatureExtractionPipeline[Any, Any]: ...
@overload
def pipeline(
    task: Literal["text-classification"], model: Model, **options: Unpack[_TextClassification]
) -> TextClassificationPipeline: ...
@overload
def pipeline(
    task: Literal["text-classification"], model: Model, **options: Any
) -> TextClassificationPipeline[Any, Any]: ...
@overload
def pipeline(
    task: Literal["zero-shot-classification"], model: Model, **options: Unpack[_ZeroShotClassification]
) -> ZeroShotClassificationPipeline: ...
@overload
def pipeline(
    task: Literal["zero-shot-classification"], model: Model, **options: Any
) -> ZeroShotClassificationPipeline[Any]: ...
@overload
def pipeline(
    task: Literal["token-classification"], model: Model, **options: Unpack[_TokenClassification]
) -> TokenClassificationPipeline: ...
@overload
def pipeline(
    task: Literal["token-classification"], model: Model, **options: Any
) -> TokenClassificationPipeline[Any]: ...
@overload
def pipeline(
    task: Literal["multiple-choice"], model: Model, **options: Unpack[_MultipleChoice]
) -> MultipleChoicePipeline: ...
@overload
def pipeline(task: Literal["multiple-choice"], model: Model, **options: Any) -> MultipleChoicePipeline[Any]: ...
@overload
def pipeline(
    task: Literal["question-answering"], model: Model, **options: Unpack[_QuestionAnswering]
) -> QuestionAnsweringPipeline: ...
@overload
def pipeline(task: Literal["question-answering"], model: Model, **options: Any) -> QuestionAnsweringPipeline[Any]: ...
@overload
def pipeline(
    task: Literal["information-extraction"], model: Model, **options: Unpack[_InformationExtraction]
) -> InformationExtractionPipeline: ...
@overload
def pipeline(
    task: Literal["information-extraction"], model: Model, **options: Any
) -> InformationExtractionPipeline[Any]: ...
@overload
def pipeline(
    task: str | os.PathLike[str] | Session | None = ..., model: Model | None = ..., **options: Any
) -> Pipeline: ...
def pipeline(
    task: str | os.PathLike[str] | Session | None = None,
    model: Model | None = None,
    **options: Any,
) -> Pipeline:
    """Make a pipeline: ``pipeline("question-answering", "out")``, or ``pipeline("out")`` for the artifact's own task.

    Args:
        task: A task, as in transformers: ``"question-answering"``, ``"text-classification"``,
            ``"zero-shot-classification"`` (a ``cls`` head trained on NLI), ``"token-classification"``,
            ``"multiple-choice"``, ``"information-extraction"`` or ``"feature-extraction"``. Alone, the model.
        model: The exported folder, one of its artifacts, its hub id, or an open :class:`Session`: several pipelines may
            share it and its tokenizer, and closing them leaves it open.
        **options: The options of :class:`erniem_rt.Session` (``engine``, ``precision``, ``device``, ``threads``,
            ``spinning``, ``shrink_memory``, ``share_weights``, ``cache``, ``cuda_graphs``, ``verify``, ``trust_plan``,
            ``runtime_cache``), and those of the task's pipeline class, for example ``batch_size`` or, for information
            extraction, ``schema``. The latter can also be passed to a call.

    Raises:
        ArtifactError: A file is missing or damaged.
        EngineUnavailableError: A package or the device is missing, or the device cannot compute the graph.
        InvalidInputError: The task is unknown or belongs to another head, the graph takes ``inputs_embeds``, or an
            option does not exist.
    """
    task, model = _task_and_model(task, model)
    wanted = None if task is None else _class_of(str(task))
    session_options: Any = {name: options.pop(name) for name in SessionOptions.__annotations__ if name in options}
    if isinstance(model, Session):
        given = [name for name, value in session_options.items() if value not in (None, "auto", name == "verify")]
        if given:
            raise InvalidInputError(f"{given[0]} is an option of the session, which is open already: give it there.")
        made = _made(wanted, model, lambda: _tokenizer_of(model), options)
        made.owns_session = False
        return made
    path = find_artifact(model, None if wanted is None else wanted.head)
    # In parallel: both run mostly outside of Python. Errors of the artifact are raised first.
    with Workers(1) as pool:
        tokenizer = pool.submit(Tokenizer.from_dir, manifest_of(path).parent, verify=False)  # the session verifies
        session = Session(path, **session_options)
        try:
            return _made(wanted, session, tokenizer.result, options)
        except BaseException:
            session.close()
            raise


def _task_and_model(task: object, model: object) -> tuple[Any, Any]:
    """Return task and model; either may be missing, or both may come in the old order."""
    if isinstance(model, str) and model in _TASKS and task is not None and task not in _TASKS:
        warnings.warn(
            f"pipeline(path, task) will go in the next release: write pipeline({model!r}, {str(task)!r}).",
            DeprecationWarning,
            stacklevel=3,
        )
        return model, task
    if model is None and task is not None and task not in _TASKS:
        return None, task
    if model is None:
        raise InvalidInputError(f'model is missing: write pipeline({task or "question-answering"!r}, "out").')
    return task, model


def _made(
    wanted: type[Pipeline] | None, session: Session, tokenizer: Callable[[], Tokenizer], options: dict[str, Any]
) -> Pipeline:
    """Make the pipeline on a session, whose head must match the task."""
    cls = wanted or _class_of(session.manifest.task)
    if session.manifest.head != cls.head:
        raise InvalidInputError(
            f"task {cls.task!r} needs an artifact of head {cls.head!r}; {session.path} has head "
            f"{session.manifest.head!r} ({session.manifest.task})."
        )
    if all(spec.name != "input_ids" for spec in session.manifest.inputs):
        raise InvalidInputError(
            f"{session.path} takes inputs_embeds and a pipeline gives input_ids; export again without "
            "--with-inputs-embeds."
        )
    require_options(cls, options)
    made = cls(session, tokenizer(), **options)
    _TOKENIZERS[session] = weakref.ref(made.tokenizer)
    return made


def _class_of(task: str) -> type[Pipeline]:
    if task not in _TASKS:
        raise InvalidInputError(f"task {task!r} is not known; expected one of {', '.join(_TASKS)}.")
    return _TASKS[task]


def _tokenizer_of(session: Session) -> Tokenizer:
    """Return the tokenizer beside an open session's artifact."""
    known = _TOKENIZERS.get(session)
    return (known and known()) or Tokenizer.from_dir(manifest_of(session.path).parent, verify=False)
