"""The manifest: ``HEAD.json``, beside the graph and its weights.

The exporter writes it and the runtime reads it; both use the table of heads here.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from erniem_rt import __version__
from erniem_rt.checks import is_count
from erniem_rt.errors import ArtifactError
from erniem_rt.files import FileRecord, check_hash, check_size, refuse_pointer, replacing, stamp, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping


# The package of each flavour, and the module that it installs.
FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"\d+\.\d+")
_ABSENT = object()
_CAPABILITY = re.compile(r"[1-9][0-9]?\.[0-9]")


@dataclass(frozen=True)
class Profile:
    """A range of shapes that a plan runs; each shape is that of the ids.

    The kernels are optimized for ``opt``; ``min <= opt <= max`` along every axis.
    """

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The key ``plan`` of a manifest.

    ``version`` is the exact version of the library that built the plan, ``compute_capabilities`` the GPUs that can run
    it (such as ``"8.9"``). ``attention``, ``proof``, ``build`` and ``parity`` are JSON objects for people and for the
    exporter.
    """

    file: str
    flavour: str
    version: str
    precision: Mapping[str, str]
    compute_capabilities: tuple[str, ...]
    hardware_compatible: bool
    version_compatible: bool
    profiles: tuple[Profile, ...]
    attention: Mapping[str, Any]
    proof: Mapping[str, Any]
    build: Mapping[str, Any]
    parity: Mapping[str, Any]


# Major and minor version. A change that older readers may ignore raises the minor version, any other the major one.
FORMAT_VERSION = "1.1"
_MAJOR, _MINOR = map(int, FORMAT_VERSION.split("."))
_FORMAT = re.compile(r"(\d{1,4})\.(\d{1,4})")
DTYPES = ("int64", "int32", "bool", "float32", "float16")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# padding: no token attends to padding. uie-m: the mask of PaddleNLP's Taskflow with uie-m, see Manifest.
MASK_MODES = ("padding", "uie-m")
POOLINGS = ("mean", "cls", "pooler", "none")
# Where optimum looks for a graph; its weights lie beside it, in model.onnx_data.
OPTIMUM_GRAPH = "onnx/model.onnx"


def weights_name(graph: str) -> str:
    """Return the name of the weights file of ``HEAD.onnx``, or of ``onnx/model.onnx``, which optimum names."""
    return f"{graph}_data" if f"onnx/{graph.rpartition('/')[2]}" == OPTIMUM_GRAPH else f"{graph}.data"


@dataclass(frozen=True)
class Head:
    """One of the six heads: its task, the axes of its ids, and the axes of each of its outputs.

    ``hidden`` and ``labels`` are sizes fixed by the checkpoint; the other axes are dynamic. An artifact may lack the
    ``optional`` outputs.
    """

    task: str
    axes: tuple[str, ...]
    outputs: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...] = ()


_ROWS = ("batch", "sequence")
_SPAN = MappingProxyType({"start_logits": _ROWS, "end_logits": _ROWS})

HEADS: Mapping[str, Head] = MappingProxyType(
    {
        "base": Head(
            "feature-extraction",
            _ROWS,
            MappingProxyType({"last_hidden_state": (*_ROWS, "hidden"), "pooler_output": ("batch", "hidden")}),
            optional=("pooler_output",),
        ),
        "cls": Head("text-classification", _ROWS, MappingProxyType({"logits": ("batch", "labels")})),
        "ner": Head("token-classification", _ROWS, MappingProxyType({"logits": (*_ROWS, "labels")})),
        "mc": Head(
            "multiple-choice",
            ("batch", "choices", "sequence"),
            MappingProxyType({"logits": ("batch", "choices")}),
        ),
        "qa": Head("question-answering", _ROWS, _SPAN),
        "ie": Head("information-extraction", _ROWS, _SPAN),
    }
)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph; ``shape`` has an int for a fixed axis and a name for a dynamic one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Limits:
    """Bounds on the ids: positions per row, vocabulary size, and the padding id."""

    max_length: int
    vocab_size: int
    pad_token_id: int


@dataclass(frozen=True)
class Defaults:
    """The checkpoint's defaults for options of the artifact's pipelines; None where it has none.

    ``max_seq_len`` is in tokens, at most ``limits.max_length``; the others are for feature extraction, head ``base``.
    """

    max_seq_len: int | None = None
    pooling: str | None = None
    normalize: bool | None = None


