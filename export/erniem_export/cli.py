"""``erniem-export``, ``erniem-verify`` and ``erniem-convert``."""

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
from typing import Any

from erniem_export.errors import ExportError, OptionError, ParityError
from erniem_export.languages import LANGUAGES
from erniem_export.options import (
    CPUS,
    EMBEDDINGS,
    ENGINES,
    HALVES,
    LAYOUTS,
    MASKS,
    OLD_TARGETS,
    TARGETS,
    EngineOptions,
    ExportOptions,
    GraphOptions,
    Int8,
    Keep,
    Precision,
    flag_of,
    parse_profile,
)
from erniem_export.progress import Terminal
from erniem_export.sources import has_own_config, is_checkpoint
from erniem_rt import __version__
from erniem_rt.errors import ErnieMError
from erniem_rt.locations import manifest_of
from erniem_rt.manifest import HEADS, Manifest, Plan, Profile
from erniem_rt.processes import Terminated, stopped_by_signals

_MODEL_HELP = "folder of a checkpoint or an adapter, hub id, or random:tiny, random:base, random:large"

# What shells expect after Ctrl-C: 128 and SIGINT's number.
_INTERRUPTED = 130
# The largest number of names in a line.
_NAMED = 4

_GRAPH_HELP = {
    "inputs": {
        "position_ids": "add position_ids",
        "head_mask": "add head_mask (layers, heads)",
        "inputs_embeds": "take inputs_embeds instead of input_ids",
    },
    "outputs": {
        "hidden_states": "add hidden_states.0, .1, ...",
        "attentions": "add attentions.0, .1, ...",
    },
}

