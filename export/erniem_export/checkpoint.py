"""Loads a checkpoint, or a seeded random model: the model in float32 and its accompanying files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from erniem_export.adapters import Adapter, find_adapter, merge
from erniem_export.config_file import (
    HEAD_OF_CLASS,
    as_paddle_reads,
    config_file,
    name_labels,
    read_config,
    with_values,
    without_paths,
)
from erniem_export.configuration import ErnieMConfig
from erniem_export.errors import CheckpointError, some
from erniem_export.heads import CLASSES, LABELLED, make_model
from erniem_export.modeling import POSITION_OFFSET, ErnieMPreTrainedModel
from erniem_export.paddle import is_paddle, names_as_pytorch, shape_as_pytorch, tensor_as_pytorch
from erniem_export.sentence_folder import SentenceFolder, read_sentence_folder, unread_modules
from erniem_export.sources import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    SENTENCE_FILE,
    TASK_SET_FILE,
    TOKENIZER_FILES,
    XLM_ROBERTA,
    check_layout,
    find_folder,
    find_tokenizer,
    listed_by,
    paddle_files,
    pickled_files,
    tokenizer_files,
    weight_files,
)
from erniem_export.weights import (
    Fit,
    Shapes,
    check_finite,
    check_floats,
    check_weights,
    from_uie_pytorch,
    is_uie_pytorch,
    read_shapes,
    read_tensors,
    wrapper_of,
    wrapper_of_all,
)
from erniem_export.xlm_roberta import (
    POSITIONS,
    ROBERTA,
    TOKEN_TYPES,
    XLM_ROBERTA_CLASSES,
    XLM_ROBERTA_HEADS,
    Original,
    bare,
    head_of_weights,
    in_own_names,
    names_as_ernie_m,
    unused,
    with_token_type,
)
from erniem_rt.manifest import Defaults
from erniem_rt.tokenizer.settings import read_settings

_RANDOM = "random:"
# Heads with a classifier.
_CLASSIFYING = ("cls", "ner", "mc")
# In a row of one text: [CLS] and [SEP].
_SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class _Weights:
    """Weight files and the shapes of their tensors, by the names there; ``wrapper`` is the prefix of the names."""

    files: list[Path]
    found: Shapes
    is_paddle: bool
    wrapper: str = ""
    notes: tuple[str, ...] = ()
    is_uie_pytorch: bool = False
    is_xlm_roberta: bool = False

    def names(self, head: str) -> dict[str, str]:
        """Map PyTorch's names of the tensors to the names in the files."""
        if self.is_paddle:
            own = {name.removeprefix(self.wrapper): name for name in self.found}
            return {ours: own[theirs] for ours, theirs in names_as_pytorch(own, head).items()}
        if self.is_uie_pytorch:
            return {from_uie_pytorch(name): name for name in self.found}
        names = {name.removeprefix(self.wrapper): name for name in self.found}
        if self.is_xlm_roberta:
            return {ours: names[theirs] for ours, theirs in names_as_ernie_m(names, head).items()}
        return names

    def tables(self) -> dict[str, str]:
        """Return the names of XLM-R's tables of positions and token types, whose sum is ErnieM's table of positions."""
        if not self.is_xlm_roberta:
            return {}
        own = {bare(name.removeprefix(self.wrapper)): name for name in self.found}
        return {table: own[table] for table in (POSITIONS, TOKEN_TYPES) if table in own}

    def shapes(self, names: Mapping[str, str]) -> Shapes:
        """Map PyTorch's names to PyTorch's shapes."""
        if not self.is_paddle:
            return {name: self.found[given] for name, given in names.items()}
        return {name: shape_as_pytorch(name, self.found[given]) for name, given in names.items()}


