"""The command line of the pipelines: JSON lines in, JSON lines out, in the same order.

A line that cannot be answered gives ``{"error": ..., "line": ...}`` and does not stop the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import operator
import os
import select
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from erniem_rt import __version__
from erniem_rt.errors import ErnieMError, InvalidInputError
from erniem_rt.processes import Terminated, stopped_by_signals

if TYPE_CHECKING:
    import io
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TextIO

    from erniem_rt.pipelines.base import Pipeline


# Number of batches of lines that are read, sorted by length and answered together.
_BATCHES_PER_CHUNK = 4
_BLOCK = 1 << 20
# Arguments with paths and names, of all commands.
_PATHS = ("artifact", "models", "input", "output", "task", "cache", "repository", "name", "site_packages")


def run() -> int:
    """Run the command; SIGTERM and SIGHUP clean up as Ctrl-C does, and exit with 143 and 129."""
    with stopped_by_signals(), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(f"warning: {' '.join(str(message).split())}")
        return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Answer lines; return 0, 1 (an error of the artifact or of a line) or 130 (Ctrl-C), or exit with 2 (usage)."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        if words and words[0] in ("serve", "triton"):
            return _other_command(words[0], words[1:])
        arguments = _arguments(_make_parser(), words)
        _refuse_same_file(arguments.input, arguments.output)
        with _load(arguments) as pipeline:
            _show_progress(f"engine: {pipeline.session.engine}, computing in {pipeline.session.precision}\n")
            options = _call_options(pipeline, arguments)
            with _opened(arguments) as (source, target):
                return _answer_lines(pipeline, options, source, target)
    except (ErnieMError, OSError) as error:
        _drop_what_cannot_be_written()
        _say(f"error: {' '.join(str(error).split())}")
        return 1
    except Terminated:
        _discard_output()
        raise
    except KeyboardInterrupt:
        _say("error: interrupted")
        return 130


def _arguments(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Parse the arguments; refuse empty paths and names, such as an unset shell variable gives."""
    arguments = parser.parse_args(words)
    for name in _PATHS:
        given = getattr(arguments, name, None)
        if any(isinstance(one, str) and not one.strip() for one in (given if isinstance(given, list) else [given])):
            shown = name if name in ("artifact", "models") else _flag(name)
            parser.error(f"{shown} is empty: expected a path or a name")
    return arguments


def _other_command(name: str, words: list[str]) -> int:
    """``erniem-rt serve`` and ``erniem-rt triton``, which have options of their own."""
    from erniem_rt import serve, triton

    command, add_arguments, told = {
        "serve": (
            serve.serve,
            serve.add_arguments,
            "Serve exported models over HTTP and gRPC in the Open Inference Protocol V2, with health checks and "
            'metrics. Needs pip install "erniem-rt[serve]".',
        ),
        "triton": (
            triton.write,
            triton.add_arguments,
            "Write an exported model into a model repository of Triton Inference Server.",
        ),
    }[name]
    parser = argparse.ArgumentParser(prog=f"erniem-rt {name}", description=told)
    add_arguments(parser)
    return command(_arguments(parser, words), lambda line: _print_error(f"{line}\n"))


def _load(arguments: argparse.Namespace) -> Pipeline:
    from erniem_rt.pipelines import pipeline

    return pipeline(
        arguments.task or ("zero-shot-classification" if arguments.candidate_labels is not None else None),
        arguments.artifact,
        engine=arguments.engine,
        precision=arguments.precision,
        cache=arguments.cache,
        device=arguments.device,
        threads=arguments.threads,
        spinning=arguments.spinning,
        shrink_memory=arguments.shrink_memory,
        batch_size=arguments.batch_size,
    )


@contextlib.contextmanager
def _opened(arguments: argparse.Namespace) -> Iterator[tuple[io.BufferedReader, IO[bytes]]]:
    """Yield input and output as bytes: lines are UTF-8 in every locale."""
    with contextlib.ExitStack() as stack:
        read, write = arguments.input, arguments.output
        source = _buffer(sys.stdin, "input") if read == "-" else stack.enter_context(Path(read).open("rb"))
        target = _buffer(sys.stdout, "output") if write == "-" else stack.enter_context(_replaced(Path(write)))
        yield source, target


