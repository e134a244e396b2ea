"""Drops tokens: selects those of languages or of a text, and cuts embeddings and the tokenizer's files to match.

Scripts do not separate languages such as Indonesian, Swahili and English. So if a list of a language's words is
installed, the tokens of these words are kept, otherwise all tokens in its alphabet.

``vocab.txt`` defines the ids: a token's line is its new id. The sentencepiece model loses the pieces of removed tokens,
so it cuts text that needs them into smaller pieces instead of unknown tokens. A text whose best segmentation uses no
removed piece keeps its tokens.
"""

from __future__ import annotations

import dataclasses
import json
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import regex
import torch
from torch import nn

from erniem_export.checkpoint import Checkpoint
from erniem_export.errors import CheckpointError
from erniem_export.languages import ALPHABET, LANGUAGES, WORDS, rule_for, texts_of, why_alphabet
from erniem_export.options import Keep
from erniem_export.sources import CONFIG_FILE, TOKENIZER_FILES, as_json, read_object, tokenizer_files
from erniem_export.tokenizer import parse, with_pieces
from erniem_rt.errors import InvalidInputError
from erniem_rt.tokenizer import Tokenizer
from erniem_rt.tokenizer.pieces import split_piece
from erniem_rt.tokenizer.settings import read_settings

_WORD_START = "▁"
_LATIN = "Latin"
# Digits, punctuation, symbols, emoji and combining marks belong to no language.
_SHARED = (r"\p{Script=Common}", r"\p{Script=Inherited}")
# Capitals inside a word, as in McDonald and MHz, which word lists lack.
_INNER_CAPITAL = regex.compile(r"\p{Lowercase_Letter}\p{Uppercase_Letter}")


def select(tokenizer: Tokenizer, keep: Keep) -> set[int]:
    """Return the ids to keep, always including special and added tokens.

    For a language, by its rule (:func:`rule_for`): the tokens of its words, or all tokens in its script, for Latin
    script in its alphabet. For a text: its tokens. For both: every single character of the scripts, so that any word
    can still be spelled.

    Raises:
        InvalidInputError: A language is unknown; the text cannot be read, is empty, or has no known token.
    """
    vocabulary = tokenizer.get_vocab()
    ids = _special_ids(tokenizer, vocabulary)
    scripts: set[str] = set()
    if keep.text is not None:
        used = _ids_of_text(tokenizer, keep.text)
        if used <= ids:
            raise InvalidInputError(f"{keep.text} holds no token of the vocabulary: is it text in your languages?")
        ids |= used
        scripts |= _scripts_of(token for token, index in vocabulary.items() if index in used)
    if keep.languages:
        ids |= _ids_of_languages(tokenizer, vocabulary, keep.languages)
        scripts |= {script for code in keep.languages for script in LANGUAGES[code].scripts}
    is_shared = regex.compile(f"[{''.join(map(_script, scripts))}{''.join(_SHARED)}{string.ascii_letters}]").fullmatch
    ids |= {index for token, index in vocabulary.items() if is_shared(token.removeprefix(_WORD_START) or token)}
    return ids


def _special_ids(tokenizer: Tokenizer, vocabulary: dict[str, int]) -> set[int]:
    settings = tokenizer.settings
    special = {vocabulary[token.content] for token in settings.all_special_tokens}
    return special | set(settings.added_tokens)


def _ids_of_languages(tokenizer: Tokenizer, vocabulary: dict[str, int], codes: Sequence[str]) -> set[int]:
    unknown = [code for code in codes if code not in LANGUAGES]
    if unknown:
        raise InvalidInputError(f"language {unknown[0]!r} is not known; expected codes among {', '.join(LANGUAGES)}")
    rules = {code: rule_for(code) for code in codes}
    fits = [_spells([code for code in codes if rules[code] == ALPHABET])]
    used: set[int] = set()
    for code in (code for code in codes if rules[code] == WORDS):
        written = _written(LANGUAGES[code].scripts)
        words = {int(index) for texts in texts_of(code) for index in np.unique(tokenizer.batch(texts).input_ids)}
        used |= {index for token, index in vocabulary.items() if index in words and written(token)}
        fits.append(_spelled_as_no_list_has_it(code))
    return used | {index for token, index in vocabulary.items() if any(fit(token) for fit in fits)}


