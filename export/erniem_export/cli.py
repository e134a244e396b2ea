"""``erniem-export`` and ``erniem-verify``."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniem_export.engine_arguments import add_engine_arguments, engine_options
from erniem_export.errors import ExportError, OptionError, ParityError
from erniem_export.options import (
    CPUS,
    EMBEDDINGS,
    HALVES,
    OLD_TARGETS,
    TARGETS,
    ExportOptions,
    GraphOptions,
    Int8,
    Keep,
    Precision,
)
from erniem_export.parity.report import format_report
from erniem_export.progress import Terminal
from erniem_export.sources import is_checkpoint
from erniem_export.vocabulary.languages import LANGUAGES
from erniem_rt import __version__
from erniem_rt._signals import Terminated, stopped_by_signals
from erniem_rt.errors import ErnieMError
from erniem_rt.manifest import HEADS

if TYPE_CHECKING:
    from erniem_rt.manifest import Manifest, Plan

__all__ = ["main", "verify_main"]

_MODEL_HELP = "folder of a checkpoint, hub id, or random:tiny, random:base, random:large"

# How many names a line holds.
_NAMED = 4

# torch has no error of its own for this on a CPU.
_TORCH_OUT_OF_MEMORY = re.compile(r"not enough memory|can't allocate memory", re.IGNORECASE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``erniem-export``; returns 0 (done), 1 (failed, the reason in one line) or exits with 2 (usage).

    SIGTERM and SIGHUP clean up as Ctrl-C does, and exit with 143 and 129.
    """
    parser = _export_parser()
    arguments = parser.parse_args(argv)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeprecationWarning)
        try:
            options = _options(arguments).resolved()
        except OptionError as error:
            parser.error(str(error))
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return _run(lambda: _export(options))


def verify_main(argv: Sequence[str] | None = None) -> int:
    """Run ``erniem-verify``; returns as :func:`main`."""
    parser = _verify_parser()
    arguments = parser.parse_args(argv)
    try:
        artifact = Path(arguments.artifact)
        model = _model_in(artifact if artifact.is_dir() else artifact.parent, arguments.model)
    except OptionError as error:
        parser.error(str(error))
    return _run(lambda: _verify(arguments.artifact, model, arguments.task_set))


def _export(options: ExportOptions) -> None:
    from erniem_export.pipeline import export

    started = time.monotonic()
    artifact, manifest = export(options, Terminal())
    size = sum(record.size for record in manifest.files.values()) / 1e6
    _say(
        *_reports(manifest),
        *_int8_line((manifest.engine or {}).get("int8", {})),
        *_kept_line(manifest.precision),
        *_vocabulary_line(manifest),
        f"{artifact}: {size:.1f} MB with its files, in {time.monotonic() - started:.1f} s",
        *_plan_line(artifact, manifest.plan),
    )


def _int8_line(done: Mapping[str, Any]) -> list[str]:
    """What was decided for each product, in short; all of it stands in the manifest."""
    products = done.get("products", {}).values()
    if not products:
        return []
    exact = sum(bool(product["channels_in_fp32"]) for product in products)
    return [
        f"{len(products)} products in int8, {exact} of them with channels in fp32; "
        f"relative L2 {done['relative_l2']:.1e}, {done['calibration']}"
    ]


def _kept_line(precision: Mapping[str, str]) -> list[str]:
    """What half precision leaves in fp32, in short; all of it stands in the manifest."""
    kept = precision.get("kept_in_fp32")
    if not kept:
        return []
    names = kept.split(", ")
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"{len(names)} matmuls and operations stay in fp32: {', '.join(names[:_NAMED])}{more}"]


def _vocabulary_line(manifest: Manifest) -> list[str]:
    vocabulary = manifest.checkpoint.get("vocabulary")
    if vocabulary is None:
        return []
    after, before = vocabulary["bytes_after"], vocabulary["bytes_before"]
    return [
        f"{vocabulary['kept']} of {vocabulary['of']} tokens: graph and weights are {after / 1e6:.1f} MB, "
        f"{after / before:.0%} of the {before / 1e6:.1f} MB with all of them"
    ]