# torch has no separate error class for this on a CPU.
_TORCH_OUT_OF_MEMORY = re.compile(r"not enough memory|can't allocate memory", re.IGNORECASE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``erniem-export``; return 0 (success) or 1 (failure, with one line on the reason), or exit with 2 (usage).

    SIGTERM and SIGHUP clean up as Ctrl-C does, which returns 130, and exit with 143 and 129.
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
    """Run ``erniem-verify``; return or exit like :func:`main`."""
    parser = _verify_parser()
    arguments = parser.parse_args(argv)
    try:
        artifact = Path(arguments.artifact)
        if not artifact.exists() and arguments.model is None:
            raise OptionError(
                f"there is no artifact {artifact}: expected an exported folder, or a file in it such as ie.onnx; a hub "
                "id needs --model"
            )
        model = _model_in(artifact if artifact.is_dir() else manifest_of(artifact).parent, arguments.model)
    except OptionError as error:
        parser.error(str(error))
    return _run(lambda: _verify(model, arguments))


def convert_main(argv: Sequence[str] | None = None) -> int:
    """Run ``erniem-convert``; returns as :func:`main`."""
    arguments = _convert_parser().parse_args(argv)
    return _run(lambda: _convert(arguments))


def _convert(arguments: argparse.Namespace) -> None:
    from erniem_export.convert import convert

    done = convert(arguments.checkpoint, arguments.output, arguments.to, arguments.head, arguments.text, Terminal())
    counted = []
    if done.rows is not None and done.other_ids is not None:
        share = done.other_ids / done.rows
        counted = [f"{arguments.text}: {done.other_ids} of {done.rows} rows ({share:.1%}) get other ids"]
    _say(*done.notes, *counted, f"{arguments.output}: head {done.head} as {arguments.to}")


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
    """Summarize the int8 matmuls; the manifest has the details."""
    products = done.get("products", {}).values()
    if not products:
        return []
    exact = sum(bool(product["channels_in_fp32"]) for product in products)
    return [
        f"{len(products)} matmuls in int8, {exact} of them with outlier channels in fp32; "
        f"relative L2 {done['relative_l2']:.1e}, {done['calibration']}"
    ]


def _kept_line(precision: Mapping[str, str]) -> list[str]:
    """Summarize the operations kept in fp32; the manifest has the details."""
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


def _verify(model: str, arguments: argparse.Namespace) -> None:
    from erniem_export.pipeline import verify

    given = {"base": arguments.base, "tokenizer": arguments.tokenizer}
    _say(*_reports(verify(arguments.artifact, model, Terminal(), arguments.task_set, **given)))


def _reports(manifest: Manifest) -> list[str]:
    return [_table(report) for name, report in manifest.parity.items() if not name.endswith(" in bf16")]


def _table(report: Mapping[str, Any]) -> str:
    from erniem_export.gate.measures import format_report  # here: it loads numpy, and --help must start fast

    return format_report(report)


def _say(*lines: str) -> None:
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            # Buffered output would fail again at the interpreter's exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ExportError(f"done, but the report cannot be printed: {error.strerror or error}") from error


def _model_in(folder: Path, model: str | None) -> str:
    """Return ``model``, or by default ``folder`` if it has a checkpoint."""
    if model is None and not is_checkpoint(folder):
        raise OptionError(
            "--model is missing, and there is no ErnieM checkpoint in "
            f"{'this folder' if folder == Path() else folder}: name a folder, a hub id or random:tiny"
        )
    return str(folder) if model is None else model


def _options(arguments: argparse.Namespace) -> ExportOptions:
    graph = {name: getattr(arguments, name) for added in _GRAPH_HELP.values() for name in added}
    return ExportOptions(
        model=_model_in(Path(), arguments.model),
        head=arguments.head,
        # Not in the folder of an adapter or of Paddle, whose config differs from the artifact's.
        output=arguments.output or Path("out" if arguments.model or not has_own_config(Path()) else ""),
        graph=GraphOptions(**graph),
        precision=Precision(arguments.weights, arguments.embedding),
        keep=Keep(arguments.languages, arguments.keep_tokens),
        target=arguments.target,
        int8=Int8(arguments.cpu or "auto", arguments.calibration),
        engine=_engine_options(arguments),
        task_set=arguments.task_set,
        mask=arguments.mask,
        base=arguments.base,
        tokenizer=arguments.tokenizer,
        layout=arguments.layout,
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
                    _say(_table(error.report))
            with contextlib.suppress(OSError):  # standard error is closed; the exit code says it too
                print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
            if isinstance(error, Terminated):
                raise
            return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _explained(error: BaseException) -> str | None:
    """Return the message of an error that the user can act on; None for bugs."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing was written"
    if isinstance(error, ErnieMError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = str(error.name).partition(".")[0]
        return f'{package} is not installed: pip install "erniem-rt[export]"'
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _TORCH_OUT_OF_MEMORY.search(str(error))):
        return "out of memory; nothing was written"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    return None


def _given(text: str) -> str:
    """Refuse an empty value, such as an unset shell variable gives."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: expected a path or a name")
    return text


def _path(text: str) -> Path:
    try:
        return Path(_given(text)).expanduser()  # Path("") is the current folder
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def _export_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="erniem-export",
        description="Export an ErnieM checkpoint to ONNX. Nothing is written unless its outputs match PyTorch's.",
    )
    parser.add_argument("--version", action="version", version=f"erniem-rt {__version__}")
    parser.add_argument("--model", type=_given, metavar="DIR|HUB_ID", help=f"{_MODEL_HELP} (default: this folder)")
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
    parser.add_argument(
        "--mask",
        choices=MASKS,
        default="auto",
        help="padding: nothing attends to padding. uie-m, for head ie: every row as PaddleNLP's Taskflow computes it "
        "for uie-m, whose weights depend on it. auto (default): uie-m for UIEM from Paddle, padding for all others; "
        "give uie-m for a copy of uie-m in PyTorch format",
    )
    _add_sources(parser)
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default=LAYOUTS[0],
        help="flat (default): HEAD.onnx and HEAD.onnx.data. optimum: onnx/model.onnx and onnx/model.onnx_data, where "
        "optimum and sentence-transformers look for them; a folder holds one head then",
    )
    _add_size_options(parser)
    _add_engine_options(parser)
    for title, added in _GRAPH_HELP.items():
        group = parser.add_argument_group(f"optional {title} of the graph")
        for name, text in added.items():
            group.add_argument(flag_of(name), dest=name, action="store_true", help=text)
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
            help=f"weights and matmuls of the layers in {title}, for GPUs; inputs and outputs stay float32",
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
        help="the CPU that --int8 is for: avx2, vnni or arm64; auto: one like that of this machine (default)",
    )
    sizes.add_argument(
        "--calibration",
        type=_path,
        metavar="FILE",
        help="text (UTF-8, one a line) like what will be served, to calibrate --int8 on (default: "
        "calibration.txt beside the weights, or else 200 lines that come with the package)",
    )
    sizes.add_argument(
        "--target",
        choices=(*TARGETS, *OLD_TARGETS),
        default="auto",
        metavar=f"{{{','.join(TARGETS)}}}",
        help="what the graph is made for. auto (default): onnxruntime-cpu in fp32 and int8, onnxruntime-cuda with "
        "--fp16 and --bf16. onnxruntime-cpu: fused attention and no work for padding, whose positions come out as "
        "zeros. onnxruntime-cuda: fused attention for a GPU; onnxruntime-cuda-packed: no work for padding either, but "
        "no CUDA graphs. openvino: --int8 in the form that OpenVINO computes fastest. portable: standard operators "
        "only, for any ONNX engine",
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


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("TensorRT")
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what builds a TensorRT plan, HEAD.plan, beside HEAD.onnx; auto: with --fp16 and --bf16 what is installed "
        "and can build here, if anything (default)",
    )
    group.add_argument(
        "--profile",
        type=_profile,
        action="append",
        default=[],
        metavar="MIN,OPT,MAX",
        help="shapes to build for, such as 1x1,8x128,32x512 (batch x sequence; for mc batch x choices x sequence); may "
        "be given more than once (default: one for latency, one for throughput)",
    )
    group.add_argument(
        "--compute-capability",
        type=_capability,
        action="append",
        default=[],
        metavar="X.Y",
        help="GPUs to build for with tensorrt-rtx, such as 8.9; may be given more than once (default: 8.6 and later)",
    )
    group.add_argument(
        "--hardware-compatible", action="store_true", help="with tensorrt: a plan for all GPUs from Ampere on"
    )
    group.add_argument(
        "--version-compatible", action="store_true", help="with tensorrt: a plan for later releases of its version too"
    )
    group.add_argument(
        "--workspace", type=_mebibytes, metavar="MIB", help="scratch memory that the plan may take on the GPU"
    )
    group.add_argument(
        "--timing-cache", type=_path, metavar="FILE", help="with tensorrt: measured kernels, read and written"
    )


