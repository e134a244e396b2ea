"""Small artifacts, traced once per session, and a way to damage copies of them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from erniem_export.bundle import build_manifest
from erniem_export.checkpoint import Checkpoint
from erniem_export.configuration import ErnieMConfig
from erniem_export.heads import CLASSES
from erniem_export.modeling import ErnieMPreTrainedModel
from erniem_export.options import GraphOptions
from erniem_export.random_weights import randomize
from erniem_rt.manifest import Manifest, hash_file

# No two sizes alike, so that a swapped axis cannot go unseen.
TINY = {
    "vocab_size": 211,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """An artifact that nothing has checked yet, and the model that it was traced from."""

    head: str
    options: GraphOptions
    model: ErnieMPreTrainedModel
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / f"{self.head}.onnx"

    @property
    def manifest(self) -> Manifest:
        return Manifest.load(self.folder / f"{self.head}.json")


@pytest.fixture(params=["base", "cls", "ner", "mc", "qa", "ie"])
def head(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def export_model(
    written_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Exported]:
    """Return a function that traces a model into a fresh folder."""

    def export(head: str, model: ErnieMPreTrainedModel, **flags: bool) -> Exported:
        folder, options = tmp_path_factory.mktemp(head), GraphOptions(**flags)
        shutil.copytree(written_once(model.eval(), head, options), folder, dirs_exist_ok=True)
        checkpoint = Checkpoint(model, head, "test", model.config.to_json_string(use_diff=False), None)
        build_manifest(checkpoint, options, folder).save(folder / f"{head}.json")
        return Exported(head, options, model, folder)

    return export


@pytest.fixture(scope="session")
def make_model() -> Callable[..., ErnieMPreTrainedModel]:
    """Return a function that builds a small random model; keywords override its config."""

    def make(head: str, **overrides: Any) -> ErnieMPreTrainedModel:
        labels = 2 if head == "qa" else 3
        model = CLASSES[head](ErnieMConfig(**TINY | {"num_labels": labels} | overrides))
        randomize(model)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def exported(export_model: Callable[..., Exported], make_model: Callable[..., Any]) -> Callable[..., Exported]:
    """Return a function that gives the artifact of a head, traced once for all tests: do not change it."""
    cache: dict[tuple[Any, ...], Exported] = {}

    def get(head: str, **flags: bool) -> Exported:
        key = (head, *sorted(flags.items()))
        if key not in cache:
            cache[key] = export_model(head, make_model(head), **flags)
        return cache[key]

    return get


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies an artifact, edits the graph of the copy and signs it anew."""

    def damage(artifact: Exported, edit: Callable[[onnx.ModelProto], None]) -> Path:
        folder = tmp_path / "damaged"
        shutil.copytree(artifact.folder, folder)
        path = folder / artifact.path.name
        model = onnx.load(path)
        edit(model)
        Path(f"{path}.data").unlink()
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=64)
        files = {name: hash_file(folder / name) for name in artifact.manifest.files}
        dataclasses.replace(artifact.manifest, files=files).save(folder / f"{artifact.head}.json")
        return path

    return damage


@pytest.fixture(scope="session")
def case_inputs() -> Callable[..., dict[str, Any]]:
    """Return a function that draws inputs for an artifact, right-padded, at the given sizes."""
    generator = torch.Generator().manual_seed(3)

    def draw(artifact: Exported, **sizes: int) -> dict[str, Any]:
        feeds = {}
        for spec in artifact.manifest.inputs:
            shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
            if spec.name == "attention_mask":
                lengths = torch.randint(1, shape[-1] + 1, (*shape[:-1], 1), generator=generator)
                values = (torch.arange(shape[-1]) < lengths).long()
            elif spec.dtype == "int64":
                stop = TINY["vocab_size"] if spec.name == "input_ids" else artifact.manifest.limits.max_length
                values = torch.randint(0, stop, shape, generator=generator)
            else:
                values = torch.rand(shape, generator=generator)
            feeds[spec.name] = values.numpy()
        return feeds

    return draw