def _plan_line(artifact: Path, plan: Plan | None) -> list[str]:
    if plan is None:
        return []
    return [
        f"{artifact.with_name(plan.file)}: built with {plan.flavour} {plan.version} for GPUs of compute capability "
        f"{', '.join(plan.compute_capabilities)}; not run"
    ]


def _verify(artifact: str, model: str, task_set: Path | None) -> None:
    from erniem_export.pipeline import verify

    _say(*_reports(verify(artifact, model, Terminal(), task_set)))


def _reports(manifest: Manifest) -> list[str]:
    return [format_report(report) for report in manifest.parity.values()]


def _say(*lines: str) -> None:
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            # What is still buffered would fail once more when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ExportError(f"all is done, but the report cannot be printed: {error.strerror or error}") from error


def _model_in(folder: Path, model: str | None) -> str:
    """``model``, or ``folder`` if it holds a checkpoint and no other was named."""
    if model is None and not is_checkpoint(folder):
        raise OptionError(
            "--model is missing, and there is no ErnieM checkpoint in "
            f"{'this folder' if folder == Path() else folder}: name a folder, a hub id or random:tiny"
        )
    return str(folder) if model is None else model


def _options(arguments: argparse.Namespace) -> ExportOptions:
    graph = GraphOptions(
        position_ids=arguments.with_position_ids,
        head_mask=arguments.with_head_mask,
        inputs_embeds=arguments.with_inputs_embeds,
        hidden_states=arguments.with_hidden_states,
        attentions=arguments.with_attentions,
    )
    return ExportOptions(
        model=_model_in(Path(), arguments.model),
        head=arguments.head,
        output=arguments.output or Path("out" if arguments.model else ""),
        graph=graph,
        precision=Precision(arguments.weights, arguments.embedding),
        keep=Keep(arguments.languages, arguments.keep_tokens),
        target=arguments.target,
        int8=Int8(arguments.cpu or "auto", arguments.calibration),
        engine=engine_options(arguments),
        task_set=arguments.task_set,
    )


def _run(command: Callable[[], None]) -> int:
    with stopped_by_signals():
        try:
            command()
        except (Exception, KeyboardInterrupt) as error:
            message = _explained(error)
            if message is None:
                raise
            if isinstance(error, ParityError) and error.report is not None:
                with contextlib.suppress(ExportError):
                    _say(format_report(error.report))
            with contextlib.suppress(OSError):  # nobody reads it, and the exit code says it too
                print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
            if isinstance(error, Terminated):
                raise
            return 1
    return 0


