"""``import erniem_rt`` loads numpy and the standard library at most, fast, and shows exactly its public names."""

from __future__ import annotations

import ast
import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import erniem_rt

PACKAGE = Path(erniem_rt.__file__).parent
ALLOWED = {"erniem_rt", "numpy", *sys.stdlib_module_names}
# Imported in this order: what the interpreter itself starts with is not counted.
REPORT = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
before, start = set(sys.modules), time.perf_counter()
exec(sys.argv[2])
seconds = time.perf_counter() - start
print(json.dumps([sorted({name.split(".")[0] for name in set(sys.modules) - before}), seconds]))
"""


def loaded_by(statement: str, root: Path = PACKAGE.parent) -> tuple[set[str], float]:
    """Top-level modules that ``statement`` loads in a fresh interpreter, and the seconds it takes."""
    command = [sys.executable, "-I", "-c", REPORT, str(root), statement]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules, seconds = json.loads(done.stdout)
    return set(modules), seconds


def test_the_import_is_fast():
    # The best of three: the others measure what else the machine does.
    assert min(loaded_by("import erniem_rt")[1] for _ in range(3)) < 0.150


def modules_of(package: str) -> str:
    names = [module.name for module in pkgutil.iter_modules([str(PACKAGE / package)])]
    assert len(names) > 4
    return ", ".join(f"erniem_rt.{package}.{name}" for name in names)


@pytest.mark.parametrize(
    "statement",
    [
        "import erniem_rt",
        *(
            f"import erniem_rt; erniem_rt.{name}"
            for name in ("Batcher", "Session", "Tokenizer", "pipeline", "ErnieMError")
        ),
        f"import {modules_of('pipelines')}",
        f"import {modules_of('engines')}",
    ],
)
def test_imports_are_pure(statement):
    modules, _ = loaded_by(statement)
    assert "erniem_rt" in modules
    assert modules <= ALLOWED


@pytest.mark.parametrize("name", ["Session", "pipeline"])
def test_what_loads_in_threads_has_numpy_before(name):
    # Two threads that import numpy at once may find it half made: "partially initialized module".
    assert "numpy" in loaded_by(f"import erniem_rt; erniem_rt.{name}")[0]


def test_tools_that_pack_programs_find_every_module_by_reading_imports():
    found, unread = set(), ["erniem_rt"]
    while unread:
        name = unread.pop()
        path = PACKAGE.parent / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in found or (name.startswith("erniem_rt") and not path.is_file()):
            continue  # not a module, but a name in one
        found.add(name)
        unread += imported_by(name, path) if name.startswith("erniem_rt") else []
    modules = {name for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], "erniem_rt.")}
    commands = {name for name in modules if name in ("erniem_rt.cli", "erniem_rt.__main__")}
    assert modules - found <= commands | {f"erniem_rt.{name}" for name in ("ray", "serve", "triton")}
    assert {"onnxruntime", "sentencepiece", "tensorrt", "tensorrt_rtx", "cuda.bindings.runtime"} <= found


def imported_by(name, path):
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if base.startswith("erniem_rt"))


@pytest.mark.parametrize(("file", "statement"), [("__init__.py", ""), ("session.py", "; erniem_rt.Session")])
def test_an_import_that_does_not_belong_is_seen(tmp_path, file, statement):
    shutil.copytree(PACKAGE, tmp_path / "erniem_rt", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "heavy.py").touch()
    with (tmp_path / "erniem_rt" / file).open("a") as source:
        source.write("\nimport heavy\n")
    modules, _ = loaded_by("import erniem_rt" + statement, tmp_path)
    assert modules - ALLOWED == {"heavy"}


def test_a_slow_import_is_seen(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "erniem_rt", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "erniem_rt" / "__init__.py").open("a") as source:
        source.write("\nimport time\ntime.sleep(0.15)\n")
    assert loaded_by("import erniem_rt", tmp_path)[1] >= 0.150


def test_the_public_names_are_these():
    assert erniem_rt.__all__ == [
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
    assert dir(erniem_rt) == sorted([*erniem_rt.__all__, "__version__"])
    for name in erniem_rt.__all__:
        assert getattr(erniem_rt, name).__name__ == name


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'erniem_rt' has no attribute 'nothing'"):
        _ = erniem_rt.nothing


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()
