"""Pipelines without a model: a session that a Python function answers. And small real artifacts with a tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from erniem_rt import Tokenizer
from erniem_rt.cli import main
from erniem_rt.files import hash_file
from erniem_rt.manifest import HEADS, Defaults, Limits, Manifest, TensorSpec
from erniem_rt.session import prepare

HIDDEN, VOCAB, PAD = 4, 2000, 1
COLUMNS = {"base": HIDDEN, "qa": 2, "ie": 2, "mc": 1}

# One row's ids, without padding, to its outputs by name, without batch axis. A choice of ``mc`` is a row.
Function = Callable[[list[int]], Mapping[str, Any]]

# The command line's exit code, its answers and what it said.
Answers = tuple[int, list[Any], str]


class ScriptedSession:
    """What pipelines use of a Session, answered by a function of one row's ids.

    Inputs are checked as Session does it. Where a row is padded, outputs are NaN: no pipeline may look there.

    Attributes:
        batches: The ids of each run, as they came.
        closed: Whether ``close`` was called.
        threads: As a Session's.
    """

    threads = 1

    def __init__(self, manifest: Manifest, function: Function) -> None:
        self.manifest, self.limits = manifest, manifest.limits
        self.batches: list[np.ndarray] = []
        self.closed = False
        self._function = function

    def run(self, inputs: Mapping[str, Any] | None = None, /, **named: Any) -> dict[str, np.ndarray]:
        feeds = prepare(self.manifest, {**(inputs or {}), **named})
        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        self.batches.append(ids)
        leading, longest = ids.shape[:-1], ids.shape[-1]
        answers = [
            self._function([int(i) for i in row[kept == 1]])
            for row, kept in zip(ids.reshape(-1, longest), mask.reshape(-1, longest), strict=True)
        ]
        return {
            spec.name: np.stack([_padded(spec, answer[spec.name], longest) for answer in answers]).reshape(
                *leading, *_padded(spec, answers[0][spec.name], longest).shape
            )
            for spec in self.manifest.outputs
        }

    def run_all(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, np.ndarray]]:
        return map(self.run, batches)

    def close(self) -> None:
        self.closed = True


def _padded(spec: TensorSpec, output: Any, length: int) -> np.ndarray:
    output = np.asarray(output, np.float32)
    if "sequence" not in spec.shape:
        return output
    return np.pad(output, [(0, length - len(output))] + [(0, 0)] * (output.ndim - 1), constant_values=np.nan)


@dataclass(frozen=True)
class TextArtifact:
    """An exported folder with a tokenizer, and the function of one row that its graph computes."""

    path: Path
    table: np.ndarray

    def function(self, ids: list[int]) -> dict[str, np.ndarray]:
        head, values = self.path.stem, self.table[ids]
        if head == "base":
            return {"last_hidden_state": values, "pooler_output": np.tanh(values[0])}
        if head in {"qa", "ie"}:
            return {"start_logits": values[:, 0], "end_logits": values[:, 1]}
        if head == "ner":
            return {"logits": values}
        return {"logits": values.sum(0) if head == "cls" else values.sum()}


def make_manifest(
    head: str,
    *,
    labels: tuple[str, ...] | None = None,
    problem_type: str | None = None,
    max_length: int = 64,
    files: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    lacks: Collection[str] = (),
) -> Manifest:
    sizes = {"hidden": HIDDEN, "labels": len(labels or ())}
    return Manifest(
        head=head,
        task=HEADS[head].task,
        labels=labels,
        problem_type=problem_type,
        limits=Limits(max_length=max_length, vocab_size=VOCAB, pad_token_id=PAD),
        inputs=tuple(TensorSpec(name, "int64", HEADS[head].axes) for name in ("input_ids", "attention_mask")),
        outputs=tuple(
            TensorSpec(name, "float32", tuple(sizes.get(axis, axis) for axis in axes))
            for name, axes in HEADS[head].outputs.items()
            if name not in lacks
        ),
        precision={"weights": "fp32", "embedding": "fp32"},
        opset=20,
        target="any",
        artifact=f"{head}.onnx",
        files=files or {},
        checkpoint={},
        versions={},
        engine=None,
        parity={},
        defaults=Defaults(**(defaults or {})),
    )


def _make_graph(manifest: Manifest, table: np.ndarray) -> onnx.ModelProto:
    """Write the computation of :meth:`TextArtifact.function` as ONNX nodes."""
    node, head = helper.make_node, manifest.head
    nodes = [node("Gather", ["table", "input_ids"], ["values"])]
    if head in {"cls", "mc"}:
        nodes += [
            node("Cast", ["attention_mask"], ["kept"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["kept", "last"], ["column"]),
            node("Mul", ["values", "column"], ["tokens"]),
            node("ReduceSum", ["tokens", "last_but_one"], ["logits" if head == "cls" else "sums"], keepdims=0),
        ]
    if head == "mc":
        nodes += [node("Squeeze", ["sums", "last"], ["logits"])]
    elif head == "base":
        nodes += [
            node("Identity", ["values"], ["last_hidden_state"]),
            node("Gather", ["values", "zero"], ["first"], axis=1),
            node("Tanh", ["first"], ["pooler_output"]),
        ]
    elif head == "ner":
        nodes += [node("Identity", ["values"], ["logits"])]
    elif head in {"qa", "ie"}:
        nodes += [
            node("Split", ["values"], ["start", "end"], axis=-1, num_outputs=2),
            node("Squeeze", ["start", "last"], ["start_logits"]),
            node("Squeeze", ["end", "last"], ["end_logits"]),
        ]

    def info(spec: TensorSpec) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        return helper.make_tensor_value_info(spec.name, kind, spec.shape)

    constants = {"table": table, "last": np.array([-1]), "last_but_one": np.array([-2]), "zero": np.array(0)}
    graph = helper.make_graph(
        nodes,
        head,
        [info(spec) for spec in manifest.inputs],
        [info(spec) for spec in manifest.outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    """The tokenizer of :func:`tokenizer_dir`; it reads the ``sentences``' 18 scripts and has about 900 tokens."""
    return Tokenizer.from_dir(tokenizer_dir)


