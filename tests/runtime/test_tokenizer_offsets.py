"""Offsets: what each token came from, in code points of the text as it was given."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_rt.tokenizer import AddedToken, Tokenizer, TokenizerSettings

AWKWARD = [
    *" \t\n\u3000\u200b\u00a0▁\u0000\u0007\u0301\u0327\u200dİΣßﬁ½㍻ﷺ…ｶﾞ🦊中가\u1100\u1161\u11a8，。?1２٣²aAbB\ud800"
]
TEXTS = st.lists(st.sampled_from([*AWKWARD, "[MASK]", "The", " wrote "]) | st.characters(), max_size=20).map("".join)


@pytest.fixture(scope="module", params=[False, True], ids=["cased", "lower-cased"])
def tokenizer(tokenizer_dir: Path, request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(
        tokenizer_dir / "sentencepiece.bpe.model",
        tokenizer_dir / "vocab.txt",
        settings=TokenizerSettings(do_lower_case=request.param),
    )


@pytest.fixture(scope="module")
def normalizer(tokenizer_dir: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_dir / "sentencepiece.bpe.model"))


def spans(tokenizer: Tokenizer, text: str) -> list[tuple[str, int, int]]:
    encoding = tokenizer(text, add_special_tokens=False)
    tokens = tokenizer.tokenize(text)
    return [(token, *span) for token, span in zip(tokens, encoding.offsets, strict=True)]


def sources(tokenizer: Tokenizer, text: str) -> list[tuple[str, str]]:
    return [(token, text[start:end]) for token, start, end in spans(tokenizer, text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  wrote", [("▁The", 0, 3), ("▁wrote", 5, 10)]),
        ("\u3000The\u200b\twrote \n", [("▁The", 1, 4), ("▁wrote", 6, 11)]),
        ("The\u0007\u0007 \u0007wrote\u0007", [("▁The", 0, 3), ("▁wrote", 7, 12)]),
        ("T\u0007he", [("▁The", 0, 4)]),
        ("ofﬁce", [("▁office", 0, 5)]),
        ("…", [(".", 0, 1)] * 3),
        ("㍿", [("株", 0, 1), ("式", 0, 1), ("会", 0, 1), ("社", 0, 1)]),
        ("\u1112\u1161\u11ab\u1100\u1161\u11bc에서", [("▁한강에서", 0, 8)]),
        ("1897,3", [("1897", 0, 4), (",", 4, 5), ("3", 5, 6)]),
        ("２０２１", [("2021", 0, 4)]),
        ("u\u0308berraschend u\u0308berraschend", [("▁überraschend", 0, 13), ("▁überraschend", 14, 27)]),
        ("The[MASK] wrote", [("▁The", 0, 3), ("[MASK]", 3, 9), ("▁wrote", 10, 15)]),
        ("", []),
        (" \n\u200b", []),
    ],
)
def test_known_spans(tokenizer_dir: Path, text: str, expected: list[tuple[str, int, int]]) -> None:
    assert spans(Tokenizer.from_dir(tokenizer_dir), text) == expected


def test_a_lone_word_mark_has_the_first_whitespace_character_of_its_run(tokenizer_dir: Path) -> None:
    assert sources(Tokenizer.from_dir(tokenizer_dir), "The\t \u0007 ever\u3000ž")[1:] == [
        ("▁ever", "ever"),
        ("▁", "\u3000"),
        ("ž", "ž"),
    ]


def test_lower_casing_that_adds_code_points_keeps_positions(tokenizer_dir: Path) -> None:
    lowering = Tokenizer(
        tokenizer_dir / "sentencepiece.bpe.model",
        tokenizer_dir / "vocab.txt",
        settings=TokenizerSettings(do_lower_case=True),
    )
    text = "İİ ΟΔΟΣ [MASK] WROTE"
    found = sources(lowering, text)
    assert found[-2:] == [("[MASK]", "[MASK]"), ("▁wrote", "WROTE")]
    assert "".join(source for _, source in found if source.isalpha() and source > "Ͱ") == "ΟΔΟΣ"
    assert found[0][1] in ("İ", "İİ")


def test_added_tokens_that_swallow_whitespace_do_not_shift_their_neighbours(tokenizer_dir: Path) -> None:
    greedy = TokenizerSettings(additional_special_tokens=(AddedToken("<ent>", lstrip=True, rstrip=True),))
    tokenizer = Tokenizer(tokenizer_dir / "sentencepiece.bpe.model", tokenizer_dir / "vocab.txt", settings=greedy)
    assert spans(tokenizer, "The  <ent>  wrote") == [("▁The", 0, 3), ("<ent>", 5, 10), ("▁wrote", 12, 17)]


def test_tokens_cut_from_one_rewritten_sequence_share_all_of_it(tmp_path: Path) -> None:
    """nmt_nfkc has no rule from several characters to several, but a model's own rules may."""
    rules = tmp_path / "rules.tsv"
    rules.write_text("61 62\t78 79\n", encoding="utf-8")  # "ab" becomes "xy"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["x y xy q"] * 9),
        model_writer=model,
        vocab_size=9,
        model_type="char",
        normalization_rule_tsv=str(rules),
        minloglevel=2,
        hard_vocab_limit=False,
    )
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    assert spans(Tokenizer.from_dir(tmp_path), "qabq") == [("q", 0, 1), ("x", 1, 3), ("y", 1, 3), ("q", 3, 4)]


