"""Small real artifacts, one per head: an ONNX graph with external weights, its manifest, and its answers in numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from erniem_rt.files import hash_file
from erniem_rt.manifest import HEADS, Limits, Manifest, TensorSpec

VOCAB, HIDDEN, LABELS, MAX_LENGTH, PAD = 50, 8, 3, 16, 1
LAYERS, ATTENTION_HEADS = 2, 4
OUTPUT_COLUMNS = {"base": HIDDEN, "cls": LABELS, "ner": LABELS, "qa": 2, "ie": 2, "mc": 1}
SIZES: dict[str, int | str] = {"hidden": HIDDEN, "labels": LABELS}


@dataclass
class Artifact:
    """A folder with one exported head, and what its graph computes."""

    folder: Path
    head: str
    weights: dict[str, np.ndarray]
    extras: tuple[str, ...] = ()
    outputs: tuple[str, ...] = field(default=())

    @property
    def path(self) -> Path:
        return self.folder / f"{self.head}.onnx"

    @property
    def data(self) -> Path:
        return self.folder / f"{self.head}.onnx.data"

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.head}.json"

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Rewrite the manifest's JSON through ``change``, which alters the parsed object."""
        content = json.loads(self.manifest.read_text("utf-8"))
        change(content)
        self.manifest.write_text(json.dumps(content), "utf-8")

    def rehash(self) -> None:
        """Bring the records of the files up to date, as if they had been exported like this."""
        self.edit(lambda m: m["files"].update({n: vars(hash_file(self.folder / n)) for n in m["files"]}))

    def answer(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
    ) -> dict[str, np.ndarray]:
        """The oracle: the same computation, written out, with the reference's defaults."""
        words = self.weights["words"][input_ids] if inputs_embeds is None else np.asarray(inputs_embeds)
        if attention_mask is None:
            attention_mask = np.ones(words.shape[:-1]) if input_ids is None else np.asarray(input_ids) != PAD
        if "position_ids" in self.extras:
            if position_ids is None:
                position_ids = np.arange(words.shape[-2])
            words = words + self.weights["positions"][position_ids]
        if "head_mask" in self.extras:
            words = words * (LAYERS * ATTENTION_HEADS if head_mask is None else np.sum(head_mask))
        tokens = words * np.asarray(attention_mask, np.float32)[..., None]
        if self.head in {"cls", "mc"}:
            tokens = tokens.sum(-2)
        projected = tokens @ self.weights["projection"]
        if self.head == "base":
            return {"last_hidden_state": projected, "pooler_output": np.tanh(projected.sum(-2))}
        if self.head in {"qa", "ie"}:
            return {"start_logits": projected[..., 0], "end_logits": projected[..., 1]}
        return {"logits": projected[..., 0] if self.head == "mc" else projected}


def _nodes(head: str, inputs: tuple[str, ...]) -> list[onnx.NodeProto]:
    """The computation of :meth:`Artifact.answer` as ONNX nodes."""
    nodes = []

    def add(kind: str, sources: list[str], target: str | list[str], **attributes: Any) -> str:
        targets = [target] if isinstance(target, str) else target
        nodes.append(helper.make_node(kind, sources, targets, **attributes))
        return targets[0]

    words = "inputs_embeds"
    if "input_ids" in inputs:
        words = add("Gather", ["words", "input_ids"], "gathered")
    if "position_ids" in inputs:
        places = add("Gather", ["positions", "position_ids"], "placed")
        words = add("Add", [words, places], "with_positions")
    if "head_mask" in inputs:
        total = add("ReduceSum", ["head_mask"], "heads", keepdims=0)
        words = add("Mul", [words, total], "with_heads")
    mask = add("Cast", ["attention_mask"], "float_mask", to=TensorProto.FLOAT)
    mask = add("Unsqueeze", [mask, "last"], "wide_mask")
    tokens = add("Mul", [words, mask], "tokens")
    if head in {"cls", "mc"}:
        tokens = add("ReduceSum", [tokens, "last_but_one"], "summed", keepdims=0)
    if head == "base":
        states = add("MatMul", [tokens, "projection"], "last_hidden_state")
        add("Tanh", [add("ReduceSum", [states, "last_but_one"], "pooled", keepdims=0)], "pooler_output")
    elif head in {"qa", "ie"}:
        both = add("MatMul", [tokens, "projection"], "both")
        add("Split", [both], ["start", "end"], axis=-1, num_outputs=2)
        add("Squeeze", ["start", "last"], "start_logits")
        add("Squeeze", ["end", "last"], "end_logits")
    elif head == "mc":
        add("Squeeze", [add("MatMul", [tokens, "projection"], "column"), "last"], "logits")
    else:
        add("MatMul", [tokens, "projection"], "logits")
    return nodes