def _answer_lines(pipeline: Pipeline, options: dict[str, Any], source: io.BufferedReader, target: IO[bytes]) -> int:
    done = failed = 0
    for chunk in _chunks(source, _BATCHES_PER_CHUNK * pipeline.batch_size):
        for number, answer in _answer_chunk(pipeline, options, chunk):
            if isinstance(answer, ErnieMError):
                failed += 1
                _say(f"line {number}: {answer}")
                answer = {"error": str(answer), "line": number}
            text = json.dumps(answer, ensure_ascii=False, default=operator.methodcaller("tolist"))
            # UTF-8 cannot encode lone surrogates: they stay escaped, as JSON allows.
            target.write(text.encode("utf-8", "backslashreplace") + b"\n")
        target.flush()
        done += len(chunk)
        _show_progress(f"\r{done} lines")
    if done:
        _show_progress("\n")
    if failed:
        _say(f"error: {failed} of {done} lines could not be answered")
    return 1 if failed else 0


def _answer_chunk(
    pipeline: Pipeline, options: dict[str, Any], chunk: Iterable[tuple[int, bytes]]
) -> list[tuple[int, Any]]:
    """Return the answer to each line, or its error."""
    items = [(number, _parsed(line)) for number, line in chunk]
    good = [item for _, item in items if not isinstance(item, ErnieMError)]
    answers = iter(pipeline(good, errors="return", **options))
    return [(number, item if isinstance(item, ErnieMError) else next(answers)) for number, item in items]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return InvalidInputError(f"expected a JSON string or object in UTF-8, but {error}")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"expected JSON, but {error}") from error


def _labels(text: str) -> list[str]:
    from erniem_rt.pipelines.inputs import split_at_commas

    return split_at_commas(text)


_FLAG: dict[str, Any] = {"action": "store_true", "default": None}
_YES_OR_NO: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
_COUNT: dict[str, Any] = {"type": int, "metavar": "N"}

# The tasks' options by name, with their arguments for argparse.
_OPTIONS: dict[str, dict[str, Any]] = {
    "max_characters": {**_COUNT, "help": "every task: a line of more is an error; default: no limit"},
    "max_seq_len": {**_COUNT, "help": "every task: most tokens in a row; default: as the checkpoint says"},
    "doc_stride": {**_COUNT, "help": "question answering: tokens from one window to the next"},
    "stride": {**_COUNT, "help": "token classification: tokens that neighbouring windows share"},
    "schema": {"type": _json, "metavar": "JSON", "help": "information extraction"},
    "schema_lang": {"help": "information extraction: auto, en or zh"},
    "threshold": {"type": float, "help": "information extraction: between 0 and 1"},
    "pooling": {"help": "feature extraction: mean, cls, pooler or none; default: as the checkpoint says, or mean"},
    "normalize": {**_YES_OR_NO, "help": "feature extraction: length 1, or not; default: as the checkpoint says"},
    "candidate_labels": {"metavar": "A,B,...", "help": "zero-shot classification"},
    "hypothesis_template": {"metavar": "TEXT", "help": "zero-shot classification, with {} for the label"},
    "multi_label": {**_FLAG, "help": "zero-shot classification: several labels may be true"},
    "top_k": {**_COUNT, "help": "text classification, question answering"},
    "function_to_apply": {"help": "text classification: sigmoid, softmax or none"},
    "max_answer_len": {**_COUNT, "help": "question answering: longest answer, in tokens"},
    "handle_impossible_answer": {**_FLAG, "help": "question answering: there may be no answer"},
    "align_to_words": {**_FLAG, "help": "question answering: answer in whole words"},
    "aggregation_strategy": {"help": "token classification: none, simple, first, average or max"},
    "ignore_labels": {"type": _labels, "metavar": "A,B,...", "help": "token classification: labels to leave out"},
}


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="erniem-rt",
        epilog="erniem-rt serve serves models over HTTP and gRPC, erniem-rt triton writes a model repository for "
        "Triton; each has its --help. An artifact in a folder of that name is ./serve or ./triton.",
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
    parser.add_argument("--threads", **_COUNT, help="threads of one run; default: all CPUs that this process has")
    parser.add_argument("--spinning", **_YES_OR_NO, help="idle threads keep a CPU busy; default: for 0.2 ms")
    parser.add_argument(
        "--shrink-memory", **_YES_OR_NO, help="give memory back after each run; default: after a large one"
    )
    parser.add_argument("--batch-size", **_COUNT, default=16, help="most rows in one run of the model")
    task = parser.add_argument_group("options of the tasks")
    for name, settings in _OPTIONS.items():
        task.add_argument(_flag(name), **settings)
    return parser


