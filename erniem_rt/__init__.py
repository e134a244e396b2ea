"""Run exported ErnieM models from numpy: arrays or text in, arrays out, no torch.

The names below are loaded at first use, so that ``import erniem_rt`` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erniem_rt.batcher import Batcher, BatcherStats
    from erniem_rt.errors import (
        ArtifactError,
        EngineError,
        EngineUnavailableError,
        ErnieMError,
        InvalidInputError,
        QueueFullError,
    )
    from erniem_rt.pipelines import pipeline
    from erniem_rt.pipelines.answers import (
        ChoiceAnswer,
        Entity,
        Extraction,
        LabelScore,
        QuestionAnswer,
        ZeroShotAnswer,
    )
    from erniem_rt.pipelines.feature_extraction import FeatureExtractionPipeline
    from erniem_rt.pipelines.information_extraction import InformationExtractionPipeline
    from erniem_rt.pipelines.multiple_choice import MultipleChoicePipeline
    from erniem_rt.pipelines.question_answering import QuestionAnsweringPipeline
    from erniem_rt.pipelines.text_classification import TextClassificationPipeline
    from erniem_rt.pipelines.token_classification import TokenClassificationPipeline
    from erniem_rt.pipelines.zero_shot_classification import ZeroShotClassificationPipeline
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer

__all__ = [
    "ArtifactError",
    "Batcher",
    "BatcherStats",
    "ChoiceAnswer",
    "EngineError",
    "EngineUnavailableError",
    "Entity",
    "ErnieMError",
    "Extraction",
    "FeatureExtractionPipeline",
    "InformationExtractionPipeline",
    "InvalidInputError",
    "LabelScore",
    "MultipleChoicePipeline",
    "QuestionAnswer",
    "QuestionAnsweringPipeline",
    "QueueFullError",
    "Session",
    "TextClassificationPipeline",
    "TokenClassificationPipeline",
    "Tokenizer",
    "ZeroShotAnswer",
    "ZeroShotClassificationPipeline",
    "pipeline",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = _loaded(name)
    return value


def _loaded(name: str) -> object:
    # Plain imports, so that packaging tools find them.
    if name == "Session":
        from erniem_rt.session import Session

        return Session
    if name.startswith("Batcher"):
        from erniem_rt import batcher

        return getattr(batcher, name)
    if name == "Tokenizer":
        from erniem_rt.tokenizer import Tokenizer

        return Tokenizer
    if name == "pipeline" or name.endswith("Pipeline"):
        from erniem_rt import pipelines

        return getattr(pipelines, name)
    if name.endswith("Error"):
        from erniem_rt import errors

        return getattr(errors, name)
    from erniem_rt.pipelines import answers

    return getattr(answers, name)


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
