"""Runs other tools on our artifacts: which forms each one reads, and how far its outputs differ from ours.

Exports nano, runs every tool, and compares the table with the one in docs/interop.md: a changed row is an error.
``--write-docs`` writes the table. For Node, ``npm`` installs two packages into a temporary folder. Without Node, and
for tools that are not installed, the row of the document stays.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.metadata
import io
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import erniem_rt
from benchmarks.documents import EMPTY, ROOT, read_block, table, write_blocks

DOCUMENT = ROOT / "docs" / "interop.md"
BLOCK = "interop"
CHECKPOINTS = ROOT / "examples" / "nano" / "checkpoints"
NPM = {"onnxruntime-node": "1.30.0", "onnxruntime-web": "1.30.0"}
VARIANTS: dict[str, dict[str, str]] = {"portable": {"target": "portable"}, "default": {}, "int8": {"precision": "int8"}}
TEXTS = (
    "The lighthouse keeper wrote 3 letters in 1897.",
    "Gestern haben wir auf dem Straßenfest überraschend viele Nachbarn getroffen, und niemand wollte gehen.",
    "L'été dernier, nous avons dîné à Besançon.",
    "El pingüino caminó despacio.",
    "Вчера мы долго спорили о том, где поставить книжный шкаф.",
    "图书馆今天上午9点开门。",
)
_ROUNDED = "L2 ≤ 0.1"
_SCRIPT = """
import fs from 'node:fs';
const [,, name, model, weights, rows] = process.argv;
const ort = await import(name);
const { ids, mask, shape } = JSON.parse(fs.readFileSync(rows));
const tensor = (values) => new ort.Tensor('int64', BigInt64Array.from(values.map(BigInt)), shape);
const options = {};
if (name === 'onnxruntime-web') {
  ort.env.wasm.numThreads = 1;
  options.externalData = [{ path: weights.split('/').pop(), data: fs.readFileSync(weights) }];
}
const session = await ort.InferenceSession.create(name === 'onnxruntime-web' ? fs.readFileSync(model) : model, options);
const found = await session.run({ input_ids: tensor(ids), attention_mask: tensor(mask) });
console.log(JSON.stringify(Array.from(found.logits.data)));
"""


class Row(NamedTuple):
    """A row of the table: the tool's name, its packages, a function that runs it on all VARIANTS, and a note."""

    tool: str
    packages: tuple[str, ...]
    cells: Callable[[Path], list[str]]
    note: str


def main() -> None:
    """Export, run every tool, compare with the document or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write-docs", action="store_true")
    parser.add_argument("--artifacts", type=Path, help="where the exports are, or go; default: a temporary folder")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.artifacts or Path(temporary)
        _export(folder)
        text = made_table(folder)
    print(text)
    if options.write_docs:
        write_blocks({(DOCUMENT, BLOCK): text})
    if changed := changes(text):
        sys.exit(f"{DOCUMENT.name} says otherwise; if this is right now, run with --write-docs:\n{changed}")


def changes(text: str) -> str:
    """Return the lines in which a table differs from the document's; empty if they are equal."""
    told = (read_block(DOCUMENT, BLOCK) or "").splitlines()
    lines = difflib.unified_diff(told, text.splitlines(), lineterm="", n=0)
    return "\n".join(line for line in lines if line[:3] not in ("---", "+++") and line[:2] != "@@")


def made_table(folder: Path) -> str:
    """Return the table of the tools in :data:`ROWS`."""
    told = {line.split(" | ")[0]: line for line in (read_block(DOCUMENT, BLOCK) or "").splitlines()}
    lines = table(["tool", "versions", *VARIANTS, "what to know"], []).splitlines()
    for row in ROWS:
        print(f"{row.tool} ...", file=sys.stderr, flush=True)
        versions = _versions(row.packages)
        if versions is None:
            print("  not installed: not checked", file=sys.stderr)
            lines += [line for start, line in told.items() if start == f"| {row.tool}"]
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            cells = row.cells(folder)
        lines.append(table([row.tool, versions, *cells, row.note], []).splitlines()[0])
    return "\n".join(lines) + "\n"


def _versions(packages: tuple[str, ...]) -> str | None:
    found = []
    for name in packages:
        if name in NPM:
            if shutil.which("npm") is None:
                return None
            found.append(f"{name} {NPM[name]}")
            continue
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            return None
    return ", ".join(found)