def _call_options(pipeline: Pipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the given options of the task.

    Raises:
        InvalidInputError: The task has no such option, its value is invalid, or a required option is missing.
    """
    options = {name: getattr(arguments, name) for name in _OPTIONS if getattr(arguments, name) is not None}
    taken = {field.name for field in fields(pipeline.options_type)}
    for name in options:
        if name not in taken:
            raise InvalidInputError(f"{pipeline.task} takes no {_flag(name)}.")
    if "candidate_labels" in taken and "candidate_labels" not in options:
        raise InvalidInputError(f"{pipeline.task} needs --candidate-labels.")
    pipeline([], **options)  # checks the options
    return options


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _chunks(source: io.BufferedReader, size: int) -> Iterator[list[tuple[int, bytes]]]:
    """Yield the available lines that are not blank, at most ``size`` at once, with their numbers from 1.

    So a program at the other end of a pipe may wait for each answer before it writes its next line. If the source
    fails, the complete lines before come first.
    """
    from erniem_rt.batching import take

    chunk: list[tuple[int, bytes]] = []
    number = 0
    lines = _lines(source)
    failure: Exception | None = None
    while failure is None:
        taken, failure = take(lines, 1)
        line = taken[0] if taken else None
        if line is not None:
            number += 1
            if line.strip():
                chunk.append((number, line))
        if chunk and (line is None or len(chunk) == size):
            yield chunk
            chunk = []
        if not taken:
            break
    if failure is not None:
        raise failure


def _refuse_same_file(source: str, target: str) -> None:
    """Raise :class:`InvalidInputError` if both paths are the same file; ``-`` is not a file."""
    with contextlib.suppress(FileNotFoundError):
        if "-" not in (source, target) and Path(source).samefile(target):
            raise InvalidInputError(f"--input and --output are both {target}: write the answers to another file.")


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces ``path`` on success, and is deleted on failure."""
    if path.exists() and not path.is_file():  # a device or a pipe is written directly
        with path.open("wb") as file:
            yield file
        return
    from erniem_rt.files import replacing

    with contextlib.ExitStack() as stack:
        try:
            replacement = stack.enter_context(replacing(path))
        except OSError as error:
            folder = Path(os.path.realpath(path)).parent
            problem = f"no file can be made in {folder}: {error.strerror}; choose another."
            if not folder.is_dir():
                problem = f"there is no folder {folder}: make it, or choose another."
            raise InvalidInputError(f"--output: {problem}") from error
        yield replacement


def _lines(source: io.BufferedReader) -> Iterator[bytes | None]:
    """Yield lines without line ends, and None if the next one is not available yet."""
    begun: list[bytes] = []
    while block := source.read1(_BLOCK):
        *ends, last = block.split(b"\n")
        for end in ends:
            yield b"".join([*begun, end])
            begun.clear()
        begun.append(last)
        if not _is_ready(source):
            yield None
    yield b"".join(begun)


def _is_ready(source: io.BufferedReader) -> bool:
    """Return whether a read would not block; False if unknown."""
    try:
        return bool(select.select([source], [], [], 0)[0])
    except (OSError, ValueError):
        return False


def _say(message: str) -> None:
    """Print a line to standard error; on a terminal it replaces the progress line."""
    _print_error(f"\r\x1b[K{message}\n" if _on_terminal() else f"{message}\n")


def _show_progress(text: str) -> None:
    """Print to standard error if that is a terminal."""
    if _on_terminal():
        _print_error(text)


def _drop_what_cannot_be_written() -> None:
    """Discard buffered output that cannot be written: Python would fail again at exit, with exit code 120."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            _discard(sys.stdout)


def _discard_output() -> None:
    """Discard further standard output: at exit Python would wait for a reader that may have stopped."""
    if sys.stdout is not None:
        _discard(sys.stdout)


def _buffer(stream: TextIO | None, name: str) -> Any:
    """Return the binary buffer of a standard stream, which is None if it was closed when the program started."""
    if stream is None:
        raise InvalidInputError(f"standard {name} is closed: open it, or name a file with --{name}.")
    return stream.buffer


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _print_error(text: str) -> None:
    """Print to standard error; ignore failures, since answers matter more."""
    if sys.stderr is None:  # print() would use standard output instead
        return
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