@pytest.fixture(scope="session")
def scripted_session() -> Callable[..., ScriptedSession]:
    """``scripted_session(head, function, **options)``; the options are those of :func:`make_manifest`."""

    def make(head: str, function: Function, **options: Any) -> ScriptedSession:
        return ScriptedSession(make_manifest(head, **options), function)

    return make


@pytest.fixture
def make_text_artifact(tmp_path: Path, tokenizer_dir: Path) -> Callable[..., TextArtifact]:
    """``make_text_artifact(head, *, labels=None, problem_type=None, max_length=64)`` exports a real small graph."""

    def make(head: str, **options: Any) -> TextArtifact:
        folder = tmp_path / head
        shutil.copytree(tokenizer_dir, folder)
        columns = COLUMNS.get(head) or len(options["labels"])
        table = np.random.default_rng(len(head)).standard_normal((VOCAB, columns), dtype=np.float32)
        artifact = TextArtifact(folder / f"{head}.onnx", table)
        onnx.save_model(_make_graph(make_manifest(head, **options), table), artifact.path)
        files = {path.name: hash_file(path) for path in folder.iterdir()}
        make_manifest(head, files=files, **options).save(folder / f"{head}.json")
        return artifact

    return make


@pytest.fixture
def answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answers]:
    """Run the command on lines; return the exit code, the parsed output lines and standard error."""

    def run(artifact: Path, lines: list[bytes | Any], *options: str) -> Answers:
        source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_bytes(
            b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
        )
        target.write_bytes(b'"from before"\n')
        code = main([str(artifact), "--input", str(source), "--output", str(target), *options])
        answers = [json.loads(line) for line in target.read_bytes().splitlines()]
        return code, answers, capsys.readouterr().err

    return run