def _explained(error: BaseException) -> str | None:
    """What the user can do something about; None for mistakes of ours."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing was written"
    if isinstance(error, ErnieMError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f'{error.name} is not installed: pip install "erniem-rt[export]"'
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _TORCH_OUT_OF_MEMORY.search(str(error))):
        return "out of memory; nothing was written"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    return None


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def _export_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="erniem-export",
        description="Export an ErnieM checkpoint to ONNX. Nothing is written unless its numbers are PyTorch's.",
    )
    parser.add_argument("--version", action="version", version=f"erniem-rt {__version__}")
    parser.add_argument("--model", metavar="DIR|HUB_ID", help=f"{_MODEL_HELP} (default: this folder)")
    parser.add_argument(
        "--head",
        choices=["auto", *HEADS],
        default="auto",
        help="auto reads it from the checkpoint; " + ", ".join(f"{name}: {head.task}" for name, head in HEADS.items()),
    )
    parser.add_argument(
        "--output",
        type=_path,
        metavar="DIR",
        help="where HEAD.onnx goes (default: out, or this folder if it is the checkpoint's)",
    )
    _add_task_set(parser)
    _add_size_options(parser)
    add_engine_arguments(parser)
    inputs = parser.add_argument_group("optional inputs of the graph")
    inputs.add_argument("--with-position-ids", action="store_true", help="add position_ids")
    inputs.add_argument("--with-head-mask", action="store_true", help="add head_mask (layers, heads)")
    inputs.add_argument("--with-inputs-embeds", action="store_true", help="take inputs_embeds instead of input_ids")
    outputs = parser.add_argument_group("optional outputs of the graph")
    outputs.add_argument("--with-hidden-states", action="store_true", help="add hidden_states.0, .1, ...")
    outputs.add_argument("--with-attentions", action="store_true", help="add attentions.0, .1, ...")
    return parser


def _add_size_options(parser: argparse.ArgumentParser) -> None:
    sizes = parser.add_argument_group("size and speed")
    weights = sizes.add_mutually_exclusive_group()
    for name, title in HALVES.items():
        weights.add_argument(
            f"--{name}",
            dest="weights",
            action="store_const",
            const=name,
            default="fp32",
            help=f"weights and products of the layers in {title}, for GPUs; inputs and outputs stay float32",
        )
    weights.add_argument(
        "--int8",
        dest="weights",
        action="store_const",
        const="int8",
        help="matmuls of the layers in int8, for a CPU, or for TensorRT with --engine tensorrt; with --engine "
        "tensorrt-rtx the weights only",
    )
    sizes.add_argument(
        "--cpu",
        choices=CPUS,
        help="what --int8 is to run on: avx2, or vnni where the CPU has it; auto: as here (default)",
    )
    sizes.add_argument(
        "--calibration",
        type=_path,
        metavar="FILE",
        help="text (UTF-8, one a line) like what will be served, to calibrate --int8 on (default: "
        "calibration.txt beside the weights, or else 200 lines of ours)",
    )
    sizes.add_argument(
        "--target",
        choices=(*TARGETS, *OLD_TARGETS),
        default="auto",
        metavar=f"{{{','.join(TARGETS)}}}",
        help="what the graph is made for. auto (default): onnxruntime-cpu in fp32 and int8, onnxruntime-cuda with "
        "--fp16 and --bf16. onnxruntime-cpu: fused attention and no work for padding, whose positions come out as "
        "zeros. onnxruntime-cuda: fused attention for a GPU; onnxruntime-cuda-packed: no work for padding either, but "
        "no CUDA graphs. portable: standard operators only, for any ONNX engine",
    )
    sizes.add_argument(
        "--embedding",
        choices=EMBEDDINGS,
        help="how to store the word embeddings (default: as the weights)",
    )
    sizes.add_argument(
        "--languages",
        type=_languages,
        default=(),
        metavar="CODE,...",
        help="keep only the tokens of these languages, such as en,zh: those of their words, where the package wordfreq "
        "has them, or else of their scripts and alphabets",
    )
    sizes.add_argument(
        "--keep-tokens",
        type=_path,
        metavar="FILE",
        help="keep only the tokens that this text (UTF-8) is made of, and those of --languages; "
        "special tokens and single characters are kept in any case",
    )


def _languages(text: str) -> tuple[str, ...]:
    codes = tuple(code.strip().lower() for code in text.split(","))
    unknown = [code for code in codes if code not in LANGUAGES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"language {unknown[0]!r} is not known; known are {', '.join(sorted(LANGUAGES))}"
        )
    return codes


def _verify_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="erniem-verify", description="Compare an exported artifact with the checkpoint it came from, again."
    )
    parser.add_argument("--version", action="version", version=f"erniem-rt {__version__}")
    parser.add_argument("artifact", metavar="ARTIFACT", help="the exported folder, an artifact in it, or a hub id")
    parser.add_argument("--model", metavar="DIR|HUB_ID", help=f"{_MODEL_HELP} (default: the artifact's folder)")
    _add_task_set(parser)
    return parser


def _add_task_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task-set",
        type=_path,
        metavar="FILE",
        help="labelled examples of the task, a JSON object a line: the task's metric may fall by at most 0.5 points "
        "below PyTorch's (default: task_set.jsonl in the checkpoint's folder, if there is one)",
    )


if __name__ == "__main__":
    sys.exit(main())
