"""The command line of the pipelines: one JSON line in, one JSON line out, in the same order.

A line that cannot be answered gives ``{"error": ..., "line": ...}`` in its place and does not stop the others.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from erniem_rt import __version__
from erniem_rt.errors import ErnieMError, InvalidInputError

if TYPE_CHECKING:
    from erniem_rt.pipelines.base import Pipeline

__all__ = ["main"]

# Lines that are read before the first of them is answered, in batches: enough to sort them by length.
_BATCHES_PER_CHUNK = 4

# Options that belong to the call of a pipeline; those of its making are the other task options.
_CALL_OPTIONS = ("candidate_labels", "hypothesis_template", "multi_label", "top_k")


def main(argv: Sequence[str] | None = None) -> int:
    """Answer lines; returns 0, 1 if the artifact or any line was at fault, or exits with 2 (usage)."""
    arguments = _parser().parse_args(argv)
    try:
        with _load(arguments) as pipeline, _opened(arguments) as (source, target):
            return _answer_lines(pipeline, _call_options(pipeline, arguments), source, target)
    except (ErnieMError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 1


def _load(arguments: argparse.Namespace) -> Pipeline:
    from erniem_rt.pipelines import pipeline

    names = ("schema", "schema_lang", "threshold", "aggregation_strategy", "pooling", "normalize")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return pipeline(
        arguments.artifact,
        arguments.task or ("zero-shot-classification" if arguments.candidate_labels else None),
        device=arguments.device,
        threads=arguments.threads,
        batch_size=arguments.batch_size,
        **options,
    )


def _call_options(pipeline: Pipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, if they are those of the task."""
    options = {name: getattr(arguments, name) for name in _CALL_OPTIONS if getattr(arguments, name) is not None}
    taken = inspect.signature(type(pipeline).__call__).parameters
    for name in options:
        if name not in taken:
            raise InvalidInputError(f"{pipeline.task} takes no --{name.replace('_', '-')}.")
    if "candidate_labels" in taken and "candidate_labels" not in options:
        raise InvalidInputError(f"{pipeline.task} needs --candidate-labels.")
    return options


@contextlib.contextmanager
def _opened(arguments: argparse.Namespace) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Yield input and output as bytes: lines are UTF-8 whatever the locale says."""
    with contextlib.ExitStack() as stack:
        source: IO[bytes] = sys.stdin.buffer
        target: IO[bytes] = sys.stdout.buffer
        if arguments.input != "-":
            source = stack.enter_context(Path(arguments.input).open("rb"))
        if arguments.output != "-":
            target = stack.enter_context(Path(arguments.output).open("wb"))
        yield source, target


def _answer_lines(pipeline: Pipeline, options: dict[str, Any], source: IO[bytes], target: IO[bytes]) -> int:
    # Somebody who types gets each answer at once.
    size = 1 if source.isatty() else _BATCHES_PER_CHUNK * pipeline.batch_size
    lines = ((number, line) for number, line in enumerate(source, start=1) if line.strip())
    done = failed = 0
    while chunk := list(islice(lines, size)):
        for number, answer in _answer_chunk(pipeline, options, chunk):
            if isinstance(answer, ErnieMError):
                failed += 1
                print(f"line {number}: {answer}", file=sys.stderr)
                answer = {"error": str(answer), "line": number}
            text = json.dumps(answer, ensure_ascii=False, default=_plain)
            # What UTF-8 cannot hold (half of a surrogate pair) stays the escape that JSON has for it.
            target.write(text.encode("utf-8", "backslashreplace") + b"\n")
        target.flush()
        done += len(chunk)
        if sys.stderr.isatty():
            print(f"\r{done} lines", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty() and done:
        print(file=sys.stderr)
    if failed:
        print(f"error: {failed} of {done} lines could not be answered", file=sys.stderr)
    return 1 if failed else 0


def _answer_chunk(
    pipeline: Pipeline, options: dict[str, Any], chunk: Iterable[tuple[int, bytes]]
) -> list[tuple[int, Any]]:
    """Answer lines together or, if one of them is at fault, one by one."""
    items = [(number, _parsed(line)) for number, line in chunk]
    good = [item for _, item in items if not isinstance(item, ErnieMError)]
    try:
        answers = iter(pipeline(good, **options) if good else [])
    except InvalidInputError:
        answers = iter([_answer_one(pipeline, options, item) for item in good])
    return [(number, item if isinstance(item, ErnieMError) else next(answers)) for number, item in items]


def _answer_one(pipeline: Pipeline, options: dict[str, Any], item: Any) -> Any:
    try:
        return pipeline([item], **options)[0]
    except InvalidInputError as error:
        return InvalidInputError(str(error).removeprefix("input 0: "))


def _parsed(line: bytes) -> Any:
    """The line's value; an object with nothing but a text stands for that text."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        return InvalidInputError(f"expected a JSON string or object in UTF-8, but {error}")
    return value["text"] if isinstance(value, dict) and value.keys() == {"text"} else value


def _plain(value: Any) -> Any:
    return value.tolist()


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected JSON, but {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m erniem_rt",
        description='Answer JSON lines with an exported model. A line is a JSON string or {"text": ...}; for question '
        'answering {"question", "context"}, for multiple choice {"prompt", "choices"}, for text pairs '
        '{"text", "text_pair"}.',
    )
    parser.add_argument("artifact", metavar="ARTIFACT", help="HEAD.onnx in the exported folder")
    parser.add_argument("--version", action="version", version=f"erniem-rt {__version__}")
    parser.add_argument("--input", default="-", metavar="FILE", help="default: standard input")
    parser.add_argument("--output", default="-", metavar="FILE", help="default: standard output")
    parser.add_argument("--task", help="default: the manifest's; zero-shot-classification with --candidate-labels")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="threads of one run; default: all cores")
    parser.add_argument("--batch-size", type=int, default=16, help="most rows in one run of the model")
    task = parser.add_argument_group("options of the tasks")
    task.add_argument("--candidate-labels", metavar="A,B,...", help="zero-shot classification")
    task.add_argument("--hypothesis-template", metavar="TEXT", help="zero-shot classification, with {} for the label")
    task.add_argument("--multi-label", action="store_true", default=None, help="zero-shot classification")
    task.add_argument("--top-k", type=int, help="text classification, question answering")
    task.add_argument("--aggregation-strategy", help="token classification: none, simple, first, average or max")
    task.add_argument("--schema", type=_json, metavar="JSON", help="information extraction")
    task.add_argument("--schema-lang", help="information extraction: auto, en or zh")
    task.add_argument("--threshold", type=float, help="information extraction: between 0 and 1")
    task.add_argument("--pooling", help="feature extraction: mean, cls, pooler or none")
    task.add_argument("--normalize", action="store_true", default=None, help="feature extraction: length 1")
    return parser
