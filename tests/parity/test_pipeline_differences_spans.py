"""Each line of ``docs/pipeline-differences.md`` on question answering and token classification, shown on both sides.

transformers' pipelines run a reference model whose ``forward`` is replaced: logits by token. Ours run the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from erniem_rt import InvalidInputError, Tokenizer
from erniem_rt.pipelines.question_answering import QuestionAnsweringPipeline
from erniem_rt.pipelines.token_classification import TokenClassificationPipeline
from tests.runtime.pipelines.conftest import ScriptedSession, make_manifest

# transformers hands tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
LIMIT = 128
QUESTION = "Who wrote letters?"
CONTEXT = "The lighthouse keeper wrote 3 letters in 2021, none arrived."


class ScriptedModel:
    """A reference model of this class, for its configuration, with logits ``(tokens, columns)`` by token id.

    Attributes:
        rows: The ids that were seen, without padding.
        table: The logits, for further changes.
    """

    def __init__(self, model: Any, table: torch.Tensor) -> None:
        self.model = model
        self.rows: list[list[int]] = []
        self.table = table
        model.forward = self._forward

    def _forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        self.rows += [[i for i in row if i != 1] for row in input_ids.tolist()]
        logits = self.table[input_ids]
        return {"logits": logits, "start_logits": logits[..., 0], "end_logits": logits[..., 1]}


def session_of(scripted: ScriptedModel, head: str) -> Any:
    """Return what pipelines use of a Session, answered by the model."""

    def function(ids: list[int]) -> dict[str, np.ndarray]:
        return {name: output[0].numpy() for name, output in scripted.model(torch.tensor([ids])).items()}

    return ScriptedSession(make_manifest(head, labels=LABELS, max_length=LIMIT), function)


@pytest.fixture
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.from_dir(tokenizer_dir)


@pytest.fixture
def their_tokenizer(tokenizer_dir: Path, tmp_path: Path) -> Any:
    from transformers.models.deprecated.ernie_m.tokenization_ernie_m import ErnieMTokenizer

    folder = shutil.copytree(tokenizer_dir, tmp_path / "tokenizer")
    return ErnieMTokenizer.from_pretrained(folder, model_max_length=LIMIT)


@pytest.fixture
def make_scripted(reference: ModuleType, tokenizer: Tokenizer) -> Callable[..., ScriptedModel]:
    """``make_scripted(class_name, {token: logits}, labels)``: these logits for these tokens, 0 for all others."""

    def make(class_name: str, wanted: dict[str, list[float]], labels: tuple[str, ...]) -> ScriptedModel:
        sizes = dict.fromkeys(("hidden_size", "intermediate_size"), 8) | {"num_hidden_layers": 1, "vocab_size": 2000}
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        model = getattr(reference, class_name)(reference.ErnieMConfig(num_attention_heads=2, **sizes, **names)).eval()
        table = torch.zeros(2000, len(labels))
        for token, logits in wanted.items():
            table[tokenizer.convert_tokens_to_ids(token)] = torch.tensor(logits)
        return ScriptedModel(model, table)

    return make


@pytest.fixture
def make_qa(make_scripted, their_tokenizer, tokenizer, monkeypatch):
    """``make_qa(*tokens, repairs=2, **options)``: their pipeline and ours, with answers of these tokens, and a spy.

    Repairs: 1, the tokenizer gives an attention mask; 2, two separators are counted before the context.
    """
    from transformers import QuestionAnsweringPipeline as TheirPipeline
    from transformers.data.processors import squad

    monkeypatch.setattr(squad, "Pool", ThreadPool)

    def make(*tokens: str, repairs: int = 2, **options: Any) -> tuple[Any, QuestionAnsweringPipeline, ScriptedModel]:
        their_tokenizer.model_input_names = ["input_ids", "attention_mask"][: 1 + min(repairs, 1)]
        monkeypatch.setattr(squad, "MULTI_SEP_TOKENS_TOKENIZERS_SET", {"erniem"} if repairs > 1 else set())
        scripted = make_scripted(
            "ErnieMForQuestionAnswering", {token: [9.0, 9.0] for token in tokens}, ("start", "end")
        )
        theirs = TheirPipeline(model=scripted.model, tokenizer=their_tokenizer, device="cpu")
        return theirs, QuestionAnsweringPipeline(session_of(scripted, "qa"), tokenizer, **options), scripted

    return make


@pytest.fixture
def make_ner(make_scripted, their_tokenizer, tokenizer):
    """``make_ner({token: label}, **options)``: their pipeline and ours."""
    from transformers import TokenClassificationPipeline as TheirPipeline

    def make(wanted: dict[str, str], **options: Any) -> tuple[Any, TokenClassificationPipeline]:
        rows = {token: [9.0 * (name == label) for name in LABELS] for token, label in wanted.items()}
        scripted = make_scripted("ErnieMForTokenClassification", {**rows}, LABELS)
        theirs = TheirPipeline(model=scripted.model, tokenizer=their_tokenizer, device="cpu")
        return theirs, TokenClassificationPipeline(session_of(scripted, "ner"), tokenizer, **options)

    return make


def test_without_repairs_question_answering_asks_for_a_mask_that_the_tokenizer_does_not_give(make_qa):
    theirs, ours, _ = make_qa("▁wrote", repairs=0)
    with pytest.raises(KeyError, match="attention_mask"):
        theirs(question=QUESTION, context=CONTEXT)
    assert ours(question=QUESTION, context=CONTEXT)["answer"] == "wrote"


def test_with_a_mask_alone_the_answer_is_one_token_late_or_fails(make_qa, tokenizer):
    theirs, ours, scripted = make_qa("▁keeper", repairs=1)
    asked = {"question": QUESTION, "context": CONTEXT, "max_answer_len": 1}
    with pytest.raises(KeyError):
        theirs(**asked | {"context": "The keeper"})  # the last token is among the candidates
    scripted.table[tokenizer.convert_tokens_to_ids(".")] = -9  # the last token is not
    assert theirs(**asked)["answer"] == "wrote"
    assert ours(**asked)["answer"] == "keeper"
    repaired, _, _ = make_qa("▁keeper")
    assert repaired(**asked)["answer"] == "keeper"


@pytest.mark.parametrize(
    ("token", "context", "widened", "chosen"),
    [("2021", CONTEXT, "2021,", "2021"), ("馆", "图书馆今天开放", "图书馆今天开放", "馆")],
)
def test_answers_are_widened_to_words_on_request_only(make_qa, token, context, widened, chosen):
    theirs, ours, _ = make_qa(token)
    for align_to_words in (True, False):
        assert theirs(question=QUESTION, context=context, align_to_words=align_to_words)["answer"] == widened
    assert ours(question=QUESTION, context=context, align_to_words=True)["answer"] == widened
    assert ours(question=QUESTION, context=context)["answer"] == chosen


def test_lone_word_start_marks_stay_in_a_context_that_is_tokenized_as_a_whole(make_qa, their_tokenizer):
    context = "in 图书馆"
    whole, by_words = ["▁in", "▁", "图", "书", "馆"], ["▁in", "图", "书", "馆"]
    for options, tokens in (({}, whole), ({"align_to_words": True}, by_words)):
        theirs, ours, scripted = make_qa("馆", **options)
        ours(question=QUESTION, context=context)
        assert their_tokenizer.convert_ids_to_tokens(scripted.rows[-1])[-len(tokens) - 1 : -1] == tokens
        theirs(question=QUESTION, context=context)
        assert their_tokenizer.convert_ids_to_tokens(scripted.rows[-1])[-len(by_words) - 1 : -1] == by_words


def test_the_answer_and_its_end_are_those_of_the_context(make_qa, tokenizer):
    context = "3 letters\n\t by the keeper"
    theirs, ours, scripted = make_qa(align_to_words=True)
    scripted.table[tokenizer.convert_tokens_to_ids("▁letters"), 0] = 9
    scripted.table[tokenizer.convert_tokens_to_ids("▁keeper"), 1] = 9
    answer, other = ours(question=QUESTION, context=context), theirs(question=QUESTION, context=context)
    assert answer["start"] == other["start"] == 2
    assert answer["answer"] == context[2:] == "letters\n\t by the keeper"
    assert other["answer"] == "letters by the keeper"
    assert context[2 : other["end"]] == "letters\n\t by the keepe"
    theirs, ours, _ = make_qa("▁letters", align_to_words=True)
    assert theirs(question=QUESTION, context=context)["end"] == 11
    assert ours(question=QUESTION, context=context)["end"] == 9


def test_each_span_is_given_once_and_only_spans_are(make_qa):
    theirs, ours, _ = make_qa("▁pe", "o", "p", "le", align_to_words=True)
    asked = {"question": QUESTION, "context": "14 people"}
    assert [a["answer"] for a in theirs(**asked, top_k=5)] == ["people"] * 5
    assert [a["answer"] for a in ours(**asked, top_k=5)] == ["people", "14 people", "14"]
    with pytest.raises(KeyError):
        theirs(**asked, top_k=100)
    assert len(ours(**asked, top_k=100)) == 3


def test_lists_in_lists_out(make_qa):
    theirs, ours, _ = make_qa("▁wrote")
    assert isinstance(theirs(question=[QUESTION], context=[CONTEXT]), dict)
    assert ours([{"question": QUESTION, "context": CONTEXT}]) == [ours(question=QUESTION, context=CONTEXT)]
    assert ours(question=[QUESTION], context=[CONTEXT]) == [ours(question=QUESTION, context=CONTEXT)]


def test_a_long_question_is_read_to_its_end(make_qa, tokenizer):
    theirs, ours, scripted = make_qa("▁wrote")
    question = "keeper " * 70
    ids = tokenizer(question, add_special_tokens=False).input_ids
    theirs(question=question, context=CONTEXT)
    ours(question=question, context=CONTEXT)
    cut, whole = scripted.rows[0], scripted.rows[-1]
    assert cut[:66] == [0, *ids[:64], 2]
    assert whole[:72] == [0, *ids, 2]


def test_no_text_is_left_out_between_windows(make_qa):
    context = "keeper " * 36 + "2021" + " keeper" * 60
    sizes = {"max_seq_len": 40, "doc_stride": 40}
    theirs, ours, _ = make_qa("2021", align_to_words=True, **sizes)
    assert theirs(question=QUESTION, context=context, **sizes)["answer"] != "2021"
    assert ours(question=QUESTION, context=context)["answer"] == "2021"


def test_a_separator_that_is_written_in_the_context_is_text(make_qa):
    theirs, ours, _ = make_qa("[SEP]", align_to_words=True)
    context = "The [SEP] token"
    assert theirs(question=QUESTION, context=context)["answer"] != "[SEP]"
    assert ours(question=QUESTION, context=context)["answer"] == "[SEP]"


@pytest.mark.parametrize("strategy", ["first", "average", "max"])
def test_labels_of_words(make_ner, strategy):
    theirs, ours = make_ner({"▁pe": "B-PER", "o": "B-PER", "p": "B-PER", "le": "B-PER"})
    with pytest.raises(ValueError, match="Slow tokenizers cannot handle subwords"):
        theirs("14 people", aggregation_strategy=strategy)
    [found] = ours("14 people", aggregation_strategy=strategy)
    assert (found["entity_group"], found["word"]) == ("PER", "people")


def test_words_and_offsets_are_those_of_the_text(make_ner):
    text = "in  March"
    for strategy, word in (("none", "▁March"), ("simple", "March")):
        theirs, ours = make_ner({"▁March": "B-LOC"}, aggregation_strategy=strategy)
        [other], [found] = theirs(text, aggregation_strategy=strategy), ours(text)
        assert (other["word"], other["start"], other["end"]) == (word, None, None)
        assert (found["word"], found["start"], found["end"]) == ("March", 4, 9)
        assert found["score"] == pytest.approx(other["score"])


@pytest.mark.parametrize(
    ("text", "message"), [("", "text is empty"), ("\u200b", "text has no tokens left after normalization")]
)
def test_a_text_without_text_is_refused(make_ner, text, message):
    theirs, ours = make_ner({})
    assert theirs(text) == []
    with pytest.raises(InvalidInputError, match=message):
        ours(text)


def test_a_group_of_nothing_but_whitespace_is_left_out(make_ner):
    theirs, ours = make_ner({"▁": "B-LOC"})
    assert [entity["word"] for entity in theirs("in 图书馆", aggregation_strategy="simple")] == [""]
    assert ours("in 图书馆", aggregation_strategy="simple") == []


def test_a_long_text_is_labelled_to_its_end(make_ner):
    theirs, ours = make_ner({"▁keeper": "B-PER"})
    text = "keeper " * 200
    assert len(theirs(text)) == LIMIT - 2
    assert len(ours(text)) == 200
    with pytest.raises(ValueError, match="slow tokenizer"):
        theirs(text, aggregation_strategy="simple", stride=16)


@pytest.mark.parametrize(
    ("text", "token", "their_word", "our_word"), [("图书馆", "图", "图书馆", "图"), ("in.", "▁in", "in.", "in")]
)
def test_what_a_word_is(make_ner, tokenizer, text, token, their_word, our_word):
    """Where a tokenizer has offsets but no words, theirs are what whitespace parts. The offsets are ours here."""
    from transformers.pipelines.token_classification import AggregationStrategy

    theirs, ours = make_ner({token: "B-LOC"}, aggregation_strategy="first")
    [found] = ours(text)
    assert (found["entity_group"], found["word"]) == ("LOC", our_word)
    encoding = tokenizer(text)
    first = tokenizer.convert_tokens_to_ids(token)
    scores = np.array([np.eye(len(LABELS))[LABELS.index("B-LOC") if i == first else 0] for i in encoding.input_ids])
    with pytest.warns(UserWarning, match="fallback heuristic"):
        tokens = theirs.gather_pre_entities(
            text,
            np.array(encoding.input_ids),
            scores,
            encoding.offsets,
            np.array(encoding.special_tokens_mask),
            AggregationStrategy.FIRST,
        )
    [other] = theirs.aggregate(tokens, AggregationStrategy.FIRST)
    assert (other["entity_group"], text[other["start"] : other["end"]]) == ("LOC", their_word)
