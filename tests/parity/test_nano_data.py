"""The nano corpus: repeatable, split without a shared template-filler pair, labels that point at the right text."""

import sys
from itertools import islice, pairwise
from pathlib import Path

import pytest

NANO = Path(__file__).parents[2] / "examples" / "nano"
COUNT = 30


@pytest.fixture(scope="module", autouse=True)
def nano_modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(NANO))
        before = set(sys.modules)
        yield
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) and NANO in Path(sys.modules[name].__file__).parents:
                del sys.modules[name]


def examples(task, split, seed=0, count=COUNT):
    from generate import generate
    from languages import CODES

    return [example for code in CODES for example in generate(task, code, split, seed, count)]


@pytest.mark.parametrize("task", ["qa", "ner", "cls", "mc", "ie"])
def test_the_seed_decides_every_example(task):
    assert examples(task, "train") == examples(task, "train")
    assert examples(task, "train") != examples(task, "train", seed=1)


def test_no_template_filler_pair_is_in_both_splits():
    pairs = {
        split: {pair for task in ("qa", "ner", "cls", "mc", "ie") for e in examples(task, split) for pair in e.pairs}
        for split in ("train", "heldout")
    }
    assert min(map(len, pairs.values())) > 2500
    assert not pairs["train"] & pairs["heldout"]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_answers_are_objects_or_subjects_of_the_passage(split):
    for example in examples("qa", split):
        answer = example.context[example.start : example.end]
        assert answer in {pair.filler for pair in example.pairs}
        assert answer not in example.question


def test_entities_are_the_fillers_they_came_from():
    for example in examples("ner", "heldout"):
        fillers = {pair.filler for pair in example.pairs}
        assert all(example.text[start:end] in fillers for start, end, _ in example.entities)
        ends = [(start, end) for start, end, _ in example.entities]
        assert ends == sorted(ends)
        assert all(previous[1] <= following[0] for previous, following in pairwise(ends))


def test_extraction_has_empty_and_several_answers():
    found = examples("ie", "heldout")
    sizes = {len(example.spans) for example in found}
    assert {0, 1, 2} <= sizes
    for example in found:
        fillers = {pair.filler for pair in example.pairs}
        assert all(example.text[start:end] in fillers for start, end in example.spans)


def test_inference_has_all_labels_and_topics():
    found = examples("cls", "heldout")
    assert {example.label for example in found} == {0, 1, 2}
    assert 0.2 < sum(example.topic for example in found) / len(found) < 0.5


def test_choices_differ_in_number_and_text():
    found = examples("mc", "heldout")
    assert {len(example.choices) for example in found} == {2, 3, 4}
    for example in found:
        assert len(set(example.choices)) == len(example.choices)
        assert 0 <= example.label < len(example.choices)


def test_every_template_fits_its_relation():
    from languages import CODES, OBJECT_KINDS, load, slots_of

    for code in CODES:
        language = load(code)
        assert set(language.subject_kinds) == set(OBJECT_KINDS) == set(language.data["questions"])
        assert all(language.plain_statements.values())
        for templates in language.data["questions"].values():
            assert all(slots_of(template) == ["s"] for template in templates)
        for templates in language.data["reverse_questions"].values():
            assert all(slots_of(template) == ["o"] for template in templates)


def test_long_passages_are_longer():
    from generate import generate

    texts = [len(e.context) for e in islice(generate("qa", "en", "train", 0, 20, long_share=1.0), 20)]
    assert min(texts) > 400


@pytest.mark.parametrize("task", ["qa", "ner", "ie"])
def test_labels_survive_the_tokenizer(task):
    import numpy as np

    from erniem_rt import Tokenizer
    from features import best_answer, encode, entities, extracted, texts_of

    tokenizer = Tokenizer.from_dir(NANO / "checkpoints" / task)
    for example in examples(task, "heldout", count=15):
        encoding = tokenizer(*texts_of(example)[0])
        unit = encode(tokenizer, task, example)
        marks = np.zeros((2, len(encoding)), np.float32)
        for start, end in unit.target or []:
            marks[0, start] = marks[1, end] = 1
        if task == "qa":
            assert best_answer(encoding, *marks) == (example.start, example.end)
        elif task == "ie":
            assert extracted(encoding, *marks) == set(example.spans)
        else:
            assert entities(encoding, np.maximum(unit.tags[0], 0)) == set(example.entities)


@pytest.mark.parametrize("task", ["qa", "ner", "cls", "mc", "ie"])
def test_stored_task_sets_are_what_the_generator_makes(task):
    from task_sets import FILE, task_set

    stored = NANO / "checkpoints" / task / FILE
    assert stored.read_text(encoding="utf-8") == task_set(task), "run: make nano-task-sets"


@pytest.mark.parametrize("head", ["qa", "ner", "cls", "mc", "ie", "base"])
def test_stored_calibration_texts_are_what_the_generator_makes(head):
    from task_sets import CALIBRATION_FILE, calibration_texts

    stored = NANO / "checkpoints" / head / CALIBRATION_FILE
    assert stored.read_text(encoding="utf-8") == calibration_texts(), "run: make nano-task-sets"


def test_task_sets_share_nothing_with_training():
    from task_sets import examples as examples_of

    trained = {pair for task in ("qa", "ner", "cls", "mc", "ie") for e in examples(task, "train") for pair in e.pairs}
    held_out = {pair for task in ("qa", "ner", "cls", "mc", "ie") for e in examples_of(task) for pair in e.pairs}
    assert min(map(len, (trained, held_out))) > 2500
    assert not trained & held_out
