"""The options of the command line: those of every task, and a table of those that belong to some."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from erniem_rt import __version__
from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    from erniem_rt.pipelines.base import Pipeline

__all__ = ["call_options", "make_parser"]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"expected JSON, but {error}") from error


def _labels(text: str) -> list[str]:
    from erniem_rt.pipelines._options import split_at_commas

    return split_at_commas(text)


_FLAG = {"action": "store_true", "default": None}

# Options of the pipelines by their names, with what argparse needs to know.
_OPTIONS: dict[str, dict[str, Any]] = {
    "max_characters": {
        "type": int,
        "metavar": "N",
        "help": "every task: a line of more is an error; default: no limit",
    },
    "max_seq_len": {
        "type": int,
        "metavar": "N",
        "help": "every task: most tokens in a row; default: as the checkpoint says",
    },
    "doc_stride": {"type": int, "help": "question answering: tokens from one window to the next"},
    "stride": {"type": int, "help": "token classification: tokens that neighbouring windows share"},
    "schema": {"type": _json, "metavar": "JSON", "help": "information extraction"},
    "schema_lang": {"help": "information extraction: auto, en or zh"},
    "threshold": {"type": float, "help": "information extraction: between 0 and 1"},
    "pooling": {"help": "feature extraction: mean, cls, pooler or none; default: as the checkpoint says, or mean"},
    "normalize": {
        "action": argparse.BooleanOptionalAction,
        "help": "feature extraction: length 1, or not; default: as the checkpoint says",
    },
    "candidate_labels": {"metavar": "A,B,...", "help": "zero-shot classification"},
    "hypothesis_template": {"metavar": "TEXT", "help": "zero-shot classification, with {} for the label"},
    "multi_label": {**_FLAG, "help": "zero-shot classification: several labels may be true"},
    "top_k": {"type": int, "help": "text classification, question answering"},
    "function_to_apply": {"help": "text classification: sigmoid, softmax or none"},
    "max_answer_len": {"type": int, "help": "question answering: longest answer, in tokens"},
    "handle_impossible_answer": {**_FLAG, "help": "question answering: there may be no answer"},
    "align_to_words": {**_FLAG, "help": "question answering: answer in whole words"},
    "aggregation_strategy": {"help": "token classification: none, simple, first, average or max"},
    "ignore_labels": {
        "type": _labels,
        "metavar": "A,B,...",
        "help": "token classification: labels to leave out",
    },
}


def make_parser() -> argparse.ArgumentParser:
    """What ``erniem-rt`` takes."""
    parser = argparse.ArgumentParser(
        prog="erniem-rt",
        description='Answer JSON lines with an exported model. A line is a JSON string or {"text": ...}; for question '
        'answering {"question", "context"}, for multiple choice {"prompt", "choices"}, for text pairs '
        '{"text", "text_pair"}.',
    )
    parser.add_argument(
        "artifact", metavar="ARTIFACT", help="the exported folder, HEAD.onnx or HEAD.plan in it, or a hub id"
    )
    parser.add_argument("--version", action="version", version=f"erniem-rt {__version__}")
    parser.add_argument("--input", default="-", metavar="FILE", help="default: standard input")
    parser.add_argument(
        "--output", default="-", metavar="FILE", help="takes its name when it is complete; default: standard output"
    )
    parser.add_argument("--task", help="default: the manifest's; zero-shot-classification with --candidate-labels")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: cuda for a plan, otherwise cpu")
    parser.add_argument(
        "--engine", default="auto", help="onnxruntime or openvino; default: the faster one for this CPU"
    )
    parser.add_argument("--precision", default="auto", help="fp32 or bf16, on a CPU; default: never bf16")
    parser.add_argument("--cache", metavar="DIR", help="where OpenVINO keeps the compiled model; default: see the docs")
    parser.add_argument("--threads", type=int, help="threads of one run; default: all CPUs that this process has")
    for name, what in (
        ("--spinning", "threads without work keep a CPU busy; default: for 0.2 ms"),
        ("--shrink-memory", "give memory back after each run; default: after a large one"),
    ):
        parser.add_argument(name, action=argparse.BooleanOptionalAction, help=what)
    parser.add_argument("--batch-size", type=int, default=16, help="most rows in one run of the model")
    task = parser.add_argument_group("options of the tasks")
    for name, settings in _OPTIONS.items():
        task.add_argument(_flag(name), **settings)
    return parser


def call_options(pipeline: Pipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the task that were given.

    Raises:
        InvalidInputError: The task has no such option, does not like its value, or needs one that is missing.
    """
    options = {name: getattr(arguments, name) for name in _OPTIONS if getattr(arguments, name) is not None}
    taken = {field.name for field in fields(pipeline.options_type)}
    for name in options:
        if name not in taken:
            raise InvalidInputError(f"{pipeline.task} takes no {_flag(name)}.")
    if "candidate_labels" in taken and "candidate_labels" not in options:
        raise InvalidInputError(f"{pipeline.task} needs --candidate-labels.")
    pipeline([], **options)  # with nothing to answer, it checks its options
    return options


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
