"""The tree of errors."""

from __future__ import annotations

import pytest

import erniem_rt
from erniem_rt import errors


@pytest.mark.parametrize(
    ("name", "bases"),
    [
        ("ErnieMError", (Exception,)),
        ("InvalidInputError", (errors.ErnieMError, ValueError)),
        ("ArtifactError", (errors.ErnieMError,)),
        ("EngineUnavailableError", (errors.ErnieMError, ImportError)),
        ("EngineError", (errors.ErnieMError, RuntimeError)),
    ],
)
def test_each_error_has_the_root_and_the_fitting_builtin(name, bases):
    assert getattr(errors, name).__bases__ == bases
    assert getattr(erniem_rt, name) is getattr(errors, name)


def test_all_errors_are_public():
    names = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert names
    assert set(names) <= set(erniem_rt.__all__)