def _export(folder: Path) -> None:
    """Export nano for the tools: cls, and base with CLS pooling, in each variant; qa and ner."""
    import erniem_export

    sentences = folder / "sentences"
    if not sentences.exists():
        shutil.copytree(CHECKPOINTS / "base", sentences)
        modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
        kinds = [{"type": f"sentence_transformers.models.{name}", "path": path} for name, path in modules]
        (sentences / "modules.json").write_text(json.dumps(kinds))
        (sentences / "1_Pooling").mkdir()
        (sentences / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
        (sentences / "sentence_bert_config.json").write_text('{"max_seq_length": 16, "do_lower_case": true}')
    wanted = [("cls", name, options, "flat") for name, options in VARIANTS.items()]
    wanted += [("base", name, options, "optimum") for name, options in VARIANTS.items()]
    wanted += [(head, "default", {}, "flat") for head in ("qa", "ner")]
    for head, name, options, layout in wanted:
        if not (folder / head / name).exists():
            print(f"exporting {head}, {name} ...", file=sys.stderr, flush=True)
            model = sentences if head == "base" else CHECKPOINTS / head
            erniem_export.export(model, folder / head / name, layout=layout, quiet=True, **options)  # type: ignore[arg-type]


def _feeds(folder: Path) -> dict[str, Any]:
    encoded = erniem_rt.Tokenizer.from_dir(folder).batch(list(TEXTS))
    return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}


def _ours(artifact: Path) -> Any:
    with erniem_rt.Session(artifact, engine="onnxruntime") as session:
        return session.run(_feeds(artifact.parent))["logits"]


def _each(folder: Path, compute: Callable[[Path, dict[str, Any]], Any], head: str = "cls") -> list[str]:
    """Return a cell per variant: the difference of a tool's logits from ours, or the name of its error."""
    cells = []
    for name in VARIANTS:
        artifact = folder / head / name / f"{head}.onnx"
        try:
            found = np.asarray(compute(artifact, _feeds(artifact.parent)))
        except Exception as error:  # every tool raises errors of its own
            cells.append(type(error).__name__)
            continue
        cells.append(_bound(found, _ours(artifact)))
    return cells


def _bound(found: Any, expected: Any) -> str:
    """Return the largest difference, rounded up to a power of ten, or else the relative L2 error."""
    if found.shape != expected.shape:
        return f"shape {found.shape}"
    difference = float(np.abs(found - expected).max())
    for exponent in (5, 4):
        if difference <= 10.0**-exponent:
            return f"≤ 1e-{exponent}"
    relative = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    return _ROUNDED if relative <= 0.1 else f"L2 {relative:.1f}"


def _in_onnxruntime(model: Path | bytes, feeds: dict[str, Any]) -> Any:
    import onnxruntime

    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(["logits"], feeds)[0]


def _quantized(artifact: Path, feeds: dict[str, Any]) -> Any:
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(artifact, Path(folder) / "model.onnx")
        return _in_onnxruntime(Path(folder) / "model.onnx", feeds)


def _by_optimum(artifact: Path, feeds: dict[str, Any]) -> Any:
    """Run optimum with the mask that the exported tokenizer returns by default."""
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(artifact.parent)(list(TEXTS), padding=True, return_tensors="pt")
    if encoded["attention_mask"].tolist() != feeds["attention_mask"].tolist():
        raise ValueError("another mask")
    if encoded["input_ids"].tolist() != feeds["input_ids"].tolist():
        raise ValueError("other ids")
    return ORTModelForSequenceClassification.from_pretrained(artifact.parent)(**encoded).logits