@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_spans_are_monotone_and_inside_the_text(tokenizer: Tokenizer, text: str) -> None:
    found = spans(tokenizer, text)
    assert all(0 <= start < end <= len(text) for _, start, end in found)
    for (_, start, end), (_, next_start, next_end) in pairwise(found):
        assert start <= next_start
        assert end <= next_end


@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_spans_cover_exactly_what_normalisation_keeps(
    tokenizer_dir: Path, normalizer: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    """The slow oracle: normalising what tokens cover spells them; normalising the rest leaves nothing."""
    tokenizer = Tokenizer.from_dir(tokenizer_dir)
    found = spans(tokenizer, text)
    readable = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    covered = {i for _, start, end in found for i in range(start, end)}
    assert not any(normalizer.normalize(char) for i, char in enumerate(readable) if i not in covered)
    for tokens, start, end in clusters(found):
        if tokens != "[MASK]":
            assert normalizer.normalize(readable[start:end]).replace("▁", "") == tokens.replace("▁", "")
    for token, start, end in found:
        if token != "▁":
            assert normalizer.normalize(readable[start])
            assert normalizer.normalize(readable[end - 1])


def clusters(found: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Join tokens that share a character: they can only be checked together."""
    joined: list[tuple[str, int, int]] = []
    for token, start, end in found:
        if joined and start < joined[-1][2]:
            joined[-1] = (joined[-1][0] + token, joined[-1][1], end)
        else:
            joined.append((token, start, end))
    return joined


def test_sentences_are_covered(tokenizer: Tokenizer, sentences: tuple[str, ...]) -> None:
    for sentence in sentences:
        covered = {i for start, end in tokenizer(sentence).offsets for i in range(start, end)}
        assert all(i in covered or char.isspace() or char == "\u200c" for i, char in enumerate(sentence))


def test_pairs_have_offsets_of_their_own_text(tokenizer_dir: Path) -> None:
    encoding = Tokenizer.from_dir(tokenizer_dir)("The letters", "wrote 3")
    assert encoding.offsets == [(0, 0), (0, 3), (4, 11), (0, 0), (0, 0), (0, 5), (6, 7), (0, 0)]
    assert encoding.sequence_ids == [None, 0, 0, None, None, 1, 1, None]
    assert encoding.special_tokens_mask == [1, 0, 0, 1, 1, 0, 0, 1]


def test_a_long_text_takes_time_in_proportion(tokenizer_dir: Path) -> None:
    """100,000 characters of each awkward kind: anything quadratic would take far longer."""
    tokenizer = Tokenizer.from_dir(tokenizer_dir)
    for unit in ("The lighthouse ", " ", "\u0007", "x\u0007", "[MASK]", "[MASK", "🦊"):
        text = unit * (100_000 // len(unit))
        assert tokenizer(text).offsets[-2][1] <= len(text)