def _engine_options(arguments: argparse.Namespace) -> EngineOptions:
    return EngineOptions(
        engine=arguments.engine,
        profiles=tuple(arguments.profile),
        compute_capabilities=tuple(dict.fromkeys(arguments.compute_capability)),
        hardware_compatible=arguments.hardware_compatible,
        version_compatible=arguments.version_compatible,
        workspace=arguments.workspace,
        timing_cache=arguments.timing_cache,
    )


def _profile(text: str) -> Profile:
    try:
        return parse_profile(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _capability(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]?\.[0-9]", text):
        raise argparse.ArgumentTypeError(f"expected a compute capability such as 8.9, got {text!r}")
    return text


def _mebibytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of MiB of at least 1, got {text!r}")
    return int(text)


def _verify_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="erniem-verify", description="Compare an exported artifact with its checkpoint again."
    )
    parser.add_argument("--version", action="version", version=f"erniem-rt {__version__}")
    parser.add_argument(
        "artifact", type=_given, metavar="ARTIFACT", help="the exported folder, an artifact in it, or a hub id"
    )
    parser.add_argument(
        "--model", type=_given, metavar="DIR|HUB_ID", help=f"{_MODEL_HELP} (default: the artifact's folder)"
    )
    _add_sources(parser)
    return parser


def _convert_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="erniem-convert",
        description="Write an ErnieM checkpoint as one of XLM-R, or back, or one of PaddleNLP as one of PyTorch (--to "
        "ernie-m): the same weights under other names.",
    )
    parser.add_argument("--version", action="version", version=f"erniem-rt {__version__}")
    parser.add_argument("checkpoint", type=_given, metavar="CHECKPOINT", help="folder of a checkpoint, or hub id")
    parser.add_argument("--to", choices=("xlm-roberta", "ernie-m"), required=True, help="which model's checkpoint")
    parser.add_argument("--output", type=_path, metavar="DIR", required=True, help="where the checkpoint goes")
    parser.add_argument("--head", choices=("auto", *HEADS), default="auto", help="auto reads it from the checkpoint")
    parser.add_argument(
        "--text",
        type=_path,
        metavar="FILE",
        help="text (UTF-8, one a line) like what will be served: count for how many lines the tokenizers' ids differ",
    )
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        type=_given,
        metavar="DIR|HUB_ID",
        help="the model that an adapter is merged into (default: the one that it names)",
    )
    parser.add_argument(
        "--tokenizer",
        type=_given,
        metavar="DIR|HUB_ID",
        help="where the tokenizer is (default: in the checkpoint's folder)",
    )
    parser.add_argument(
        "--task-set",
        type=_path,
        metavar="FILE",
        help="labelled examples of the task, a JSON object a line: the task's metric may fall by at most 0.5 points "
        "below PyTorch's (default: task_set.jsonl in the checkpoint's folder, if there is one)",
    )


if __name__ == "__main__":
    sys.exit(main())