def _spelled_as_no_list_has_it(code: str) -> Callable[[str], bool]:
    """Return a predicate for a language's tokens that word lists lack.

    The lists fold ß to ss and upper to lower case, and have neither numbers nor punctuation.
    """
    spells, shared = _spells([code]), _written(())
    folded = {letter for letter in LANGUAGES[code].letters if letter.casefold() != letter}

    def fits(token: str) -> bool:
        return shared(token) or (bool(folded & set(token) or _INNER_CAPITAL.search(token)) and spells(token))

    return fits


def _spells(codes: Sequence[str]) -> Callable[[str], bool]:
    """Return a predicate for tokens in the alphabet of one of the languages."""
    languages = [LANGUAGES[code] for code in codes]
    letters = set(string.ascii_lowercase).union(*(language.letters for language in languages))
    written = _written({script for language in languages for script in language.scripts})
    latin = regex.compile(_script(_LATIN))

    def fits(token: str) -> bool:
        return written(token) and all(set(char.lower()) & letters for char in latin.findall(token))

    return fits


def _written(scripts: Iterable[str]) -> Callable[[str], bool]:
    """Return a predicate for tokens of only these scripts and characters that belong to no language."""
    allowed = regex.compile(f"[{''.join(map(_script, sorted(scripts)))}{''.join(_SHARED)}]+")
    return lambda token: allowed.fullmatch(token) is not None


def _script(name: str) -> str:
    return rf"\p{{Script={name}}}"


def _scripts_of(tokens: Iterable[str]) -> set[str]:
    characters = "".join(set("".join(tokens)))
    known = {script for language in LANGUAGES.values() for script in language.scripts}
    return {script for script in known if regex.search(_script(script), characters)}


