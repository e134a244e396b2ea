"""The tokenizer's settings and special tokens, and the files with them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from erniem_rt.errors import ArtifactError
from erniem_rt.files import check_hash, check_size, refuse_pointer
from erniem_rt.manifest import HEADS, Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from erniem_rt.files import FileRecord

Side = Literal["left", "right"]
Family = Literal["ernie-m", "xlm-roberta"]

MODEL_FILE = "sentencepiece.bpe.model"
VOCABULARY_FILE = "vocab.txt"
# An exported folder's second copy of the model, its pieces sorted as sentencepiece sorts them at each load: it cuts
# every text alike and loads in three quarters of the time. Only the pieces' own ids differ, so it takes a vocab.txt.
SORTED_FILE = "sentencepiece.sorted.model"
FAST_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
MODEL_CONFIG_FILE = "config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
SETTINGS_FILES = (CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE)


@dataclass(frozen=True)
class AddedToken:
    """A token outside the sentencepiece vocabulary, with the fields of transformers' ``AddedToken``.

    ``lstrip`` and ``rstrip`` remove whitespace on that side, ``single_word`` prevents a match inside a word,
    ``normalized`` allows lower-casing, ``special`` marks control tokens.
    """

    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    special: bool = True


# transformers' order, in which tokens missing in the vocabulary get their ids.
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ADDITIONAL = "additional_special_tokens"
_DEFAULTS = {
    "unk_token": AddedToken("[UNK]"),
    "sep_token": AddedToken("[SEP]"),
    "pad_token": AddedToken("[PAD]"),
    "cls_token": AddedToken("[CLS]"),
    "mask_token": AddedToken("[MASK]"),
}
_DEFAULTS_OF: Mapping[Family, Mapping[str, AddedToken]] = {
    "ernie-m": _DEFAULTS,
    "xlm-roberta": {
        "bos_token": AddedToken("<s>"),
        "eos_token": AddedToken("</s>"),
        "unk_token": AddedToken("<unk>"),
        "sep_token": AddedToken("</s>"),
        "pad_token": AddedToken("<pad>"),
        "cls_token": AddedToken("<s>"),
        "mask_token": AddedToken("<mask>", lstrip=True),
    },
}
_FLAGS = ("do_lower_case", "split_special_tokens", "clean_up_tokenization_spaces", "drop_lone_marks")
_SIDES = ("padding_side", "truncation_side")
_CLASSES: Mapping[str, Family] = {
    "ErnieMTokenizer": "ernie-m",
    "ErnieMTokenizerFast": "ernie-m",
    "XLMRobertaTokenizer": "xlm-roberta",
    "XLMRobertaTokenizerFast": "xlm-roberta",
}
# Generic classes: the model's type decides the family.
_GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
_CLASS_OF: Mapping[Family, str] = {"ernie-m": "ErnieMTokenizer", "xlm-roberta": "XLMRobertaTokenizer"}
_MODEL_TYPES: Mapping[object, Family] = {"ernie_m": "ernie-m", "xlm-roberta": "xlm-roberta"}
_NO_LIMIT = 10**20  # transformers writes 1e30 for "no limit", and takes any value above this as that


@dataclass(frozen=True)
class TokenizerSettings:
    """Everything that changes ids or row lengths, with the reference's defaults.

    Attributes:
        special_tokens: The named special tokens (``cls_token``, ``sep_token``, ...).
        additional_special_tokens: Further special tokens. Like the named ones, they get ids at the end of the
            vocabulary if it lacks them.
        added_tokens: The added tokens of a saved tokenizer, by id.
        do_lower_case: Lower-case everything but special tokens.
        split_special_tokens: Treat special tokens inside text as ordinary text.
        model_max_length: Longest row in tokens; None if the checkpoint has no limit.
        padding_side: The side on which rows are padded.
        truncation_side: The end at which texts are cut.
        clean_up_tokenization_spaces: Let ``decode`` remove the spaces before English punctuation.
        drop_lone_marks: Drop word-start marks ``▁`` without text, as PaddleNLP's tokenizer does; the reference keeps
            some.
        family: ``"ernie-m"`` cuts sentencepiece's pieces further and takes ids from ``vocab.txt``. ``"xlm-roberta"``
            keeps the pieces and has fairseq's ids.
    """

    special_tokens: Mapping[str, AddedToken] = field(default_factory=lambda: dict(_DEFAULTS))
    additional_special_tokens: tuple[AddedToken, ...] = ()
    added_tokens: Mapping[int, AddedToken] = field(default_factory=dict)
    do_lower_case: bool = False
    split_special_tokens: bool = False
    model_max_length: int | None = None
    padding_side: Side = "right"
    truncation_side: Side = "right"
    clean_up_tokenization_spaces: bool = False
    drop_lone_marks: bool = False
    family: Family = "ernie-m"

    def __post_init__(self) -> None:
        if self.special_tokens == _DEFAULTS and self.family != "ernie-m":
            object.__setattr__(self, "special_tokens", dict(_DEFAULTS_OF[self.family]))
        missing = [name for name in _DEFAULTS if name not in self.special_tokens]
        if missing:
            raise ArtifactError(f"A tokenizer needs {', '.join(_DEFAULTS)}; {', '.join(missing)} is not set.")
        for name in _SIDES:
            if getattr(self, name) not in ("left", "right"):
                raise ArtifactError(f"{name} must be 'left' or 'right', not {getattr(self, name)!r}.")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ArtifactError(f"{name} must be true or false, not {getattr(self, name)!r}.")

    @property
    def all_special_tokens(self) -> tuple[AddedToken, ...]:
        """Named and additional special tokens without duplicates, in the order of new ids."""
        named = [self.special_tokens[name] for name in _SPECIAL_NAMES if name in self.special_tokens]
        unique: dict[str, AddedToken] = {}
        for token in (*named, *self.additional_special_tokens):
            unique.setdefault(token.content, token)
        return tuple(unique.values())


def read_settings(folder: Path) -> TokenizerSettings:
    """Read ``tokenizer_config.json``, ``special_tokens_map.json`` and ``added_tokens.json``, each optional.

    As in transformers, the latter two count only where the first has no ``added_tokens_decoder``.

    Raises:
        ArtifactError: A file is not JSON or has values of the wrong type, or the tokenizer is of another class; the
            message names the file.
    """
    config, special_tokens, added_ids = (
        _read_object(folder / name) for name in (CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE)
    )
    family = _family(folder, config)
    try:
        if "added_tokens_decoder" in config:
            added = {int(i): _token(entry) for i, entry in config["added_tokens_decoder"].items()}
        elif family == "xlm-roberta" and not (folder / MODEL_FILE).exists() and (folder / FAST_FILE).exists():
            listed = _read_object(folder / FAST_FILE).get("added_tokens", [])
            added = {int(entry["id"]): _token(entry) for entry in listed}
        else:
            config = _with_special_tokens_map(config, special_tokens)
            added = _legacy_added_tokens(added_ids, config)
        return _settings(config, added, family)
    except (ArtifactError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise ArtifactError(f"{folder / CONFIG_FILE}, or a token file beside it, cannot be used: {error}") from error


def _family(folder: Path, config: Mapping[str, Any]) -> Family:
    """Return the tokenizer's family, from this file or, as in transformers, from ``config.json``.

    Raises:
        ArtifactError: The class is another one, or not the one of the model beside it.
    """
    model = _read_object(folder / MODEL_CONFIG_FILE)
    of_model = _MODEL_TYPES.get(str(model.get("model_type")))
    if of_model is None and (folder / VOCABULARY_FILE).exists():  # XLM-R has no vocab.txt
        of_model = "ernie-m"
    file, name = CONFIG_FILE, config.get("tokenizer_class")
    if name is None:
        file, name = MODEL_CONFIG_FILE, model.get("tokenizer_class")
    if name is None or (name in _GENERIC_CLASSES and of_model == "xlm-roberta"):
        return of_model or "ernie-m"
    family = _CLASSES.get(str(name))
    if family is None or of_model not in (family, None):
        expected = _CLASS_OF[of_model or "ernie-m"]
        whose = {"ernie-m": "an ErnieM", "xlm-roberta": "an XLM-R"}[of_model or "ernie-m"]
        raise ArtifactError(
            f"{folder / file} says tokenizer_class = {name!r}, expected {expected!r}, which gives other ids: put "
            f"in {whose} checkpoint's tokenizer files, or, if these are, set tokenizer_class to {expected!r}."
        )
    return family


def _settings(config: Mapping[str, Any], added: Mapping[int, AddedToken], family: Family) -> TokenizerSettings:
    if config.get("sp_model_kwargs"):
        raise ArtifactError(f"sp_model_kwargs={config['sp_model_kwargs']!r} is not supported; remove it.")
    by_content = {token.content: token for token in added.values()}
    defaults = _DEFAULTS_OF[family]
    special = dict(defaults)
    for name in _SPECIAL_NAMES:
        if name in config and config[name] is None:
            special.pop(name, None)
        elif name in config:
            token = _token(config[name])
            if isinstance(config[name], str) and name in defaults:  # the class's flags decide where it matches
                token = replace(defaults[name], content=token.content)
            special[name] = by_content.get(token.content, token)
    additional = tuple(
        by_content.get(entry, AddedToken(entry)) if isinstance(entry, str) else _token(entry)
        for entry in config.get(_ADDITIONAL) or ()
    )
    limit = config.get("model_max_length", config.get("max_len"))
    if not isinstance(limit, (int, float, type(None))):
        raise ArtifactError(f"model_max_length must be a number, not {limit!r}.")
    plain = {name: config[name] for name in (*_FLAGS, *_SIDES) if config.get(name) is not None}
    return TokenizerSettings(
        special_tokens=special,
        additional_special_tokens=additional,
        added_tokens=added,
        model_max_length=None if limit is None or limit > _NO_LIMIT else int(limit),
        family=family,
        **plain,
    )


def _with_special_tokens_map(config: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**config, **special}
    if _ADDITIONAL in special:
        merged[_ADDITIONAL] = [*(config.get(_ADDITIONAL) or ()), *special[_ADDITIONAL]]
    return merged


def _legacy_added_tokens(ids: Mapping[str, int], config: Mapping[str, Any]) -> dict[int, AddedToken]:
    entries = [config[name] for name in _SPECIAL_NAMES if config.get(name)] + list(config.get(_ADDITIONAL) or ())
    special = {_token(entry).content for entry in entries}
    return {
        int(i): AddedToken(content, normalized=content not in special, special=content in special)
        for content, i in ids.items()
    }


def _token(entry: str | dict[str, Any]) -> AddedToken:
    if isinstance(entry, str):
        return AddedToken(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise ArtifactError(f"expected a token as text or as an object with 'content', got {entry!r}.")
    known = {option.name: entry[option.name] for option in fields(AddedToken) if option.name in entry}
    return AddedToken(**{"normalized": True, "special": False, **known})


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse_pointer(path)
        raise ArtifactError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} should hold a JSON object, not a {type(content).__name__}.")
    return content


def exported_files(folder: Path) -> dict[str, FileRecord] | None:
    """Return the records of all files that manifests in ``folder`` list; None in a checkpoint's folder, without any."""
    found = []
    for head in HEADS:
        with contextlib.suppress(ArtifactError):  # missing, or not a manifest
            found.append(Manifest.load(folder / f"{head}.json").files)
    return {name: record for files in found for name, record in files.items()} if found else None


def check_exported(folder: Path, listed: Mapping[str, FileRecord]) -> None:
    """Verify the tokenizer's files in ``folder``; :class:`ArtifactError` if one is missing, truncated or edited."""
    names = [name for name in (MODEL_FILE, SORTED_FILE, VOCABULARY_FILE, *SETTINGS_FILES) if name in listed]
    for name in names:
        check_size(folder / name, listed[name].size)
    for name in names:
        check_hash(folder / name, listed[name])