@dataclass(frozen=True)
class Manifest:
    """The content of ``HEAD.json``.

    ``labels`` are ordered by id. ``files`` maps the names of the folder's files to their records; ``artifact`` is the
    graph's name: ``HEAD.onnx``, or ``onnx/model.onnx`` in optimum's layout. ``checkpoint``, ``versions``, ``engine``
    (how the graph was made) and ``parity`` are JSON objects for people and for reports. ``onnxruntime`` is the oldest
    version that computes the graph correctly, such as ``"1.21"``. ``defaults`` are the pipelines' options from the
    checkpoint; ``plan`` describes a TensorRT plan beside the graph. ``packed``: the graph does no work for padding, and
    gives zeros there. ``cpu`` is the kind of CPU that int8 was made for: ``"avx2"``, ``"vnni"`` or ``"arm64"``.
    ``proven`` lists the floating-point types, ``"fp32"`` and ``"bf16"``, in which the graph passed the gate on a CPU
    (in int8, the type between the int8 matmuls). ``mask_mode`` is one of :data:`MASK_MODES`. With ``uie-m``, rows are
    computed as if padded to ``limits.max_length``, tokens attend to that padding, and no token attends to ``[CLS]``.
    ``onnxruntime``, ``defaults``, ``plan``, ``cpu`` and ``proven`` may be missing in the file; so is ``mask_mode`` if
    it is ``padding``.
    """

    head: str
    task: str
    labels: tuple[str, ...] | None
    problem_type: str | None
    limits: Limits
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: Mapping[str, str]
    opset: int
    target: str
    artifact: str
    files: Mapping[str, FileRecord]
    checkpoint: Mapping[str, Any]
    versions: Mapping[str, Any]
    engine: Mapping[str, Any] | None
    parity: Mapping[str, Any]
    onnxruntime: str | None = None
    defaults: Defaults = Defaults()
    plan: Plan | None = None
    packed: bool = False
    cpu: str | None = None
    proven: tuple[str, ...] = ()
    mask_mode: str = MASK_MODES[0]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read and check ``path``; :class:`ArtifactError` names the invalid key.

        Unknown keys are ignored, with a warning, only in a file of a newer minor version.
        """
        return _parse(_Fields.read(Path(path)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` atomically.

        Raises the file system's :class:`OSError`, and :class:`ValueError` for NaN or infinity, which JSON lacks; both
        leave ``path`` unchanged.
        """
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        content["defaults"] = _given(self.defaults)
        for key in ("onnxruntime", "defaults", "plan", "cpu", "proven"):
            if not content[key]:
                del content[key]
        if self.mask_mode == MASK_MODES[0]:
            del content["mask_mode"]
        content["files"] = {name: _given(record) for name, record in self.files.items()}
        text = json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
        with replacing(Path(path)) as file:
            file.write(text.encode())

    def verify(
        self,
        directory: str | os.PathLike[str],
        *,
        hashes: bool = True,
        without: Collection[str] = (),
    ) -> None:
        """Check that every file is in ``directory`` with its size and, with ``hashes``, its content.

        Raises :class:`ArtifactError` naming the first file that is missing, truncated or edited. Checks all sizes
        first, since that costs nothing. Skips the files ``without``.
        """
        folder = Path(directory)
        files = {name: record for name, record in self.files.items() if name not in without}
        for name, record in files.items():
            check_size(folder / name, record.size)
        if not hashes:
            return
        for name, record in files.items():
            check_hash(folder / name, record)

    def stamps(self, directory: str | os.PathLike[str]) -> dict[str, tuple[int, ...] | None]:
        """Return a stamp of every file, to detect changes later; None for a missing file.

        Any write or replacement changes the inode, the size, or one of the times.
        """
        return {name: stamp(Path(directory) / name) for name in self.files}


def _given(record: Defaults | FileRecord) -> dict[str, Any]:
    """Return the fields that are not None, by name."""
    return {name: value for name, value in asdict(record).items() if value is not None}


def _error(path: Path, problem: str) -> ArtifactError:
    """Return the error for an invalid manifest, always with the same advice."""
    return ArtifactError(f"{path}: {problem}; re-export with this version ({__version__}).")