@dataclass(frozen=True)
class _Model:
    """A model that was read from a folder."""

    model: ErnieMPreTrainedModel
    head: str
    config_text: str
    like_paddle: bool
    notes: tuple[str, ...]
    original: Original | None


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    ``source`` names it without this machine's paths; ``tokenizer_dir`` is the folder of the tokenizer's files, or None;
    ``config_text`` is the content of ``config.json``; ``task_set`` is the file of labelled examples beside the weights,
    or None, and ``calibration`` that of texts for int8; ``defaults`` are for the artifact's pipelines; with
    ``lower_case`` its tokenizer lower-cases texts; ``paddle``: the weights are from Paddle or from software that
    computes as Paddle does; ``adapter`` names the type and the base of a merged adapter; ``original`` is transformers'
    own model of an XLM-R checkpoint, for which ``model`` is the equal ErnieM model; ``notes`` tell the user how the
    files were read, if that is not obvious.
    """

    model: ErnieMPreTrainedModel
    head: str
    source: str
    config_text: str
    tokenizer_dir: Path | None
    task_set: Path | None = None
    calibration: Path | None = None
    defaults: Defaults = field(default_factory=Defaults)
    lower_case: bool = False
    paddle: bool = False
    adapter: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    original: Original | None = None

    @property
    def config(self) -> ErnieMConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def is_random(self) -> bool:
        """Whether it is a random model for trials, without a tokenizer."""
        return self.source.startswith(_RANDOM)

    @property
    def architecture(self) -> str:
        """The class's name."""
        return type(self.model).__name__ if self.original is None else self.original.name

    def identity(self) -> str:
        """SHA-256 over the names, shapes and float32 values of all parameters: the same for any file format."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


def load_checkpoint(
    model: str, head: str = "auto", *, base: str | None = None, tokenizer: str | None = None
) -> Checkpoint:
    """Load a local folder, a hub id, or ``random:tiny``, ``random:base``, ``random:large``.

    Args:
        model: The folder, hub id or random model. An adapter is merged into its base.
        head: One of the six heads, or ``auto`` to read it from the config or the weights.
        base: The folder or hub id of an adapter's base; None for the one that the adapter names.
        tokenizer: The folder or hub id of a tokenizer; None for the checkpoint's own.

    Raises:
        CheckpointError: It is missing, damaged, not ErnieM, of another head, or contradicts its config.
    """
    for flag, given in (("--model", model), ("--base", base), ("--tokenizer", tokenizer)):
        if given is not None and not given.strip():
            raise CheckpointError(f"{flag} is empty: expected a folder or a hub id")
    try:
        own = None if tokenizer is None else find_tokenizer(tokenizer)
        if model.startswith(_RANDOM):
            if base is not None:
                raise CheckpointError(f"--base is for adapters, and {model} is not one: leave it out")
            return _random(model.removeprefix(_RANDOM), "base" if head == "auto" else head, own)
        return _opened(model, head, base, own)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise CheckpointError(f"{model} cannot be read: {error.strerror or error}{where}") from error


def _opened(model: str, head: str, base: str | None, tokenizer: Path | None) -> Checkpoint:
    root = find_folder(model)
    sentences = read_sentence_folder(root)
    folder = root if sentences is None else sentences.model
    check_layout(folder)
    adapter = find_adapter(folder, base)
    loaded = _read_model(folder, head) if adapter is None else _merged(adapter, head)
    head = loaded.head
    places = [folder] if adapter is None else [folder, adapter.base]
    tokenizers = [place for place in places if tokenizer_files(place)]
    words = tokenizer or next(iter(tokenizers), None)
    defaults, about_defaults = _defaults(head, loaded.model.config, folder, sentences, words)
    return Checkpoint(
        model=loaded.model,
        head=head,
        source=root.resolve().name if Path(model).expanduser().is_dir() else model,
        config_text=loaded.config_text,
        tokenizer_dir=words,
        task_set=_beside(TASK_SET_FILE, folder),
        calibration=_beside(CALIBRATION_FILE, *places),
        defaults=defaults,
        paddle=loaded.like_paddle,
        lower_case=head == "base" and sentences is not None and sentences.lower_case(),
        adapter={} if adapter is None else {"adapter": adapter.kind, "base": adapter.base_name},
        notes=(*loaded.notes, *_of_tokenizers(tokenizer, tokenizers), *about_defaults),
        original=loaded.original,
    )


def _read_model(folder: Path, head: str, adapter: Adapter | None = None) -> _Model:
    """Read the model in a folder; if it is the base of ``adapter``, with the adapter's head."""
    config_text, config = read_config(folder if adapter is None else adapter.config_folder)
    is_xlm_roberta = json.loads(config_text).get("model_type") == XLM_ROBERTA
    if adapter is not None and is_xlm_roberta:
        raise CheckpointError(
            "it is an XLM-R, and adapters are merged into ErnieM alone: merge this one with peft's merge_and_unload(), "
            "save the result with save_pretrained and export that folder"
        )
    about_adapter = about_head = None
    weights = _find_weights(folder, is_xlm_roberta=is_xlm_roberta)
    if weights.is_paddle:
        config_text, config = as_paddle_reads(config_file(folder), config_text)
    file = config_file(folder if adapter is None else adapter.config_folder).name
    if adapter is None:
        asked, head = head, _resolve_head(head, config, weights)
        if asked == "auto" and weights.is_paddle and not config.architectures:
            key = "architectures" if file == CONFIG_FILE else "init_class"
            about_head = f"{file} has no {key}: this is head {head} by the names of the weights"
    else:
        head = _head_of_adapter(adapter, config, weights, head)
        adapter.check_width(config.hidden_size)
        values, about_adapter = adapter.values(head, config, json.loads(config_text))
        config_text, config = with_values(adapter.config_folder / CONFIG_FILE, config_text, values)
    said = json.loads(config_text)
    names = weights.names(head)
    shapes = weights.shapes(names) | (adapter.shapes if adapter is not None else {})
    about_labels = name_labels(config, said) if head in LABELLED else None
    fit = _fit(weights, head, config, shapes, said, file)
    model = _load(weights, make_model(head, config, pooler=fit.pooler), names, fit.names, adapter)
    notes = (*weights.notes, *_notes(head, fit, weights), *filter(None, (about_head, about_labels, about_adapter)))
    original = _original(weights, head, config_text, model)
    return _Model(model, head, config_text, weights.is_paddle or weights.is_uie_pytorch, notes, original)


