"""A checkpoint, loaded: the model in float32, and what came with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from erniem_export.adapters import Adapter, find_adapter, merge
from erniem_export.config_file import (
    HEAD_OF_CLASS,
    as_paddle_reads,
    name_labels,
    read_config,
    with_values,
    without_paths,
)
from erniem_export.encoder import POSITION_OFFSET
from erniem_export.errors import CheckpointError
from erniem_export.heads import CLASSES, LABELLED, make_model
from erniem_export.paddle import is_paddle, names_as_pytorch, shape_as_pytorch, tensor_as_pytorch
from erniem_export.random_weights import SIZES, random_config, randomize
from erniem_export.sentence_folder import SentenceFolder, left_aside, read_sentence_folder
from erniem_export.sources import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    SENTENCE_FILE,
    TASK_SET_FILE,
    TOKENIZER_FILES,
    check_layout,
    find_folder,
    find_tokenizer,
    paddle_files,
    pickled_files,
    tokenizer_files,
    weight_files,
)
from erniem_export.weight_names import from_uie_pytorch, is_uie_pytorch, some, wrapper_of
from erniem_export.weights import Fit, Shapes, check_weights, read_shapes, read_tensors
from erniem_rt.manifest import Defaults
from erniem_rt.tokenizer.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from erniem_export.configuration import ErnieMConfig
    from erniem_export.modeling import ErnieMPreTrainedModel

__all__ = ["Checkpoint", "load_checkpoint"]

_RANDOM = "random:"
# Heads with a classifier.
_CLASSIFYING = ("cls", "ner", "mc")
# Around a text alone: [CLS] and [SEP].
_SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class _Weights:
    """Weight files and what tensors they hold, by the names there; ``wrapper`` is before those of the encoder."""

    files: list[Path]
    found: Shapes
    is_paddle: bool
    wrapper: str = ""
    is_uie_pytorch: bool = False
    notes: tuple[str, ...] = ()

    def names(self, head: str) -> dict[str, str]:
        """PyTorch's name of each tensor to its name in the files."""
        if self.is_paddle:
            return names_as_pytorch(self.found, head)
        if self.is_uie_pytorch:
            return {from_uie_pytorch(name): name for name in self.found}
        return {name.removeprefix(self.wrapper): name for name in self.found}

    def shapes(self, names: Mapping[str, str]) -> Shapes:
        """PyTorch's name to PyTorch's shape."""
        if not self.is_paddle:
            return {name: self.found[given] for name, given in names.items()}
        return {name: shape_as_pytorch(name, self.found[given]) for name, given in names.items()}


@dataclass(frozen=True)
class _Model:
    """A model as a folder has it."""

    model: ErnieMPreTrainedModel
    head: str
    config_text: str
    like_paddle: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    ``source`` says where it came from, without this machine's paths; ``tokenizer_dir`` is the folder of the
    tokenizer's files, or None; ``config_text`` is the content of ``config.json``; ``task_set`` is the file of labelled
    examples that lies beside the weights, or None, and ``calibration`` that of texts for int8; ``defaults`` are for the
    artifact's pipelines, and with ``lower_case`` its tokenizer reads in lower case; ``paddle`` says that the
    weights are of Paddle or of software that computes as it does; ``adapter`` names the type and the base of an
    adapter that was merged; ``notes`` say what was made of the files where that is not obvious.
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

    @property
    def config(self) -> ErnieMConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def is_random(self) -> bool:
        """Whether it is one of ours for trials, without a tokenizer."""
        return self.source.startswith(_RANDOM)

    @property
    def architecture(self) -> str:
        """The class's name."""
        return type(self.model).__name__

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
        model: Where the checkpoint is; of an adapter, which is merged into its base.
        head: One of the six heads, or ``auto`` to read it from the config or the weights.
        base: Where the base of an adapter is; None for what the adapter names.
        tokenizer: Where the tokenizer is; None for the checkpoint's own.

    Raises:
        CheckpointError: It is not there, damaged, not ErnieM, of another head, or at odds with its own config.
    """
    try:
        own = None if tokenizer is None else find_tokenizer(tokenizer)
        if model.startswith(_RANDOM):
            if base is not None:
                raise CheckpointError(f"--base is for adapters, and {model} is none: leave it out")
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
    )


def _read_model(folder: Path, head: str, adapter: Adapter | None = None) -> _Model:
    """The model in a folder, which may be the base of an adapter: then with the adapter's head."""
    config_text, config = read_config(folder if adapter is None else adapter.config_folder)
    weights = _find_weights(folder)
    if weights.is_paddle:
        config_text, config = as_paddle_reads(folder / CONFIG_FILE, config_text)
    if adapter is None:
        head = _resolve_head(head, config, weights)
    else:
        head = _head_of_adapter(adapter, config, weights, head)
        adapter.check_width(config.hidden_size)
        values = adapter.values(head, config.num_labels)
        config_text, config = with_values(adapter.config_folder / CONFIG_FILE, config_text, values)
    said = json.loads(config_text)
    names = weights.names(head)
    shapes = weights.shapes(names) | (adapter.shapes if adapter is not None else {})
    about_labels = name_labels(config, said) if head in LABELLED else None
    fit = check_weights(head, config, shapes, said)
    model = _load(weights, make_model(head, config, pooler=fit.pooler), names, fit.names, adapter)
    notes = (*weights.notes, *_notes(head, fit), *([about_labels] if about_labels else []))
    return _Model(model, head, config_text, weights.is_paddle or weights.is_uie_pytorch, notes)