def _pipelines(folder: Path) -> list[str]:
    """Compare the answers of transformers' pipelines over an ORTModel with ours."""
    from optimum import onnxruntime as optimum
    from transformers import AutoTokenizer, pipeline

    def theirs(task: str, head: str, model: str) -> Any:
        where = folder / head / "default"
        network = getattr(optimum, f"ORTModelFor{model}").from_pretrained(where)
        return pipeline(task, model=network, tokenizer=AutoTokenizer.from_pretrained(where))

    def label(found: Any) -> Any:
        return [answer["label"] for answer in found]

    found = []
    with erniem_rt.pipeline(folder / "cls" / "default") as ours:
        labels = label(theirs("text-classification", "cls", "SequenceClassification")(list(TEXTS)))
        found.append(f"labels {_same(labels == label(ours(list(TEXTS))))}")
    text = "Fiona Kendall left Denver on 4 March 2003."
    with erniem_rt.pipeline(folder / "ner" / "default", aggregation_strategy="none") as ours:
        entities = theirs("token-classification", "ner", "TokenClassification")(text)
        named = [(entity["entity"], entity["index"]) for entity in entities]
        expected = [(entity["entity"], entity["index"]) for entity in ours(text)]
        offsets = "" if entities[0]["start"] is not None else ", no offsets"
        found.append(f"entities {_same(named == expected)}{offsets}")
    lines = (CHECKPOINTS / "qa" / "task_set.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    asked = [{key: json.loads(line)[key] for key in ("question", "context")} for line in lines]
    with erniem_rt.pipeline(folder / "qa" / "default") as ours:
        answer = theirs("question-answering", "qa", "QuestionAnswering")
        alike = [_answer(answer, each) == ours(**each)["answer"] for each in asked]
        found.append(f"answers {_same(all(alike))}")
    return [EMPTY, "; ".join(found), EMPTY]


def _answer(theirs: Any, asked: dict[str, str]) -> str | None:
    try:
        return str(theirs(**asked)["answer"])
    except KeyError:  # transformers raises it if the last token is a candidate
        return None


def _same(alike: bool) -> str:
    return "the same" if alike else "**wrong**"


def _by_sentence_transformers(folder: Path) -> list[str]:
    from sentence_transformers import SentenceTransformer

    cells = []
    for name in VARIANTS:
        artifact = folder / "base" / name
        with erniem_rt.pipeline(artifact, engine="onnxruntime") as ours:
            expected = ours(list(TEXTS))
        model = SentenceTransformer(str(artifact), backend="onnx", device="cpu")
        cells.append(_bound(model.encode(list(TEXTS)), expected))
    return cells


def _by_fastembed(folder: Path) -> list[str]:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    files = {"model_file": "onnx/model.onnx", "additional_files": ["onnx/model.onnx_data"]}
    TextEmbedding.add_custom_model(
        "local/nano",
        pooling=PoolingType.MEAN,
        normalization=False,
        sources=ModelSource(hf="local/nano"),
        dim=96,
        **files,
    )
    cells = []
    for name in VARIANTS:
        try:
            TextEmbedding("local/nano", specific_model_path=str(folder / "base" / name))
        except ValueError as error:
            cells.append("no tokenizer.json" if "tokenizer.json" in str(error) else "ValueError")
        else:
            cells.append("loads")
    return cells


def _by_openvino(artifact: Path, feeds: dict[str, Any], quantize: bool = False) -> Any:
    import openvino

    core = openvino.Core()
    network = core.read_model(artifact)
    if quantize:
        import nncf

        rows = [{name: value[i : i + 1] for name, value in feeds.items()} for i in range(len(TEXTS))]
        kind = nncf.ModelType.TRANSFORMER
        network = nncf.quantize(network, nncf.Dataset(rows), model_type=kind, subset_size=len(rows))
    # By default it computes in bf16 on a CPU with bf16.
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(feeds)["logits"]


def _by_onnxslim(artifact: Path, feeds: dict[str, Any]) -> Any:
    import onnxslim

    return _in_onnxruntime(onnxslim.slim(str(artifact)).SerializeToString(), feeds)


def _by_onnxsim(artifact: Path, feeds: dict[str, Any]) -> Any:
    import onnx
    import onnxsim

    simplified, checked = onnxsim.simplify(onnx.load(artifact))
    if not checked:
        raise ValueError("not the same, says onnxsim")
    return _in_onnxruntime(simplified.SerializeToString(), feeds)


def _by_ctranslate2(folder: Path) -> list[str]:
    """Convert the checkpoint as XLM-R, and compare the hidden states on rows padded on the right."""
    import ctranslate2
    import torch
    from ctranslate2.converters.transformers import XLMRobertaLoader
    from transformers.models.deprecated.ernie_m import ErnieMForSequenceClassification

    from benchmarks.related_models import as_xlm_roberta

    network = ErnieMForSequenceClassification.from_pretrained(CHECKPOINTS / "cls").eval()
    loader = XLMRobertaLoader()
    spec = loader.get_model_spec(as_xlm_roberta(network))
    spec.config.unk_token, spec.config.layer_norm_epsilon = "3", network.config.layer_norm_eps
    loader.set_vocabulary(spec, [str(i) for i in range(network.config.vocab_size)])
    spec.validate()
    with tempfile.TemporaryDirectory() as target:
        spec.save(target)
        encoder = ctranslate2.Encoder(target, device="cpu")
        feeds = _feeds(folder / "cls" / "default")
        rows = [row[mask == 1].tolist() for row, mask in zip(feeds["input_ids"], feeds["attention_mask"], strict=True)]
        output = encoder.forward_batch(rows)
        states = np.asarray(output.last_hidden_state)
    with torch.no_grad():
        expected = network.ernie_m(**{name: torch.from_numpy(value) for name, value in feeds.items()})[0].numpy()
    there = feeds["attention_mask"] == 1
    lost = "" if hasattr(output, "logits") else ", no head"
    return [f"{_bound(states[there], expected[there])} in fp32{lost}", EMPTY, EMPTY]


def _by_node(folder: Path, package: str) -> list[str]:
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "run.mjs").write_text(_SCRIPT)
        # Without their install scripts, which download libraries for GPUs.
        install = ["npm", "install", "--silent", "--ignore-scripts", f"{package}@{NPM[package]}"]
        subprocess.run(install, cwd=work, check=True, timeout=300, stdout=subprocess.DEVNULL)

        def compute(artifact: Path, feeds: dict[str, Any]) -> Any:
            ids, mask = feeds["input_ids"], feeds["attention_mask"]
            rows = {"ids": ids.ravel().tolist(), "mask": mask.ravel().tolist(), "shape": ids.shape}
            (work / "rows.json").write_text(json.dumps(rows))
            command = ["node", "run.mjs", package, str(artifact.resolve()), f"{artifact.resolve()}.data", "rows.json"]
            answer = subprocess.run(command, cwd=work, check=True, capture_output=True, text=True, timeout=300)
            return np.array(json.loads(answer.stdout), dtype=np.float32).reshape(len(ids), -1)

        cells = _each(folder, compute)
    if package == "onnxruntime-web":  # a difference in the last bit may change int8's rounding
        cells[-1] = cells[-1].replace("≤ 1e-5", _ROUNDED).replace("≤ 1e-4", _ROUNDED)
    return cells