def _merged(adapter: Adapter, head: str) -> _Model:
    """Merge an adapter into its base."""
    with adapter.of_base():
        found = _read_model(adapter.base, head, adapter)
    model, warned = merge(found.model, found.head, adapter)
    notes = (
        f"an adapter of type {adapter.kind}: merged into {adapter.base_name}",
        *adapter.notes,
        *found.notes,
        *warned,
    )
    if head == "base" != found.head:
        encoder = make_model(head, model.config, pooler=model.base_model.pooler is not None)
        encoder.load_state_dict(model.base_model.state_dict(), assign=True)
        return replace(found, model=encoder.eval(), head=head, notes=notes)
    return replace(found, model=model, notes=notes)


def _head_of_adapter(adapter: Adapter, config: ErnieMConfig, weights: _Weights, head: str) -> str:
    """Return the head that an adapter was trained with; ``head`` is the requested one."""
    own = adapter.head or adapter.head_of_whole() or _resolve_head(head, config, weights)
    if adapter.brings("classifier") and own not in _CLASSIFYING:
        if head == "base":  # what is left out decides nothing
            has_pooler = any("pooler." in name for name in (*adapter.whole, *weights.found))
            return "cls" if has_pooler else "ner"
        raise CheckpointError("neither the adapter nor its base tells which head: pass --head")
    if head not in ("auto", "base", own):
        raise CheckpointError(f"--head {head} contradicts the adapter, which was trained with head {own}")
    return own


def _of_tokenizers(given: Path | None, own: list[Path]) -> list[str]:
    """Return a note if the given tokenizer differs from the checkpoint's own."""
    if given is None or not own or _same_files(given, own[0]):
        return []
    return [
        f"the tokenizer is that of --tokenizer ({given.resolve().name}), and not the checkpoint's own, which differs"
    ]


def _same_files(one: Path, other: Path) -> bool:
    files = [tokenizer_files(folder) for folder in (one, other)]
    return [file.name for file in files[0]] == [file.name for file in files[1]] and all(
        ours.read_bytes() == theirs.read_bytes() for ours, theirs in zip(*files, strict=True)
    )


