"""From text to answer, tokenizer included: our pipeline against transformers', on the nano classifier."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.client import Client, WorkerError
from benchmarks.engines import EngineSpec
from benchmarks.measure import Say, check_all, close_all, open_all, time_rounds
from benchmarks.prepare import ROOT, last_line
from benchmarks.workloads import Workload

REFERENCE = EngineSpec("pipeline-transformers", "transformers' pipeline", "fp32", "pipeline_transformers", "nano")
OURS = EngineSpec("pipeline-erniem-rt", "erniem-rt's pipeline", "fp32", "pipeline_erniem", "nano-exported")
LANGUAGES = ("ar", "de", "en", "es", "ru", "zh")
PER_LANGUAGE, BATCH = 16, 32

NANO = ROOT / "examples" / "nano"
CHECKPOINT = NANO / "checkpoints" / "cls"


def end_to_end(
    folder: Path, open_client: Callable[[EngineSpec, Path], Client], rounds: int, say: Say
) -> dict[str, Any]:
    """Measure both pipelines on held-out pairs in six languages; only a gap if the checkpoint is not there."""
    if not (CHECKPOINT / "config.json").exists():
        return {"gap": "examples/nano/checkpoints/cls is not there; make nano-train makes it"}
    gap = _prepare(CHECKPOINT, folder)
    if gap is not None:
        return {"gap": gap}
    texts = _texts()
    workload = Workload("texts", f"{len(texts)} pairs of texts", texts, texts, BATCH)
    path = folder / "texts.json"
    path.write_text(json.dumps({"texts": {"rows": texts, "checked": texts, "batch_size": BATCH}}), encoding="utf-8")
    gaps: dict[str, str] = {}
    clients = open_all([REFERENCE, OURS], lambda spec: open_client(spec, path), gaps, say)
    try:
        if REFERENCE.name in gaps:
            return {"gap": f"{REFERENCE.label} {gaps[REFERENCE.name]}"}
        verdicts = check_all(clients, [workload], say, reference=REFERENCE.name)
        time_rounds(clients, [workload], verdicts, rounds, say)
    except WorkerError as error:
        return {"gap": str(error)}
    finally:
        close_all(clients)
    engines = {}
    for spec in (REFERENCE, OURS):
        found = verdicts[spec.name]["texts"] if spec.name in verdicts else {"gap": gaps[spec.name]}
        found.pop("first_logits", None)
        engines[spec.name] = {"label": spec.label, **found}
    return {
        "gap": None,
        "model": "examples/nano/checkpoints/cls",
        "texts": len(texts),
        "batch_size": BATCH,
        "engines": engines,
    }


def _prepare(checkpoint: Path, folder: Path) -> str | None:
    link = folder / REFERENCE.artifact
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoint, target_is_directory=True)
    command = [str(Path(sys.executable).with_name("erniem-export")), "--model", str(checkpoint)]
    done = subprocess.run(
        [*command, "--target", "onnxruntime", "--output", str(folder / OURS.artifact)],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"exporting nano failed: {last_line(done.stderr)}" if done.returncode else None


def _texts() -> tuple[Any, ...]:
    examples = []
    for language in LANGUAGES:
        command = [sys.executable, str(NANO / "generate.py"), "--task", "cls", "--split", "heldout"]
        command += ["--count", str(PER_LANGUAGE), "--language", language]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        examples += [json.loads(line) for line in done.stdout.splitlines()]
    return tuple({"text": example["premise"], "text_pair": example["hypothesis"]} for example in examples)
