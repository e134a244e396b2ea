"""Run exported ErnieM models from numpy: arrays or text in, arrays out, no torch.

The names below are loaded when they are first used, so that ``import erniem_rt`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erniem_rt.errors import ArtifactError, EngineError, EngineUnavailableError, ErnieMError, InvalidInputError
    from erniem_rt.pipelines import pipeline
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer

__all__ = [
    "ArtifactError",
    "EngineError",
    "EngineUnavailableError",
    "ErnieMError",
    "InvalidInputError",
    "Session",
    "Tokenizer",
    "pipeline",
]
__version__ = "0.1.0"

_HOMES = {
    "Session": "erniem_rt.session",
    "Tokenizer": "erniem_rt.tokenizer",
    "pipeline": "erniem_rt.pipelines",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES.get(name, "erniem_rt.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