def _fit(weights: _Weights, head: str, config: ErnieMConfig, shapes: Shapes, said: Mapping[str, Any], file: str) -> Fit:
    try:
        return check_weights(head, config, shapes, said, file)
    except CheckpointError as error:
        if _fits_transposed(weights, head, config, shapes, said):
            of, one = ("PyTorch", "Paddle") if weights.is_paddle else ("Paddle", "PyTorch")
            raise CheckpointError(
                f"the weights look transposed: they have {of}'s layout in {one}'s file ({weights.files[0]}); transpose "
                "the 2-D weights except embeddings, or save the model again with the library that it was trained with"
            ) from error
        if weights.is_paddle and "intermediate_size" in str(error):
            raise CheckpointError(
                f"the feed-forward layers of PaddleNLP's ErnieM have 4 x hidden_size = {config.intermediate_size} "
                f"units, whatever {file} says, and those of the weights another number: they are not PaddleNLP's"
            ) from error
        if not weights.is_xlm_roberta:
            raise
        raise CheckpointError(in_own_names(str(error), head)) from error


def _fits_transposed(
    weights: _Weights, head: str, config: ErnieMConfig, shapes: Shapes, said: Mapping[str, Any]
) -> bool:
    """Return whether the shapes fit in the other layout, in which the weights of linear layers are transposed."""
    try:
        check_weights(head, config, {name: shape_as_pytorch(name, shape) for name, shape in shapes.items()}, said)
    except CheckpointError:
        return False
    return not weights.is_xlm_roberta


def stored_dtypes(model: str, checkpoint: Checkpoint) -> dict[str, torch.dtype]:
    """Return each parameter's type in the files of a loaded checkpoint, by its name in the model."""
    if checkpoint.adapter:  # merged in float32
        return dict.fromkeys(checkpoint.model.state_dict(), torch.float32)
    root = find_folder(model)
    sentences = read_sentence_folder(root)
    weights = _find_weights(
        root if sentences is None else sentences.model, is_xlm_roberta=checkpoint.original is not None
    )
    given = weights.names(checkpoint.head)
    said = json.loads(checkpoint.config_text)
    names = check_weights(checkpoint.head, checkpoint.config, weights.shapes(given), said).names
    tensors = read_tensors(weights.files, set(given.values()))
    found = {name: tensors[given[stored]].dtype for name, stored in names.items()}
    return {name: torch.bfloat16 if dtype == torch.uint16 else dtype for name, dtype in found.items()}


def _find_weights(folder: Path, *, is_xlm_roberta: bool = False) -> _Weights:
    """Return the weights of a checkpoint, PyTorch's if there are also Paddle's."""
    files = weight_files(folder)
    found = read_shapes(files)
    if is_xlm_roberta:
        wrapper = wrapper_of(found, ROBERTA, "encoder.layer.")
        weights = _Weights(files, found, False, wrapper, _unwrapped(wrapper), is_xlm_roberta=True)
        if missing := {POSITIONS, TOKEN_TYPES} - weights.tables().keys():
            raise CheckpointError(f"the weights lack {some(missing)}: these are not XLM-R's, which config.json says")
        return weights
    paddle, beside = is_paddle(files, found), [file.name for file in paddle_files(folder)]
    if paddle and files[0].name not in beside and (pickled := pickled_files(folder)):
        beside = [file.name for file in files]
        files, found, paddle = pickled, read_shapes(pickled), False
    if paddle:
        wrapper = wrapper_of_all(found)
        return _Weights(files, found, True, wrapper, (*_unlisted(files, found), *_unwrapped(wrapper)))
    notes = [f"the folder has Paddle's weights too ({some(beside)}): PyTorch's are taken"] if beside else []
    notes += _unlisted(files, found)
    if is_uie_pytorch(found):
        notes = [*notes, "the tensors have uie_pytorch's names, which were changed to those of transformers"]
        return _Weights(files, found, False, notes=tuple(notes), is_uie_pytorch=True)
    wrapper = wrapper_of(found)
    return _Weights(files, found, False, wrapper, (*notes, *_unwrapped(wrapper)))


def _unlisted(files: list[Path], found: Shapes) -> list[str]:
    """Return a note on tensors that the index of shards leaves out."""
    listed = listed_by(files)
    left_out = found.keys() - listed.keys() if listed else set()
    return [f"the index of the weights does not list {some(left_out)}, which its files hold"] if left_out else []


