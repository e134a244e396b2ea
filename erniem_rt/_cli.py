"""The command line of the pipelines: one JSON line in, one JSON line out, in the same order.

A line that cannot be answered gives ``{"error": ..., "line": ...}`` in its place and does not stop the others.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from erniem_rt._cli_files import chunks, refuse_same_file, replaced
from erniem_rt._cli_options import call_options, make_parser
from erniem_rt._cli_streams import (
    discard_output,
    drop_what_cannot_be_written,
    say,
    show_progress,
    standard_input,
    standard_output,
)
from erniem_rt._signals import Terminated
from erniem_rt.errors import ErnieMError, InvalidInputError

if TYPE_CHECKING:
    import argparse
    import io

    from erniem_rt.pipelines.base import Pipeline

__all__ = ["main"]

# Most lines that are answered together, in batches: enough to sort them by length.
_BATCHES_PER_CHUNK = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Answer lines; returns 0, 1 if the artifact or any line was at fault, or exits with 2 (usage)."""
    arguments = make_parser().parse_args(argv)
    try:
        refuse_same_file(arguments.input, arguments.output)
        with _load(arguments) as pipeline:
            show_progress(f"engine: {pipeline.session.engine}, computing in {pipeline.session.precision}\n")
            options = call_options(pipeline, arguments)
            with _opened(arguments) as (source, target):
                return _answer_lines(pipeline, options, source, target)
    except (ErnieMError, OSError) as error:
        drop_what_cannot_be_written()
        say(f"error: {' '.join(str(error).split())}")
        return 1
    except Terminated:
        discard_output()
        raise
    except KeyboardInterrupt:
        say("error: interrupted")
        return 1


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
    """Yield input and output as bytes: lines are UTF-8 whatever the locale says."""
    with contextlib.ExitStack() as stack:
        read, write = arguments.input, arguments.output
        source = standard_input() if read == "-" else stack.enter_context(Path(read).open("rb"))
        target = standard_output() if write == "-" else stack.enter_context(replaced(Path(write)))
        yield source, target


def _answer_lines(pipeline: Pipeline, options: dict[str, Any], source: io.BufferedReader, target: IO[bytes]) -> int:
    done = failed = 0
    for chunk in chunks(source, _BATCHES_PER_CHUNK * pipeline.batch_size):
        for number, answer in _answer_chunk(pipeline, options, chunk):
            if isinstance(answer, ErnieMError):
                failed += 1
                say(f"line {number}: {answer}")
                answer = {"error": str(answer), "line": number}
            text = json.dumps(answer, ensure_ascii=False, default=_plain)
            # What UTF-8 cannot hold (half of a surrogate pair) stays the escape that JSON has for it.
            target.write(text.encode("utf-8", "backslashreplace") + b"\n")
        target.flush()
        done += len(chunk)
        show_progress(f"\r{done} lines")
    if done:
        show_progress("\n")
    if failed:
        say(f"error: {failed} of {done} lines could not be answered")
    return 1 if failed else 0


def _answer_chunk(
    pipeline: Pipeline, options: dict[str, Any], chunk: Iterable[tuple[int, bytes]]
) -> list[tuple[int, Any]]:
    """Answer lines; the answer to one that is at fault is the error."""
    items = [(number, _parsed(line)) for number, line in chunk]
    good = [item for _, item in items if not isinstance(item, ErnieMError)]
    answers = iter(pipeline(good, errors="return", **options))
    return [(number, item if isinstance(item, ErnieMError) else next(answers)) for number, item in items]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return InvalidInputError(f"expected a JSON string or object in UTF-8, but {error}")


def _plain(value: Any) -> Any:
    return value.tolist()
