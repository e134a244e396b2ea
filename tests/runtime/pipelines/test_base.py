"""What all pipelines share: one input, lists and streams; rounds of questions; progress; threads; loading."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from erniem_rt import ArtifactError, InvalidInputError, Session, Tokenizer, pipeline
from erniem_rt.pipelines.base import Job, Pipeline

OPTIONS = {"cls": {"labels": ("entailment", "neutral", "contradiction")}, "ner": {"labels": ("O", "B-X")}}
BATCH, CHUNK = 2, 16
NO_OPTION = (
    "text-classification takes no option 'batchsize'; expected one of top_k, function_to_apply, batch_size, "
    "read_ahead, errors, max_seq_len, max_characters, progress."
)


class Sums(Pipeline):
    """The sum of numbers; inputs are lists of rows. Asks again, about the sum, while it is over the limit."""

    task = "sums"
    head = "cls"

    def __call__(self, inputs, *, over=100, **options):
        def job(rows):
            return Job(rows, finish)

        def finish(outputs):
            total = int(sum(output["logits"][0] for output in outputs))
            return job([[total // 2]]) if total > over else total

        def prepare(item):
            if item == "":
                raise InvalidInputError("text is empty.")
            return job([[int(word) for word in row.split()] for row in item.split(",")])

        return self._answer(inputs, prepare, self.options_for(options))


@pytest.fixture
def sums(scripted_session):
    return Sums(scripted_session("cls", lambda ids: {"logits": [sum(ids)]}, labels=("sum",)), None, batch_size=BATCH)


@pytest.mark.parametrize("head", ["base", "cls", "ner", "mc", "qa", "ie"])
def test_the_scripted_session_and_the_real_one_agree(make_text_artifact, scripted_session, head):
    options = OPTIONS.get(head, {})
    artifact = make_text_artifact(head, **options)
    scripted = scripted_session(head, artifact.function, **options)
    ids = np.array([[0, 7, 9, 2], [0, 5, 2, 1]])
    if head == "mc":
        ids = ids[None]
    with Session(artifact.path) as session:
        real, script = session.run(input_ids=ids), scripted.run(input_ids=ids)
    assert real.keys() == script.keys()
    for name in real:
        np.testing.assert_allclose(np.where(np.isnan(script[name]), np.nan, real[name]), script[name], rtol=1e-5)


def test_one_input_has_one_answer_and_a_list_has_a_list(sums):
    assert sums("1 2,3") == 6
    assert sums(["1 2,3"]) == [6]
    assert sums(("4", "1 1 1")) == [4, 3]
    assert sums([]) == []


def test_answers_are_in_the_order_of_the_inputs(sums):
    lengths = np.random.default_rng(0).integers(1, 30, size=3 * CHUNK + 5)
    assert sums([" ".join(["2"] * n) for n in lengths]) == [2 * n for n in lengths]


def test_a_job_may_lead_to_further_ones_and_others_do_not_wait_in_order(sums):
    assert sums(["5", "300", "90 20", "7"]) == [5, 75, 55, 7]


def test_a_job_without_rows_is_finished(scripted_session):
    class Nothing(Pipeline):
        task = "nothing"

        def __call__(self, inputs):
            return self._answer(inputs, lambda item: Job([], lambda outputs: (item, len(outputs))), self._options)

    session = scripted_session("cls", None, labels=("a",))
    assert Nothing(session, None)(["a", "b"]) == [("a", 0), ("b", 0)]
    assert session.batches == []


def test_rows_of_all_inputs_share_batches(sums):
    sums(["1,2,3", "4"])
    assert [len(ids) for ids in sums.session.batches] == [2, 2]


def test_a_stream_ends(sums):
    assert list(sums(str(n) for n in range(2, CHUNK + 5))) == list(range(2, CHUNK + 5))
    assert list(sums(iter(()))) == []


@pytest.mark.parametrize(("as_inputs", "total"), [(list, CHUNK + 3), (iter, None)])
def test_progress_counts_every_answer(sums, as_inputs, total):
    told = []
    list(sums(as_inputs(["300", *["1"] * (CHUNK + 2)]), progress=lambda *args: told.append(args)))
    assert told == [(n, total) for n in range(1, CHUNK + 4)]


def test_progress_is_told_of_one_input_too(sums):
    told = []
    assert sums("300", progress=lambda *args: told.append(args)) == 75
    assert told == [(1, 1)]


def test_progress_is_told_batch_by_batch(sums):
    batches = []
    sums(["1"] * 6, progress=lambda *_: batches.append(len(sums.session.batches)))
    assert batches == [1, 1, 2, 2, 3, 3]


def test_an_error_names_the_input_of_a_list_or_stream(sums):
    with pytest.raises(InvalidInputError, match=r"^text is empty\.$"):
        sums("")
    with pytest.raises(InvalidInputError, match=r"^input 1: text is empty\.$"):
        sums(["1", ""])
    stream = sums("" if n == CHUNK + 2 else "1" for n in range(100))
    assert list(islice(stream, CHUNK + 2)) == [1] * (CHUNK + 2)
    with pytest.raises(InvalidInputError, match=rf"^input {CHUNK + 2}: text is empty\.$"):
        next(stream)


def test_an_error_about_an_answer_names_the_input_too(scripted_session):
    """Errors may come up late: in making something of the outputs, or of those of a further question."""

    class Deep(Pipeline):
        task = "deep"

        def __call__(self, inputs):
            return self._answer(inputs, lambda depth: self.job(depth), self._options)

        def job(self, depth):
            def finish(outputs):
                if depth == 0:
                    raise InvalidInputError("the answer is too long.")
                return "fine" if depth < 0 else self.job(depth - 1)

            return Job([[1]], finish)

    deep = Deep(scripted_session("cls", lambda ids: {"logits": [0]}, labels=("a",)), None, batch_size=BATCH)
    assert deep([-1, -1]) == ["fine", "fine"]
    for depth in (0, 1, 2):
        with pytest.raises(InvalidInputError, match=r"^the answer is too long\.$"):
            deep(depth)
        with pytest.raises(InvalidInputError, match=rf"^input {CHUNK + 1}: the answer is too long\.$"):
            deep([-1] * (CHUNK + 1) + [depth])


def test_threads_share_a_pipeline(make_text_artifact, sentences):
    artifact = make_text_artifact("cls", labels=("a", "b", "c"), max_length=128)
    with pipeline(artifact.path, threads=1, batch_size=4) as classify:
        expected = [classify(text, top_k=None) for text in sentences]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda k: classify(list(sentences), top_k=k), [None, 1, 2, None] * 4))
    for answer, k in zip(answers, [None, 1, 2, None] * 4, strict=True):
        assert [[a["label"] for a in one] for one in answer] == [[a["label"] for a in one][:k] for one in expected]


def test_closing_closes_the_session(sums):
    with sums as same:
        assert same is sums
        assert not sums.session.closed
    assert sums.session.closed


@pytest.mark.parametrize(
    ("head", "task", "name"),
    [
        ("base", None, "FeatureExtractionPipeline"),
        ("cls", None, "TextClassificationPipeline"),
        ("cls", "text-classification", "TextClassificationPipeline"),
        ("cls", "zero-shot-classification", "ZeroShotClassificationPipeline"),
        ("mc", None, "MultipleChoicePipeline"),
    ],
)
def test_the_task_comes_from_the_manifest_or_the_caller(make_text_artifact, head, task, name):
    artifact = make_text_artifact(head, **OPTIONS.get(head, {}))
    for path in (artifact.path, str(artifact.path.with_suffix(".json"))):
        with pipeline(task, path, batch_size=3) as pipe:
            assert type(pipe).__name__ == name
            assert pipe.batch_size == 3
            assert pipe.task == (task or pipe.manifest.task)


@pytest.mark.parametrize("path", [3, b"cls.onnx"])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(InvalidInputError, match=rf"^path must be a str or a path, got {type(path).__name__}\.$"):
        pipeline(path)


@pytest.fixture(params=["base", "cls", "zero-shot", "ner", "mc", "qa", "ie"])
def call(request, make_text_artifact):
    """``call(inputs, **options)`` of the pipeline of each task."""
    head, task, options, arguments = request.param, None, {}, ()
    if head == "zero-shot":
        head, task, arguments = "cls", "zero-shot-classification", (["art", "sport"],)
    if head == "ie":
        options["schema"] = "Person"
    with pipeline(task, make_text_artifact(head, **OPTIONS.get(head, {})).path, **options) as pipe:
        yield lambda inputs, **named: pipe(inputs, *arguments, **named)


def test_an_array_without_axes_is_one_input_that_is_no_text(call):
    with pytest.raises(InvalidInputError, match=r"^[^:]*, got ndarray\.$"):
        call(np.array("text"))


@pytest.mark.parametrize("inputs", ["text", [], iter(())])
def test_a_progress_that_cannot_be_called_is_refused_before_anything_runs(call, inputs):
    with pytest.raises(InvalidInputError, match=r"^progress must be a function of two numbers, or None, got 3\.$"):
        call(inputs, progress=3)


@pytest.mark.parametrize("task", ["sentiment", "", ["qa"]])
def test_a_task_that_is_none_is_refused(tmp_path, task):
    with pytest.raises(InvalidInputError, match="is not known; expected one of feature-extraction, text-class"):
        pipeline(tmp_path / "cls.onnx", task)


def test_a_task_of_another_head_is_refused(make_text_artifact):
    path = make_text_artifact("base").path
    with pytest.raises(InvalidInputError) as caught:
        pipeline("zero-shot-classification", path)
    assert str(caught.value) == (
        f"task 'zero-shot-classification' needs an artifact of head 'cls'; {path} has head 'base' (feature-extraction)."
    )


@pytest.mark.parametrize("head", ["base", "mc", "qa"])
def test_an_artifact_that_takes_embeddings_is_refused(make_artifact, head):
    path = make_artifact(head, "inputs_embeds").path
    with pytest.raises(InvalidInputError) as caught:
        pipeline(path)
    assert str(caught.value) == (
        f"{path} takes inputs_embeds and a pipeline gives input_ids; export again without --with-inputs-embeds."
    )


def test_an_option_that_does_not_exist_is_refused(make_text_artifact):
    path = make_text_artifact("cls", **OPTIONS["cls"]).path
    with pytest.raises(InvalidInputError) as caught:
        pipeline(path, batchsize=3)
    assert str(caught.value) == NO_OPTION


@pytest.mark.parametrize("name", ["vocab.txt", "sentencepiece.bpe.model"])
def test_a_tokenizer_file_that_is_missing_is_named(make_text_artifact, name):
    path = make_text_artifact("base").path
    path.with_name(name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}.* missing"):
        pipeline(path)


def _shorten(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _edit(file):
    content = file.read_bytes()
    file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])


@pytest.mark.parametrize("name", ["vocab.txt", "sentencepiece.bpe.model"])
@pytest.mark.parametrize("damage", [Path.unlink, _shorten, _edit])
def test_a_tokenizer_alone_is_held_to_the_manifest(make_text_artifact, name, damage):
    """Without vocab.txt it would load, with ids that are none of the model's."""
    folder = make_text_artifact("base").path.parent
    Tokenizer.from_dir(folder)
    damage(folder / name)
    with pytest.raises(ArtifactError, match=f"{name} (is missing|is truncated|was changed)"):
        Tokenizer.from_dir(folder)


def test_a_tokenizer_without_a_manifest_is_not_held_to_one(make_text_artifact):
    folder = make_text_artifact("base").path.parent
    (folder / "vocab.txt").unlink()
    unchecked = Tokenizer.from_dir(folder, verify=False)
    (folder / "base.json").write_text("{}", "utf-8")
    assert Tokenizer.from_dir(folder).get_vocab() == unchecked.get_vocab()


def test_a_folder_exported_without_a_tokenizer_is_no_pipeline(make_text_artifact):
    path = make_text_artifact("base").path
    manifest = path.with_suffix(".json")
    content = json.loads(manifest.read_text("utf-8"))
    for name in ("vocab.txt", "sentencepiece.bpe.model"):
        path.with_name(name).unlink()
        del content["files"][name]
    manifest.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ArtifactError, match="its checkpoint had no tokenizer files when it was exported"):
        pipeline(path)