ROWS = (
    Row(
        "optimum `ORTModelFor…`",
        ("optimum", "optimum-onnx", "transformers"),
        lambda folder: _each(folder, _by_optimum),
        "Reads the default layout (from the hub: `--layout optimum`, or it does not fetch the weights). The exported "
        "tokenizer gives `attention_mask`. optimum-onnx 0.1.0 cannot be imported beside transformers 5",
    ),
    Row(
        "transformers `pipeline` on an `ORTModel`",
        ("transformers",),
        _pipelines,
        "Its question answering does not count the second separator ([why](#optimum)): use `erniem_rt.pipeline`. Its "
        "token classification has no offsets from a slow tokenizer",
    ),
    Row(
        'sentence-transformers, `backend="onnx"`',
        ("sentence-transformers",),
        _by_sentence_transformers,
        "`--layout optimum`; pooling, normalisation, length and case are the checkpoint's. Version 6 needs "
        "transformers 5, which has no ErnieM",
    ),
    Row(
        "fastembed",
        ("fastembed",),
        _by_fastembed,
        "Needs a `tokenizer.json`, and there is none that gives ErnieM's ids: compute them with `erniem_rt.Tokenizer`",
    ),
    Row(
        "ONNX Runtime `quantize_dynamic`",
        ("onnxruntime",),
        lambda folder: [*_each(folder, _quantized)[:2], EMPTY],
        "All six heads. `--int8` is faster ([speed](benchmarks.md#results))",
    ),
    Row(
        "OpenVINO",
        ("openvino",),
        lambda folder: _each(folder, _by_openvino),
        'In fp32. On a CPU with bf16 it computes in bf16 unless `INFERENCE_PRECISION_HINT` is `"f32"`',
    ),
    Row(
        "NNCF `quantize`",
        ("nncf", "openvino"),
        lambda folder: _each(folder, partial(_by_openvino, quantize=True)),
        "Its own int8, after training, of every graph that OpenVINO reads",
    ),
    Row("onnxslim", ("onnxslim",), lambda folder: _each(folder, _by_onnxslim), "Reads and writes every graph"),
    Row("onnxsim", ("onnxsim",), lambda folder: _each(folder, _by_onnxsim), "Reads and writes every graph"),
    Row(
        "CTranslate2, from the checkpoint as XLM-R",
        ("ctranslate2",),
        _by_ctranslate2,
        "Hidden states only: its converter drops head and pooler. Rows padded on the right",
    ),
    Row(
        "Node",
        ("onnxruntime-node",),
        lambda folder: _by_node(folder, "onnxruntime-node"),
        "`BigInt64Array`; the mask is mandatory",
    ),
    Row(
        "WebAssembly",
        ("onnxruntime-web",),
        lambda folder: _by_node(folder, "onnxruntime-web"),
        "The weights as `externalData`; otherwise as Node, in which it is measured here",
    ),
)


if __name__ == "__main__":
    main()
