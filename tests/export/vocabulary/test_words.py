"""Languages told apart by their words: a stand-in for wordfreq, and wordfreq itself where it is installed."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import regex

from erniem_export import languages
from erniem_export.checkpoint import Checkpoint
from erniem_export.configuration import ErnieMConfig
from erniem_export.heads import CLASSES
from erniem_export.languages import LANGUAGES, rule_for, texts_of, why_alphabet
from erniem_export.options import Keep
from erniem_export.vocabulary import prune, select
from erniem_rt.tokenizer import Tokenizer

NANO = Path(__file__).parents[3] / "examples" / "nano" / "checkpoints" / "base"
SPECIAL = {"[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"}
LISTS = {
    "en": {"the": 1e-2, "founded": 1e-5, "company": 1e-5, "in": 1e-2, "rare": 1e-9},
    "de": {"hat": 1e-3, "gegründet": 1e-5, "strasse": 1e-5},
    "nb": {"og": 1e-2},
    "tr": {"istanbul": 1e-4},
    "zh": {"公司": 1e-4},
}


@pytest.fixture
def lists(monkeypatch):
    """In place of wordfreq."""
    found = {code: dict(frequencies) for code, frequencies in LISTS.items()}
    library = SimpleNamespace(
        available_languages=lambda wordlist: {code: f"{wordlist}_{code}" for code in found},
        get_frequency_dict=lambda code, wordlist: found[code],
    )
    monkeypatch.setitem(sys.modules, "wordfreq", library)
    return found


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_dir(NANO)


def tokens_of(tokenizer, ids):
    return {token for token, index in tokenizer.get_vocab().items() if index in ids}


def pruned(codes, folder):
    """The tokenizer that is left of nano's."""
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = CLASSES["cls"](ErnieMConfig(**size, vocab_size=len(Tokenizer.from_dir(NANO))))
    checkpoint = Checkpoint(model, "cls", "nano", model.config.to_json_string(use_diff=False), NANO)
    _, vocabulary = prune(checkpoint, Keep(tuple(codes.split(","))), folder)
    return Tokenizer.from_dir(folder), vocabulary


def test_words_are_for_scripts_that_many_languages_share(lists):
    rules = {code: rule_for(code) for code in LANGUAGES}
    assert {code for code, rule in rules.items() if rule == languages.WORDS} == {"en", "de", "no", "tr"}
    assert why_alphabet("en") is None
    assert why_alphabet("zh") is None, "its script tells it from others"
    assert why_alphabet("sw") == why_alphabet("sr") == "wordfreq has no words of it"


def test_without_the_package_alphabets_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    assert {rule_for(code) for code in LANGUAGES} == {languages.ALPHABET}
    assert why_alphabet("en") == 'for fewer tokens: pip install "erniem-rt[languages]"'


def test_words_stand_as_texts_have_them(lists):
    (texts,) = texts_of("en")
    assert texts[:2] == ["the founded company in", '"the "founded "company "in']
    assert texts[2:] == [
        *("The Founded Company In", '"The "Founded "Company "In'),
        *("THE FOUNDED COMPANY IN", '"THE "FOUNDED "COMPANY "IN'),
    ]
    assert next(texts_of("tr"))[2::2] == ["İstanbul", "İSTANBUL"]


def test_all_words_are_taken(lists, monkeypatch):
    monkeypatch.setattr(languages, "_WORDS_IN_A_TEXT", 3)
    assert [texts[0] for texts in texts_of("en")] == ["the founded company", "in"]


def test_what_words_are_cut_into_is_kept(lists, tokenizer):
    by_words = select(tokenizer, Keep(("en",)))
    for text in ('The company "founded in', "COMPANY", "Company", '"The', "1995 (in 2003)!"):
        assert set(tokenizer(text).input_ids) <= by_words, text
    kept = tokens_of(tokenizer, by_words)
    rest = {token for token in kept if regex.search(r"\p{L}\p{L}", token)} - SPECIAL
    used = {token for text in next(texts_of("en")) for token in tokenizer.tokenize(text)}
    inner_capital = {token for token in rest if regex.search(r"\p{Ll}\p{Lu}", token)}
    assert rest - inner_capital <= used, "nothing else but single characters"
    assert len(by_words) < len(select(tokenizer, Keep(("sw",))))


def test_languages_without_a_list_add_their_alphabet(lists, tokenizer):
    english, chinese, swahili = (select(tokenizer, Keep((code,))) for code in ("en", "zh", "sw"))
    assert select(tokenizer, Keep(("en", "zh"))) == english | chinese
    assert select(tokenizer, Keep(("en", "sw"))) == english | swahili


def test_words_of_other_scripts_are_not_of_the_language(lists, tokenizer):
    before = select(tokenizer, Keep(("en",)))
    lists["en"]["компания"] = 1e-5
    assert select(tokenizer, Keep(("en",))) == before


def test_german_keeps_what_its_list_folds(lists, tokenizer_dir):
    tokenizer = Tokenizer.from_dir(tokenizer_dir)
    written = {token for token in tokenizer.get_vocab() if "ß" in token}
    assert len(written) > 1
    assert written <= tokens_of(tokenizer, select(tokenizer, Keep(("de",))))
    assert written & tokens_of(tokenizer, select(tokenizer, Keep(("en",)))) == {"ß"}


@pytest.mark.parametrize("code", [code for code, language in LANGUAGES.items() if "Latin" in language.scripts])
def test_no_letter_of_an_alphabet_becomes_unknown(code, lists, tokenizer, tmp_path):
    lists.setdefault(code, {"a": 1e-2})
    part, vocabulary = pruned(code, tmp_path)
    letters = "abcdefghijklmnopqrstuvwxyz" + LANGUAGES[code].letters
    known = [
        letter
        for letter in {*letters, *letters.upper()}
        if tokenizer.unk_token_id not in tokenizer(f"x{letter}x").input_ids
    ]
    assert len(known) >= 52
    for letter in known:
        for text in (letter, f"x{letter}x", f"({letter})"):
            assert part.unk_token_id not in part(text).input_ids, text
    assert vocabulary.kept < vocabulary.of


def test_a_dropped_word_is_cut_into_what_is_kept(lists, tokenizer, tmp_path):
    part, vocabulary = pruned("en,zh", tmp_path)
    text = "The headquarters of the company"
    assert len(part(text).input_ids) > len(tokenizer(text).input_ids)
    assert part.unk_token_id not in part(text).input_ids
    assert "".join(part.tokenize(text)) == "".join(tokenizer.tokenize(text))
    assert vocabulary.rules == {"en": "words", "zh": "alphabet"}
    assert str(vocabulary).endswith("tokens; en by the words of wordfreq; zh by the alphabet")


@pytest.mark.slow
def test_the_words_of_wordfreq_leave_nanos_texts_as_they_were(tokenizer, nano_heldout, tmp_path):
    pytest.importorskip("wordfreq", reason='pip install "erniem-rt[languages]"')
    assert {rule_for(code) for code in ("en", "de", "es", "fr", "pl", "ru", "no", "hr")} == {languages.WORDS}
    part, vocabulary = pruned("en", tmp_path)
    texts = [example.text for example in nano_heldout("ner", 0, 100)][:100]  # English
    same = sum(part.tokenize(text) == tokenizer.tokenize(text) for text in texts)
    assert same >= 0.98 * len(texts)
    assert vocabulary.kept < vocabulary.of / 2