def _merged(adapter: Adapter, head: str) -> _Model:
    """An adapter merged into its base."""
    with adapter.of_base():
        found = _read_model(adapter.base, head, adapter)
    model, warned = merge(found.model, found.head, adapter)
    notes = (f"an adapter of type {adapter.kind}: merged into {adapter.base_name}", *found.notes, *warned)
    if head == "base" != found.head:
        encoder = make_model(head, model.config, pooler=model.base_model.pooler is not None)
        encoder.load_state_dict(model.base_model.state_dict(), assign=True)
        return replace(found, model=encoder.eval(), head=head, notes=notes)
    return replace(found, model=model, notes=notes)


def _head_of_adapter(adapter: Adapter, config: ErnieMConfig, weights: _Weights, head: str) -> str:
    """The head that an adapter was trained in, where ``head`` is asked for."""
    own = adapter.head or adapter.head_of_whole() or _resolve_head(head, config, weights)
    if adapter.brings("classifier") and own not in _CLASSIFYING:
        raise CheckpointError("neither the adapter nor its base tells which head: pass --head")
    if head not in ("auto", "base", own):
        raise CheckpointError(f"--head {head} contradicts the adapter, which was trained with head {own}")
    return own


def _of_tokenizers(given: Path | None, own: list[Path]) -> list[str]:
    """What is to be said where a tokenizer is given in place of the checkpoint's own."""
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


def _find_weights(folder: Path) -> _Weights:
    """The weights of a checkpoint, PyTorch's if there are those of both."""
    files = weight_files(folder)
    found = read_shapes(files)
    paddle, beside = is_paddle(files, found), [file.name for file in paddle_files(folder)]
    if paddle and files[0].name not in beside and (pickled := pickled_files(folder)):
        beside = [file.name for file in files]
        files, found, paddle = pickled, read_shapes(pickled), False
    if paddle:
        return _Weights(files, found, is_paddle=True)
    notes = [f"the folder has Paddle's weights too ({some(beside)}): PyTorch's are taken"] if beside else []
    if is_uie_pytorch(found):
        notes = [*notes, "the tensors have uie_pytorch's names, which were changed to those of transformers"]
        return _Weights(files, found, False, is_uie_pytorch=True, notes=tuple(notes))
    if wrapper := wrapper_of(found):
        notes = [*notes, f"the names of the tensors begin with {wrapper}, which was taken off"]
    return _Weights(files, found, False, wrapper, notes=tuple(notes))


def _beside(name: str, *folders: Path) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _notes(head: str, fit: Fit) -> tuple[str, ...]:
    left = [f"left out of the weights, for no output depends on it: {some(fit.left_out)}"] if fit.left_out else []
    bare = head == "base" and not fit.pooler
    return (*left, *(["the weights have no pooler: the graph has no pooler_output"] if bare else []))


def _defaults(
    head: str, config: ErnieMConfig, folder: Path, sentences: SentenceFolder | None, tokenizer: Path | None
) -> tuple[Defaults, list[str]]:
    """What the checkpoint says of how its texts are read, and what is to be said of that."""
    found, notes = Defaults(), list[str]()
    if head == "base" and sentences is not None:
        found, notes = sentences.defaults()
    elif head == "base" and (aside := left_aside(folder)):
        notes = [aside]
    file, limit = SENTENCE_FILE, found.max_seq_len
    if limit is None and tokenizer is not None:
        folder, file, limit = tokenizer, TOKENIZER_FILES[2], read_settings(tokenizer).model_max_length
    if limit is not None and limit <= _SPECIAL_TOKENS:
        raise CheckpointError(
            f"{folder / file} gives a row {limit} tokens, of which {_SPECIAL_TOKENS} are special ones: set the length "
            "that the model was trained with, or remove it"
        )
    if limit is not None and limit >= config.max_position_embeddings - POSITION_OFFSET:
        limit = None  # the model's own
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
    declared = [HEAD_OF_CLASS[name] for name in config.architectures or [] if name in HEAD_OF_CLASS]
    if head == "auto":
        return declared[0] if declared else _head_of_weights(config, weights)
    if head != "base" and declared and declared[0] not in ("base", head):
        raise CheckpointError(
            f"--head {head} contradicts the checkpoint: config.json names {CLASSES[declared[0]].__name__}, "
            f"which is head {declared[0]}"
        )
    return head


def _head_of_weights(config: ErnieMConfig, weights: _Weights) -> str:
    shapes = weights.shapes(weights.names("auto"))
    names = set(shapes)
    if "qa_outputs.weight" in names:
        return "qa"
    if "linear_start.weight" in names:
        return "ie"
    if "classifier.weight" not in names:
        return "base"
    if weights.is_paddle:  # where every head has a pooler, and that of question answering the same name
        raise CheckpointError("the config names no class, and Paddle's weights do not tell which head: pass --head")
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
    """``model`` with its parameters, in float32: each has a name in ``names``, and that its name in the files.

    Not by ``from_pretrained``: it would look for adapters where peft is installed, and refuse some metadata.
    """
    whole = {} if adapter is None else adapter.whole
    in_files = {name: given[found] for name, found in names.items() if found not in whole}
    tensors = read_tensors(weights.files, set(in_files.values()))
    state = {}
    for name, found in in_files.items():
        tensor = tensors.pop(found)
        state[name] = (tensor_as_pytorch(name, tensor) if weights.is_paddle else tensor).float().contiguous()
    if adapter is not None:
        brought = read_tensors([adapter.file], set(whole.values()))
        state |= {name: brought[whole[found]].float() for name, found in names.items() if found in whole}
    model.load_state_dict(state, assign=True)
    loaded: ErnieMPreTrainedModel = model.eval()
    return loaded
