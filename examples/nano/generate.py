"""Generate the nano corpus: seeded examples for five tasks in six languages.

    python examples/nano/generate.py --task qa --split heldout --count 3 --language de

prints examples as JSON lines. The same seed, split, task and language always give the same examples.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from languages import CODES, Split, load
from passages import ExhaustedError, Writer
from tasks import (
    Example,
    choice_example,
    entity_example,
    extraction_example,
    inference_example,
    question_example,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

TASKS = ("qa", "ner", "cls", "mc", "ie")

_MAKERS: dict[str, Callable[[Writer, int], Example]] = {
    "qa": question_example,
    "ner": entity_example,
    "cls": inference_example,
    "mc": choice_example,
    "ie": extraction_example,
}
# How many sentences a passage has, and how often.
_LENGTHS = {
    "qa": {2: 4, 3: 4, 4: 3, 5: 2, 6: 1},
    "ner": {1: 3, 2: 4, 3: 3, 4: 2, 6: 1},
    "cls": {1: 6, 2: 3, 3: 1},
    "mc": {1: 4, 2: 4, 3: 2},
    "ie": {1: 2, 2: 4, 3: 4, 4: 2, 6: 1},
}
_LONG_LENGTHS = {12: 2, 18: 1, 24: 1}
LONG_TASKS = ("qa", "ner", "ie")


def generate(
    task: str,
    language: str,
    split: Split,
    seed: int,
    count: int,
    *,
    most_sentences: int = 6,
    long_share: float = 0.0,
) -> Iterator[Example]:
    """``count`` examples; ``long_share`` of them (``qa``, ``ner``, ``ie``) are passages of 12 to 24 sentences."""
    rng = random.Random(f"{seed}/{split}/{task}/{language}")
    writer = Writer(rng, load(language), split)
    made = 0
    while made < count:
        is_long = task in LONG_TASKS and rng.random() < long_share
        lengths = _LONG_LENGTHS if is_long else _LENGTHS[task]
        sentences = rng.choices(list(lengths), list(lengths.values()))[0]
        if not is_long:
            sentences = min(sentences, most_sentences)
        try:
            example = _MAKERS[task](writer, sentences)
        except ExhaustedError:
            continue
        yield example
        made += 1


def main(argv: Sequence[str] | None = None) -> int:
    """Print examples as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="qa")
    parser.add_argument("--language", choices=CODES, default="en")
    parser.add_argument("--split", choices=["train", "heldout"], default="heldout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=5)
    args = parser.parse_args(argv)
    for example in generate(args.task, args.language, args.split, args.seed, args.count):
        fields = asdict(example)
        del fields["pairs"]
        print(json.dumps(fields, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