def _unwrapped(wrapper: str) -> tuple[str, ...]:
    return (f"the names of the tensors begin with {wrapper}, which was taken off",) if wrapper else ()


def _beside(name: str, *folders: Path) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _notes(head: str, fit: Fit, weights: _Weights) -> tuple[str, ...]:
    left_out = [*fit.left_out]
    if weights.is_xlm_roberta:
        left_out += unused((name.removeprefix(weights.wrapper) for name in weights.found), head)
    left = [f"weights left out, because no output depends on them: {some(left_out)}"] if left_out else []
    bare = head == "base" and not fit.pooler
    return (*left, *(["the weights have no pooler: the graph has no pooler_output"] if bare else []))


def _defaults(
    head: str, config: ErnieMConfig, folder: Path, sentences: SentenceFolder | None, tokenizer: Path | None
) -> tuple[Defaults, list[str]]:
    """Return the checkpoint's defaults for the pipelines, and notes on them."""
    found, notes = Defaults(), list[str]()
    if head == "base" and sentences is not None:
        found, notes = sentences.defaults()
    elif head == "base" and (note := unread_modules(folder)):
        notes = [note]
    file, limit = SENTENCE_FILE, found.max_seq_len
    if limit is None and tokenizer is not None:
        folder, file, limit = tokenizer, TOKENIZER_FILES[2], read_settings(tokenizer).model_max_length
    if limit is not None and limit <= _SPECIAL_TOKENS:
        raise CheckpointError(
            f"{folder / file} gives a row {limit} tokens, of which {_SPECIAL_TOKENS} are special ones: set the length "
            "that the model was trained with, or remove it"
        )
    if limit is not None and limit >= config.max_position_embeddings - POSITION_OFFSET:
        limit = None  # the model's limit
    if limit is not None:
        notes = [*notes, f"pipelines read at most {limit} tokens in a row, as {file} says; max_seq_len changes it"]
    return replace(found, max_seq_len=limit), notes


def _random(size: str, head: str, tokenizer: Path | None) -> Checkpoint:
    if size not in SIZES:
        raise CheckpointError(f"random:{size} is not known; expected one of {', '.join(_RANDOM + s for s in SIZES)}")
    config = random_config(size, head)
    config.architectures = [CLASSES[head].__name__]
    model = make_model(head, config)
    model.to_empty(device="cpu")
    randomize(model)
    config_text = without_paths(config.to_json_string(use_diff=False))
    return Checkpoint(model.eval(), head, _RANDOM + size, config_text, tokenizer)


def _resolve_head(head: str, config: ErnieMConfig, weights: _Weights) -> str:
    if weights.is_xlm_roberta:
        _check_head_of_xlm_roberta(head, config)
    declared = [HEAD_OF_CLASS[name] for name in config.architectures or [] if name in HEAD_OF_CLASS]
    if head == "auto":
        return declared[0] if declared else _head_of_weights(config, weights)
    if head != "base" and declared and declared[0] not in ("base", head):
        classes = XLM_ROBERTA_CLASSES if weights.is_xlm_roberta else HEAD_OF_CLASS
        name = next(name for name, its in classes.items() if its == declared[0])
        raise CheckpointError(
            f"--head {head} contradicts the checkpoint: config.json names {name}, which is head {declared[0]}"
        )
    return head


def _check_head_of_xlm_roberta(head: str, config: ErnieMConfig) -> None:
    heads = ", ".join(XLM_ROBERTA_HEADS)
    if head not in ("auto", *XLM_ROBERTA_HEADS):
        raise CheckpointError(f"--head {head} is not supported for XLM-R; expected one of {heads}")
    others = [name for name in config.architectures or [] if name not in HEAD_OF_CLASS]
    if head == "auto" and others:
        raise CheckpointError(
            f"config.json names {', '.join(others)}, which is not one of the supported XLM-R heads, {heads}; --head "
            "base exports the encoder alone"
        )