def _ids_of_text(tokenizer: Tokenizer, path: Path) -> set[int]:
    ids: set[int] = set()
    for line in _lines(path):
        ids.update(tokenizer(line).input_ids)
    if not ids:
        raise InvalidInputError(f"{path} is empty; expected text in the languages to keep")
    return ids


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from (line.strip() for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidInputError(f"the text to keep tokens of, {path}, cannot be read: {reason}") from error


_MODEL, _VOCABULARY, _CONFIG, _, _ADDED = TOKENIZER_FILES

# The config's keys with a token's id.
_ID_KEYS = tuple(f"{name}_token_id" for name in ("bos", "eos", "cls", "sep", "pad", "unk", "mask"))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The result of pruning: the number of kept tokens, and each language's rule, see :func:`rule_for`.

    ``bytes_after`` is the size of the written graph and weights, ``bytes_before`` their size with all tokens.
    """

    kept: int
    of: int
    rules: Mapping[str, str]
    bytes_before: int | None = None
    bytes_after: int | None = None

    def __str__(self) -> str:
        parts = [f"kept {self.kept} of {self.of} tokens"]
        by_words = [code for code, rule in self.rules.items() if rule == WORDS]
        by_alphabet = [code for code, rule in self.rules.items() if rule == ALPHABET]
        if by_words:
            parts.append(f"{', '.join(by_words)} by the words of wordfreq")
        if by_alphabet:
            reasons = dict.fromkeys(filter(None, map(why_alphabet, by_alphabet)))
            parts.append(f"{', '.join(by_alphabet)} by the alphabet{''.join(f' ({reason})' for reason in reasons)}")
        return "; ".join(parts)

    def in_files(self, size: int, bytes_of_row: int) -> Vocabulary:
        """Return a copy with the sizes for an artifact of ``size`` bytes that stores a token in ``bytes_of_row``."""
        before = size + (self.of - self.kept) * bytes_of_row
        return dataclasses.replace(self, bytes_before=before, bytes_after=size)


def prune(checkpoint: Checkpoint, keep: Keep, folder: Path) -> tuple[Checkpoint, Vocabulary]:
    """Return the checkpoint with only the tokens of ``keep``, and write its tokenizer's files to ``folder``.

    Edits the model in place: the embedding keeps the rows of these tokens, and nothing else changes, so its outputs for
    text of these tokens stay the same.

    Raises:
        InvalidInputError: See :func:`select`.
        CheckpointError: There is no tokenizer, it does not fit the model, its files contradict each other, or the
            config has a list of ids instead of a single one.
    """
    source = checkpoint.tokenizer_dir
    if source is None:
        raise CheckpointError(f"{checkpoint.source} has no tokenizer; without one, the tokens to keep are unknown")
    _require_single_ids(checkpoint)
    if not (source / _MODEL).is_file():
        raise CheckpointError(
            f"{source} has no {_MODEL}, which --languages and --keep-tokens make smaller: put in the one that its "
            "tokenizer.json was made from"
        )
    tokenizer, size = Tokenizer.from_dir(source, verify=False), checkpoint.config.vocab_size
    tokens = tokenizer.get_vocab()
    wanted = select(tokenizer, keep) | {checkpoint.config.pad_token_id}
    wanted |= {tokens[token] for token in pieces_at_the_ends(source) if token in tokens}
    kept = sorted(wanted)
    if kept[-1] >= size or checkpoint.config.pad_token_id not in tokens.values():
        raise CheckpointError(f"{source} has a tokenizer of {len(tokenizer)} tokens, and its model has {size}")
    write_part(source, kept, folder)
    vocabulary = Vocabulary(len(kept), size, {code: rule_for(code) for code in keep.languages})
    return dataclasses.replace(_with_rows(checkpoint, kept), tokenizer_dir=folder), vocabulary


def prune_like(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Return the checkpoint with the vocabulary of the tokenizer in ``folder``, the folder of its artifact.

    Raises:
        CheckpointError: It has no tokenizer, another one, or a config that :func:`prune` refuses.
    """
    if checkpoint.tokenizer_dir is None:
        raise CheckpointError(f"{checkpoint.source} has no tokenizer, and the artifact holds a part of its vocabulary")
    _require_single_ids(checkpoint)
    kept = original_ids(checkpoint.tokenizer_dir, folder)
    if max(kept) >= checkpoint.config.vocab_size:
        raise CheckpointError(f"{checkpoint.source} has fewer tokens than the vocabulary that was exported")
    return dataclasses.replace(_with_rows(checkpoint, kept), tokenizer_dir=folder)


def _with_rows(checkpoint: Checkpoint, kept: Sequence[int]) -> Checkpoint:
    model, config = checkpoint.model, checkpoint.config
    new_ids = {old: new for new, old in enumerate(kept)}
    table = model.get_input_embeddings()
    rows = table.weight.detach()[torch.tensor(kept)]
    config.vocab_size, config.pad_token_id = len(kept), new_ids[config.pad_token_id]
    smaller = nn.Embedding(rows.shape[0], rows.shape[1], padding_idx=config.pad_token_id)
    smaller.weight = nn.Parameter(rows)
    model.set_input_embeddings(smaller)
    content: dict[str, Any] = json.loads(checkpoint.config_text)
    content |= {key: new_ids.get(content[key]) for key in _ID_KEYS if key in content}
    content |= {"vocab_size": config.vocab_size, "pad_token_id": config.pad_token_id}
    return dataclasses.replace(checkpoint, config_text=as_json(content))


def _require_single_ids(checkpoint: Checkpoint) -> None:
    content: dict[str, Any] = json.loads(checkpoint.config_text)
    for key in _ID_KEYS:
        if not isinstance(content.get(key), int | None):
            raise CheckpointError(f"{CONFIG_FILE} of {checkpoint.source} has {key} = {content[key]}; expected one id")


def write_part(source: Path, kept: Sequence[int], target: Path) -> None:
    """Write the files of the tokenizer in ``source`` to ``target`` so that id ``kept[i]`` (sorted) becomes ``i``.

    Raises:
        CheckpointError: The new files would not give the kept tokens these ids: the old ones contradict each other.
    """
    tokenizer = Tokenizer.from_dir(source, verify=False)
    new_ids = {old: new for new, old in enumerate(kept)}
    for file in tokenizer_files(source):
        (target / file.name).write_bytes(file.read_bytes())
    tokenizer.save_vocabulary(target)
    if tokenizer.settings.family == "xlm-roberta":
        _keep_pieces(tokenizer, kept, target)
    else:
        lines = (target / _VOCABULARY).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        content = "".join(f"{line}\n" for index, line in enumerate(lines) if index in new_ids)
        (target / _VOCABULARY).write_text(content, encoding="utf-8", newline="\n")
        lost = {token for token, index in tokenizer.get_vocab().items() if index not in new_ids}
        _drop_pieces(target / _MODEL, lost)
    for name in (_CONFIG, _ADDED):
        try:
            _renumber(target / name, new_ids)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{source / name} numbers added tokens differently from the tokenizer's other files: save it again"
            ) from error
    if original_ids(source, target) != list(kept):
        raise CheckpointError(f"{source} has a tokenizer whose ids have gaps that a part of its vocabulary cannot keep")


