"""The command line's options for TensorRT."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from erniem_export.options import ENGINES, EngineOptions
from erniem_export.tensorrt.profiles import parse_profile
from erniem_rt.manifest import Profile

__all__ = ["add_engine_arguments", "engine_options"]


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine`` and what goes with it."""
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
        "--timing-cache", type=Path, metavar="FILE", help="with tensorrt: measured kernels, read and written"
    )


def engine_options(arguments: argparse.Namespace) -> EngineOptions:
    """What was asked for."""
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