def _input_specs(head: str, names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    axes = HEADS[head].axes
    known = {
        "inputs_embeds": TensorSpec("inputs_embeds", "float32", (*axes, HIDDEN)),
        "head_mask": TensorSpec("head_mask", "float32", (LAYERS, ATTENTION_HEADS)),
    }
    return tuple(known.get(name, TensorSpec(name, "int64", axes)) for name in names)


def _write_graph(artifact: Artifact, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    def info(spec: TensorSpec) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        return helper.make_tensor_value_info(spec.name, kind, spec.shape)

    used = [name for name in artifact.weights if name != "positions" or "position_ids" in artifact.extras]
    if "inputs_embeds" in artifact.extras:
        used.remove("words")
    constants = {"last": np.array([-1]), "last_but_one": np.array([-2])}
    graph = helper.make_graph(
        _nodes(artifact.head, tuple(spec.name for spec in inputs)),
        artifact.head,
        [info(spec) for spec in inputs],
        [info(spec) for spec in outputs],
        [numpy_helper.from_array(artifact.weights[name], name) for name in used]
        + [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save_model(
        model,
        artifact.path,
        save_as_external_data=True,
        location=artifact.data.name,
        size_threshold=60,  # of the Python object: the weights go out, the axes of the shape operators stay in
    )


def _build(folder: Path, head: str, extras: tuple[str, ...]) -> Artifact:
    rng = np.random.default_rng(len(head) + ord(head[0]))
    shapes = {
        "words": (VOCAB, HIDDEN),
        "positions": (MAX_LENGTH, HIDDEN),
        "projection": (HIDDEN, OUTPUT_COLUMNS[head]),
    }
    weights = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    artifact = Artifact(folder, head, weights, extras)
    names = ("attention_mask", *extras)
    if "inputs_embeds" not in extras:
        names = ("input_ids", *names)
    inputs = _input_specs(head, names)
    outputs = tuple(
        TensorSpec(name, "float32", tuple(SIZES.get(axis, axis) for axis in axes))
        for name, axes in HEADS[head].outputs.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write_graph(artifact, inputs, outputs)
    (folder / "config.json").write_text('{"model_type": "ernie_m"}\n', "utf-8")
    Manifest(
        head=head,
        task=HEADS[head].task,
        labels=("a", "b", "c") if head in {"cls", "ner"} else None,
        problem_type=None,
        limits=Limits(max_length=MAX_LENGTH, vocab_size=VOCAB, pad_token_id=PAD),
        inputs=inputs,
        outputs=outputs,
        precision={"weights": "fp32", "embedding": "fp32"},
        opset=20,
        target="any",
        artifact=artifact.path.name,
        files={path.name: hash_file(path) for path in (artifact.path, artifact.data, folder / "config.json")},
        checkpoint={"source": "made by a test", "sha256": "0" * 64, "architecture": "none"},
        versions={"onnx": onnx.__version__},
        engine=None,
        parity={},
    ).save(artifact.manifest)
    return artifact


@pytest.fixture
def make_artifact(tmp_path: Path) -> Callable[..., Artifact]:
    """``make_artifact(head, *extra_inputs, folder=...)`` writes an artifact that the test may damage."""

    def make(head: str = "qa", *extras: str, folder: Path | None = None) -> Artifact:
        return _build(folder or tmp_path / "out", head, extras)

    return make


@pytest.fixture
def artifact(make_artifact: Callable[..., Artifact]) -> Artifact:
    """A question-answering artifact of the test's own."""
    return make_artifact()


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """One artifact per head, in one folder, to be left as it is."""
    folder = tmp_path_factory.mktemp("heads")
    return {head: _build(folder, head, ()) for head in HEADS}