def original_ids(source: Path, part: Path) -> list[int]:
    """Return the ids in ``source``'s vocabulary of the tokens in ``part``'s vocabulary, in the order of the latter.

    Raises:
        CheckpointError: ``part`` has a token that ``source`` lacks.
    """
    whole, tokens = Tokenizer.from_dir(source, verify=False).get_vocab(), Tokenizer.from_dir(part).get_vocab()
    found = {index: whole.get(token) for token, index in tokens.items()}
    ids = [index for new in range(len(found)) if (index := found.get(new)) is not None]
    if len(ids) != len(found):
        raise CheckpointError(f"the vocabulary in {part} is not a part of the one in {source}")
    return ids


def pieces_at_the_ends(source: Path) -> set[str]:
    """Return the tokens of the most and the least likely piece.

    sentencepiece derives the score of unknown characters from them; without them it would cut text differently.
    """
    pieces = _normal_pieces(parse((source / _MODEL).read_bytes()))
    ends = (min(pieces, key=lambda piece: piece.score), max(pieces, key=lambda piece: piece.score))
    if read_settings(source).family == "xlm-roberta":
        return {piece.piece for piece in ends}
    return {span.token for piece in ends for span in split_piece(piece.piece)}


def _normal_pieces(model: Any) -> list[Any]:
    return [piece for piece in model.pieces if piece.type == piece.NORMAL]


def _keep_pieces(tokenizer: Tokenizer, kept: Sequence[int], target: Path) -> None:
    """XLM-R's ids are those of the pieces, between the special tokens at both ends."""
    first, mask = max(tokenizer.unk_token_id, tokenizer.sep_token_id), tokenizer.mask_token_id
    names = tokenizer.convert_ids_to_tokens([index for index in kept if first < index < mask])
    model = target / _MODEL
    model.write_bytes(with_pieces(model.read_bytes(), list(names)))
    content = {"tokenizer_class": "XLMRobertaTokenizer", **read_object(target / _CONFIG)}
    (target / _CONFIG).write_text(as_json(content), encoding="utf-8")


def _drop_pieces(path: Path, lost: set[str]) -> None:
    model = parse(path.read_bytes())
    kept = [
        piece
        for piece in model.pieces
        if piece.type != piece.NORMAL or not any(span.token in lost for span in split_piece(piece.piece))
    ]
    del model.pieces[:]
    model.pieces.extend(kept)
    path.write_bytes(model.SerializeToString())


def _renumber(path: Path, new_ids: dict[int, int]) -> None:
    """Renumber the added tokens: ``added_tokens_decoder`` has ids as keys, ``added_tokens.json`` as values."""
    if not path.is_file():
        return
    content = read_object(path)
    if path.name == _ADDED:
        content = {token: new_ids[index] for token, index in content.items()}
    elif "added_tokens_decoder" in content:
        decoder = content["added_tokens_decoder"]
        content["added_tokens_decoder"] = {str(new_ids[int(index)]): token for index, token in decoder.items()}
    path.write_text(as_json(content), encoding="utf-8")