def _head_of_weights(config: ErnieMConfig, weights: _Weights) -> str:
    if weights.is_xlm_roberta:
        return head_of_weights(weights.names("auto") | dict.fromkeys(weights.found))
    shapes = weights.shapes(weights.names("auto"))
    names = set(shapes)
    if "qa_outputs.weight" in names:
        return "qa"
    if "linear_start.weight" in names:
        return "ie"
    if "classifier.weight" not in names:
        return "base"
    if weights.is_paddle:  # there, every head has a pooler, and question answering's classifier has the same name
        raise CheckpointError(
            "the config names no class (architectures, or init_class in model_config.json), and Paddle's weights do "
            "not tell which head: pass --head"
        )
    if "ernie_m.pooler.dense.weight" not in names:
        return "ner"
    if shapes["classifier.weight"][0] != 1:
        return "cls"
    if config.num_labels != 1:
        return "mc"
    raise CheckpointError(
        "config.json names no architecture, and the weights fit cls and mc: pass --head cls or --head mc"
    )


def _load(
    weights: _Weights,
    model: ErnieMPreTrainedModel,
    given: Mapping[str, str],
    names: Mapping[str, str],
    adapter: Adapter | None,
) -> ErnieMPreTrainedModel:
    """Return ``model`` with its parameters in float32; ``given`` and ``names`` map their names to those in the files.

    Not with ``from_pretrained``, which looks for adapters if peft is installed, and refuses some metadata.
    """
    whole = {} if adapter is None else adapter.whole
    in_files = {name: given[found] for name, found in names.items() if found not in whole}
    tables = weights.tables()
    tensors = read_tensors(weights.files, {*in_files.values(), *tables.values()})
    state = {}
    for name, found in in_files.items():
        tensor = tensors.pop(found)
        tensor = tensor_as_pytorch(name, tensor) if weights.is_paddle else tensor
        check_floats(weights.files[0].parent, {found: tensor})
        state[name] = tensor.float().contiguous()
        if name.endswith(POSITIONS) and TOKEN_TYPES in tables:
            state[name] = with_token_type(state[name], tensors[tables[TOKEN_TYPES]].float())
    if adapter is not None:
        brought = read_tensors([adapter.file], set(whole.values()))
        state |= {name: brought[whole[found]].float() for name, found in names.items() if found in whole}
    for name, tensor in state.items():
        check_finite(name, tensor)
    model.load_state_dict(state, assign=True)
    loaded: ErnieMPreTrainedModel = model.eval()
    return loaded


def _original(weights: _Weights, head: str, config_text: str, model: ErnieMPreTrainedModel) -> Original | None:
    """Return transformers' own model of an XLM-R checkpoint; None for others."""
    if not weights.is_xlm_roberta:
        return None
    tables = weights.tables()
    tensors = read_tensors(weights.files, set(tables.values()))
    return Original(head, config_text, model, {name: tensors[found].float() for name, found in tables.items()})


# base and large are the released sizes; tiny is small enough for a test.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 1000,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    },
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}


def random_config(size: str, head: str) -> ErnieMConfig:
    """Return the config of ``tiny``, ``base`` or ``large``; two labels for ``qa``, three elsewhere."""
    return ErnieMConfig(**SIZES[size], num_labels=2 if head == "qa" else 3)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> None:
    """Overwrite every parameter with seeded random values, so that every part of the model affects its output.

    New models have zero biases, trivial LayerNorms and almost uniform attention: a missing bias or a wrong mask hardly
    changes their output. Here biases and norms are random too, queries and keys are scaled up for peaked
    attention, and embeddings are small, so that a LayerNorm's epsilon matters.
    """
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: torch.Tensor, std: float, mean: float = 0.0) -> None:
        tensor.normal_(mean, std, generator=generator)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            gain = 2.0 if name.endswith(("q_proj", "k_proj")) else 1.0
            fill(module.weight, gain / math.sqrt(module.in_features))
            fill(module.bias, 0.2)
        elif isinstance(module, nn.LayerNorm):
            fill(module.weight, 0.2, mean=1.0)
            fill(module.bias, 0.2)
        elif isinstance(module, nn.Embedding):
            fill(module.weight, 0.05)
            if module.padding_idx is not None:
                module.weight[module.padding_idx] = 0.0