@dataclass(frozen=True)
class _Fields:
    """A JSON object with its file's ``path`` and its key prefix there; its methods return a key's value, checked.

    ``ignored`` collects unknown keys; if it is None, unknown keys are errors.
    """

    path: Path
    data: dict[str, Any]
    prefix: str = ""
    ignored: list[str] | None = None

    @classmethod
    def read(cls, path: Path) -> _Fields:
        """Parse a file whose top level is a JSON object."""
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise _error(path, "there is no such file, and an artifact needs its manifest") from error
        except OSError as error:
            raise unreadable(path, error) from error
        except (ValueError, RecursionError) as error:
            refuse_pointer(path)
            raise _error(path, f"expected JSON, but {error}") from error
        if not isinstance(data, dict):
            raise _error(path, f"expected a JSON object, got {_shown(data)}")
        return cls(path, data)

    def value(self, key: str) -> Any:
        value = self.data.get(key, _ABSENT)
        if value is _ABSENT:
            raise _error(self.path, f"key {self.prefix + key!r} is missing")
        return value

    def string(self, key: str) -> str:
        return self._text(key, bool, "a non-empty string")

    def optional_string(self, key: str) -> str | None:
        return None if self.data.get(key) is None else self.string(key)

    def one_of(self, key: str, choices: tuple[str, ...]) -> str:
        return self._text(key, choices.__contains__, " or ".join(map(repr, choices)))

    def sha256(self, key: str) -> str:
        return self._text(key, _SHA256.fullmatch, "64 lower-case hex digits")

    def version(self, key: str) -> str:
        return self._text(key, _VERSION.fullmatch, "a version such as '1.21'")

    def integer(self, key: str, least: int) -> int:
        value = self.value(key)
        if not is_count(value, least):
            raise self._wrong(key, f"an integer of at least {least}")
        return int(value)

    def boolean(self, key: str) -> bool:
        value = self.value(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        return tuple(self._list(key, lambda item: isinstance(item, str), "a list of strings"))

    def sizes(self, key: str, count: int) -> tuple[int, ...]:
        expected = f"a list of {count} positive integers"
        found = self._list(key, is_count, expected)
        if len(found) != count:
            raise self._wrong(key, expected)
        return tuple(found)

    def axes(self, key: str) -> tuple[int | str, ...]:
        return tuple(self._list(key, _is_axis, "a list of positive integers and axis names"))

    def section(self, key: str) -> _Fields:
        value = self.value(key)
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return _Fields(self.path, value, f"{self.prefix}{key}.", self.ignored)

    def sections(self, key: str) -> list[_Fields]:
        expected = "a non-empty list of objects"
        found = self._list(key, lambda item: isinstance(item, dict), expected)
        if not found:
            raise self._wrong(key, expected)
        return [_Fields(self.path, item, f"{self.prefix}{key}[{i}].", self.ignored) for i, item in enumerate(found)]

    def plain_name(self, name: str) -> str:
        """Return ``name`` if it names a file directly inside the folder, on any system."""
        if not _is_plain(name):
            raise _error(
                self.path,
                f"key {self.prefix.rstrip('.')!r} must hold plain file names inside the folder, got {name!r}",
            )
        return name

    def inner_name(self, name: str) -> str:
        """``name`` if it is a file inside the folder or, after one ``/``, inside a folder of it."""
        return name if name.count("/") == 1 and all(map(_is_plain, name.split("/"))) else self.plain_name(name)

    def no_others(self, known: Iterable[str]) -> None:
        """Refuse unknown keys, or collect them if they may be ignored."""
        others = sorted(set(self.data) - set(known))
        if self.ignored is not None:
            self.ignored.extend(repr(self.prefix + other) for other in others)
        elif others:
            raise _error(self.path, f"unknown key {self.prefix + others[0]!r}")

    def _text(self, key: str, fits: Callable[[str], object], expected: str) -> str:
        value = self.value(key)
        if not isinstance(value, str) or not fits(value):
            raise self._wrong(key, expected)
        return value

    def _list(self, key: str, fits: Callable[[Any], bool], expected: str) -> list[Any]:
        value = self.value(key)
        if not isinstance(value, list) or not all(map(fits, value)):
            raise self._wrong(key, expected)
        return value

    def _wrong(self, key: str, expected: str) -> ArtifactError:
        got = _shown(self.data[key])
        return _error(self.path, f"key {self.prefix + key!r} must be {expected}, got {got}")


def _is_plain(name: str) -> bool:
    # Windows' rules cover "/", "\" and drive letters.
    return name not in {"", ".", ".."} and "\0" not in name and PureWindowsPath(name).name == name


def _is_axis(value: object) -> bool:
    return bool(value) if isinstance(value, str) else is_count(value)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parse(fields: _Fields) -> Manifest:
    minor = _minor_version(fields)
    if minor > _MINOR:
        fields = replace(fields, ignored=[])
    head = fields.one_of("head", tuple(HEADS))
    limits = fields.section("limits")
    files = fields.section("files")
    manifest = Manifest(
        head=head,
        task=fields.one_of("task", (HEADS[head].task,)),
        labels=None if fields.value("labels") is None else fields.strings("labels"),
        problem_type=None if fields.value("problem_type") is None else fields.one_of("problem_type", PROBLEM_TYPES),
        limits=Limits(
            limits.integer("max_length", 1),
            limits.integer("vocab_size", 1),
            limits.integer("pad_token_id", 0),
        ),
        inputs=tuple(map(_parse_tensor, fields.sections("inputs"))),
        outputs=tuple(map(_parse_tensor, fields.sections("outputs"))),
        precision={name: fields.section("precision").string(name) for name in fields.section("precision").data},
        opset=fields.integer("opset", 1),
        target=fields.string("target"),
        artifact=fields.string("artifact"),
        files={files.inner_name(name): _parse_record(files.section(name)) for name in files.data},
        checkpoint=fields.section("checkpoint").data,
        versions=fields.section("versions").data,
        engine=None if fields.value("engine") is None else fields.section("engine").data,
        parity=fields.section("parity").data,
        onnxruntime=None if fields.data.get("onnxruntime") is None else fields.version("onnxruntime"),
        defaults=_parse_defaults(fields, head, limits.integer("max_length", 1)),
        plan=(
            None
            if fields.data.get("plan") is None
            else _parse_plan(fields.section("plan"), len(HEADS[head].axes), limits.integer("max_length", 1))
        ),
        packed=_packed_in_1_0(fields) if minor == 0 else fields.boolean("packed"),
        cpu=_cpu_in_1_0(fields) if minor == 0 else fields.optional_string("cpu"),
        proven=fields.strings("proven") if "proven" in fields.data else (),
        mask_mode=fields.one_of("mask_mode", MASK_MODES) if "mask_mode" in fields.data else MASK_MODES[0],
    )
    fields.no_others(("format_version", *Manifest.__dataclass_fields__))
    _check_whole(manifest, fields.path)
    if fields.ignored:
        warnings.warn(
            f"{fields.path} was exported by a newer version: {', '.join(fields.ignored)} is not known to erniem-rt "
            f"{__version__} and ignored. Update erniem-rt.",
            stacklevel=3,
        )
    return manifest


def _minor_version(fields: _Fields) -> int:
    """Return the minor format version; :class:`ArtifactError` for another major version."""
    given = fields.value("format_version")
    if type(given) is int:  # the format up to 1.0
        given = f"{given}.0"
    version = _FORMAT.fullmatch(given) if isinstance(given, str) else None
    if version is None:
        raise _error(fields.path, f"key 'format_version' must be a version such as '1.1', got {json.dumps(given)}")
    if int(version[1]) != _MAJOR:
        newer = int(version[1]) > _MAJOR
        raise ArtifactError(
            f"{fields.path} has format version {given}, and erniem-rt {__version__} reads {_MAJOR}.x: "
            f"{'update erniem-rt, or ' * newer}export again with this version."
        )
    return int(version[2])


def _packed_in_1_0(fields: _Fields) -> bool:
    return (fields.value("engine") or {}).get("packed") is True


def _cpu_in_1_0(fields: _Fields) -> str | None:
    int8 = (fields.value("engine") or {}).get("int8")
    found = int8.get("cpu") if isinstance(int8, dict) else None
    return found if isinstance(found, str) else None


def _parse_tensor(fields: _Fields) -> TensorSpec:
    return TensorSpec(fields.string("name"), fields.one_of("dtype", DTYPES), fields.axes("shape"))


def _parse_record(fields: _Fields) -> FileRecord:
    size = fields.integer("size", 0)
    checksum = fields.sha256("checksum") if fields.data.get("checksum") is not None else None
    return FileRecord(fields.sha256("sha256"), size, checksum)


def _parse_defaults(fields: _Fields, head: str, max_length: int) -> Defaults:
    if "defaults" not in fields.data:
        return Defaults()
    given = fields.section("defaults")
    names = tuple(Defaults.__dataclass_fields__)
    known = names if head == "base" else names[:1]
    given.no_others(known)
    has = given.data.keys() & set(known)
    defaults = Defaults(
        max_seq_len=given.integer("max_seq_len", 1) if "max_seq_len" in has else None,
        pooling=given.one_of("pooling", POOLINGS) if "pooling" in has else None,
        normalize=given.boolean("normalize") if "normalize" in has else None,
    )
    if (defaults.max_seq_len or 0) > max_length:
        raise _error(
            fields.path, f"defaults.max_seq_len is {defaults.max_seq_len}, over limits.max_length, {max_length}"
        )
    return defaults


def _parse_plan(fields: _Fields, axes: int, max_length: int) -> Plan:
    """Read and check the key ``plan`` of a head whose ids have ``axes`` axes and at most ``max_length`` positions."""
    precision = fields.section("precision")
    plan = Plan(
        file=fields.plain_name(fields.string("file")),
        flavour=fields.one_of("flavour", tuple(FLAVOURS)),
        version=fields.string("version"),
        precision={name: precision.string(name) for name in precision.data},
        compute_capabilities=fields.strings("compute_capabilities"),
        hardware_compatible=fields.boolean("hardware_compatible"),
        version_compatible=fields.boolean("version_compatible"),
        profiles=tuple(_parse_profile(profile, axes, max_length) for profile in fields.sections("profiles")),
        attention=fields.section("attention").data,
        proof=fields.section("proof").data,
        build=fields.section("build").data,
        parity=fields.section("parity").data,
    )
    fields.no_others(Plan.__dataclass_fields__)
    if not plan.compute_capabilities or not all(map(_CAPABILITY.fullmatch, plan.compute_capabilities)):
        raise _error(
            fields.path,
            "key 'plan.compute_capabilities' must be a non-empty list of capabilities such as \"8.9\", "
            f"got {list(plan.compute_capabilities)}",
        )
    return plan


def _parse_profile(fields: _Fields, axes: int, max_length: int) -> Profile:
    shapes = [fields.sizes(key, axes) for key in ("min", "opt", "max")]
    fields.no_others(Profile.__dataclass_fields__)
    place = f"key {fields.prefix.rstrip('.')!r}"
    if not all(low <= opt <= high for low, opt, high in zip(*shapes, strict=True)):
        raise _error(fields.path, f"{place} must have min <= opt <= max along every axis, got {shapes}")
    if shapes[2][-1] > max_length:
        raise _error(fields.path, f"{place} takes {shapes[2][-1]} positions, and the model takes at most {max_length}")
    return Profile(*shapes)


def _check_whole(manifest: Manifest, path: Path) -> None:
    """Check that the keys agree with one another and with the head."""
    if manifest.artifact not in manifest.files:
        raise _error(path, f"artifact is {manifest.artifact!r}, which files does not list")
    if manifest.plan is not None:
        _check_plan(manifest, manifest.plan, path)
    for kind, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        names = [spec.name for spec in specs]
        if len(set(names)) < len(names):
            raise _error(path, f"{kind} lists a name twice: {', '.join(names)}")
    head = HEADS[manifest.head]
    missing = set(head.outputs) - set(head.optional) - {spec.name for spec in manifest.outputs}
    if missing:
        raise _error(path, f"outputs lacks {', '.join(sorted(missing))} of head {manifest.head!r}")
    _check_inputs(manifest, path)


def _check_plan(manifest: Manifest, plan: Plan, path: Path) -> None:
    expected = Path(manifest.artifact).with_suffix(".plan").name
    if plan.file != expected:
        raise _error(path, f"key 'plan.file' must be {expected!r}, beside {manifest.artifact}, got {plan.file!r}")
    if plan.file not in manifest.files:
        raise _error(path, f"plan.file is {plan.file!r}, which files does not list")


def _check_inputs(manifest: Manifest, path: Path) -> None:
    """Check that the runtime supports the inputs: known names, their ranks, shared axes."""
    shapes = {spec.name: spec.shape for spec in manifest.inputs}
    main = shapes.keys() & {"input_ids", "inputs_embeds"}
    if len(main) != 1 or "attention_mask" not in shapes:
        raise _error(path, f"inputs must be attention_mask and input_ids (or inputs_embeds), got {', '.join(shapes)}")
    rank = len(HEADS[manifest.head].axes)
    ranks = dict.fromkeys(("input_ids", "attention_mask", "position_ids"), rank)
    ranks |= {"inputs_embeds": rank + 1, "head_mask": 2}
    shared = shapes[main.pop()]
    for name, shape in shapes.items():
        if name not in ranks:
            raise _error(path, f"inputs holds {name!r}, which this version does not know")
        if len(shape) != ranks[name]:
            raise _error(path, f"input {name} must have {ranks[name]} axes, got {list(shape)}")
        if not {axis for axis in shape if isinstance(axis, str)} <= set(shared):
            raise _error(path, f"input {name} has an axis of its own: {list(shape)} against {list(shared)}")
