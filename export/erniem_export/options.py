"""The options of an export: every choice, every default, every conflict, and a plan's profiles. Loads no torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from erniem_export.errors import EngineBuildError, OptionError
from erniem_rt.manifest import FLAVOURS, HEADS, MASK_MODES, Manifest, Profile, TensorSpec

# Half types by their option.
HALVES = {"fp16": "float16", "bf16": "bfloat16"}

PRECISIONS = ("fp32", *HALVES, "int8")

# Types of stored word embeddings. bf16 comes with --bf16 only: at the same size, fp16 is more accurate.
EMBEDDINGS = ("fp32", "fp16", "int8")

# The target of a graph. portable: standard operators only, for any ONNX engine. onnxruntime-cpu: fused attention
# and no work for padding, for ONNX Runtime on a CPU. onnxruntime-cuda: fused attention for its CUDA provider;
# onnxruntime-cuda-packed: no work for padding either. openvino: int8 in the form that OpenVINO
# is fastest with. auto: one of the others, by the precision.
PORTABLE = "portable"
ON_CPU, ON_CUDA, ON_CUDA_PACKED = "onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-cuda-packed"
ON_OPENVINO = "openvino"
TARGETS = ("auto", PORTABLE, ON_CPU, ON_CUDA, ON_CUDA_PACKED, ON_OPENVINO)

# Deprecated names and their replacements.
OLD_TARGETS = {"any": PORTABLE, "onnxruntime": ON_CPU}

# The CPUs for int8; auto: the one that exports.
CPUS = ("auto", "avx2", "vnni", "arm64")

# The masks; auto: as the checkpoint was trained, uie-m for UIEM from Paddle.
MASKS = ("auto", *MASK_MODES)

# Which names an artifact's files have. flat: HEAD.onnx and HEAD.onnx.data. optimum: those that optimum and
# sentence-transformers look for.
OPTIMUM = "optimum"
LAYOUTS = ("flat", OPTIMUM)

# The builders of TensorRT plans. auto: with --fp16 and --bf16 an installed one that can build here, if any.
ENGINES = ("auto", "none", *FLAVOURS)


@dataclass(frozen=True)
class GraphOptions:
    """Optional inputs and outputs of the exported graph.

    ``inputs_embeds`` replaces ``input_ids``; ``hidden_states`` adds ``hidden_states.{i}`` for the
    embeddings (0) and each layer; ``attentions`` adds ``attentions.{i}`` for each layer. ``mask_mode`` is one of
    :data:`~erniem_rt.manifest.MASK_MODES`.
    """

    position_ids: bool = False
    head_mask: bool = False
    inputs_embeds: bool = False
    hidden_states: bool = False
    attentions: bool = False
    mask_mode: str = MASK_MODES[0]

    def extras(self) -> Iterator[str]:
        """Yield the names of the wanted optional inputs and outputs."""
        yield from (name for name in GraphOptions.__dataclass_fields__ if getattr(self, name) is True)

    @classmethod
    def of(cls, manifest: Manifest) -> GraphOptions:
        """Return the options of an exported graph, from the names of its inputs and outputs."""
        there = {spec.name.partition(".")[0] for spec in (*manifest.inputs, *manifest.outputs)}
        flags: dict[str, Any] = {option.name: option.name in there for option in fields(cls)}
        return cls(**{**flags, "mask_mode": manifest.mask_mode})


@dataclass(frozen=True)
class Precision:
    """``weights``: one of :data:`PRECISIONS`, for the matmuls of the layers. ``embedding``: one of :data:`EMBEDDINGS`
    for the word-embedding table, or None for the type of the weights.
    """

    weights: str = "fp32"
    embedding: str | None = None

    def to_json(self) -> dict[str, str]:
        """Return the precision as the manifest stores it."""
        return {"weights": self.weights, "embedding": self.embedding or self.weights}


def arithmetic_of(precision: Mapping[str, str]) -> str:
    """Return the type of a manifest's matmuls: ``weights`` or, for TensorRT's int8 weights, ``products``."""
    return precision.get("products", precision.get("weights", ""))


@dataclass(frozen=True)
class Keep:
    """The part of the vocabulary to keep: codes of :data:`erniem_export.languages.LANGUAGES`, a UTF-8 text
    in the languages to serve, or both; by default all of it.
    """

    languages: tuple[str, ...] = ()
    text: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.languages) or self.text is not None


@dataclass(frozen=True)
class Int8:
    """``cpu``: one of :data:`CPUS`, where the artifact will run; ``calibration``: a file of texts, one on each line,
    or None for the checkpoint's own or the built-in ones.
    """

    cpu: str = "auto"
    calibration: Path | None = None


@dataclass(frozen=True)
class EngineOptions:
    """``engine``: one of :data:`ENGINES`; ``profiles``: none for the defaults.

    ``compute_capabilities`` such as ``"8.9"``, for TensorRT for RTX; none for the library's own choice.
    ``hardware_compatible``: any GPU from Ampere on; ``version_compatible``: later releases of the same major version,
    both for full TensorRT. ``workspace`` in MiB bounds the scratch memory on the GPU. ``timing_cache`` is read, where
    there is one, and written.
    """

    engine: str = "auto"
    profiles: tuple[Profile, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    hardware_compatible: bool = False
    version_compatible: bool = False
    workspace: int | None = None
    timing_cache: Path | None = None

    def details(self) -> Iterator[str]:
        """Yield the names of the given options other than ``engine``."""
        nothing = EngineOptions()
        yield from (name for name in _ENGINE_FLAGS if getattr(self, name) != getattr(nothing, name))


_ENGINE_FLAGS = {
    "profiles": "--profile",
    "compute_capabilities": "--compute-capability",
    "hardware_compatible": "--hardware-compatible",
    "version_compatible": "--version-compatible",
    "workspace": "--workspace",
    "timing_cache": "--timing-cache",
}


def flag_of(name: str) -> str:
    """Return the command line's flag for an option of the graph or the engine."""
    return _ENGINE_FLAGS.get(name) or f"--with-{name.replace('_', '-')}"


@dataclass(frozen=True)
class ExportOptions:
    """The choices of one ``erniem-export``, as :func:`erniem_export.export` describes them.

    ``chose_target`` says that ``target`` was ``auto`` before :meth:`resolved`.
    """

    model: str
    head: str = "auto"
    output: Path = Path("out")
    graph: GraphOptions = field(default_factory=GraphOptions)
    precision: Precision = field(default_factory=Precision)
    keep: Keep = field(default_factory=Keep)
    target: str = "auto"
    int8: Int8 = field(default_factory=Int8)
    engine: EngineOptions = field(default_factory=EngineOptions)
    task_set: Path | None = None
    mask: str = "auto"
    base: str | None = None
    tokenizer: str | None = None
    layout: str = LAYOUTS[0]
    chose_target: bool = False

    def resolved(self) -> ExportOptions:
        """Return the checked options, with a target that is not ``auto``.

        Raises:
            OptionError: A choice is unknown, or two exclude each other.
        """
        for name, value, choices in (
            ("head", self.head, ("auto", *HEADS)),
            ("precision", self.precision.weights, PRECISIONS),
            ("embedding", self.precision.embedding, (None, *EMBEDDINGS)),
            ("target", self.target, (*TARGETS, *OLD_TARGETS)),
            ("cpu", self.int8.cpu, CPUS),
            ("engine", self.engine.engine, ENGINES),
            ("mask", self.mask, MASKS),
            ("layout", self.layout, LAYOUTS),
        ):
            if value not in choices:
                known = ", ".join(str(choice) for choice in choices if choice is not None)
                raise OptionError(f"{name} {value!r} is not known; expected one of {known}")
        target = _current(self.target)
        _check_engine(self)
        _check_layout(self)
        _check_target(self, target)
        if target == "auto":
            found = replace(self, target=self._automatic_target(), chose_target=True)
        else:
            found = replace(self, target=target)
        if self.mask == MASK_MODES[1] and (reason := found.without_mask_of_uie_m()):
            raise OptionError(f"--mask {self.mask}: {reason}")
        return found

    def without_mask_of_uie_m(self) -> str | None:
        """Return why a graph with these options cannot have the mask of uie-m; None if it can."""
        if extra := next(self.graph.extras(), None):
            return f"{flag_of(extra)} cannot be combined with it: leave it out"
        if self.target in (ON_CUDA, ON_CUDA_PACKED) and not self.chose_target:
            return f"--target {self.target} masks by key lengths alone: take --target {PORTABLE}"
        if self.for_tensorrt:
            return f"--engine {self.engine.engine} has no bias on keys: leave it out"
        return None

    def with_mask(self, mode: str) -> ExportOptions:
        """Return the options for this mask mode, with a suitable target if the user chose none."""
        target = self.target
        if mode == MASK_MODES[1] and self.chose_target and target in (ON_CUDA, ON_CUDA_PACKED):
            target = PORTABLE
        return replace(self, target=target, graph=replace(self.graph, mask_mode=mode))

    @property
    def for_tensorrt(self) -> bool:
        """Whether a plan is requested by name; int8 is then the plan's."""
        return self.engine.engine in FLAVOURS

    def _automatic_target(self) -> str:
        weights = self.precision.weights
        if _unfused(self.graph) or (weights == "int8" and self.for_tensorrt):
            return PORTABLE
        return ON_CUDA if weights in HALVES else ON_CPU


def _current(target: str) -> str:
    """Return a target's current name; warn about an old one."""
    if target not in OLD_TARGETS:
        return target
    new = OLD_TARGETS[target]
    message = f"--target {target} will go in the next release: write --target {new}."
    warnings.warn(message, DeprecationWarning, stacklevel=4)
    return new


def _unfused(graph: GraphOptions) -> str | None:
    """Return the option that prevents fused attention, if any."""
    return next((name for name in ("head_mask", "attentions") if getattr(graph, name)), None)


def _check_target(options: ExportOptions, target: str) -> None:
    weights, unfused = options.precision.weights, _unfused(options.graph)
    if weights == "int8":
        if target in (ON_CUDA, ON_CUDA_PACKED):
            raise OptionError(f"--int8 has no graph for ONNX Runtime on CUDA: leave out --target {target}")
        if target == PORTABLE and not options.for_tensorrt:
            raise OptionError("--int8 on a CPU uses ONNX Runtime's own operators: leave out --target portable")
        if unfused and not options.for_tensorrt:
            raise OptionError(f"--int8 fuses attention: leave out {flag_of(unfused)}")
        if target == ON_OPENVINO:
            _check_openvino(options)
    elif target == ON_OPENVINO:
        raise OptionError("--target openvino is for --int8: OpenVINO reads other graphs as --target onnxruntime-cpu")
    elif options.int8 != Int8():
        raise OptionError("--cpu and --calibration are for --int8")
    elif target == ON_CPU and weights in HALVES:
        raise OptionError(f"--target {target} computes in fp32: leave out --{weights}")
    if unfused and target not in ("auto", PORTABLE):
        raise OptionError(f"--target {target} fuses attention: leave out {flag_of(unfused)}")


def _check_layout(options: ExportOptions) -> None:
    if options.layout != OPTIMUM:
        return
    if options.for_tensorrt:
        raise OptionError(f"--layout {OPTIMUM} has no place for a plan: leave out --engine {options.engine.engine}")
    if given := next(options.engine.details(), None):
        raise OptionError(f"--layout {OPTIMUM} has no place for a plan: leave out {flag_of(given)}")
    for name in ("position_ids", "inputs_embeds", "head_mask"):
        if getattr(options.graph, name):
            raise OptionError(f"--layout {OPTIMUM}: optimum gives no {name}: leave out {flag_of(name)}")


def _check_openvino(options: ExportOptions) -> None:
    if options.for_tensorrt:
        raise OptionError(f"--target openvino has no plan: leave out --engine {options.engine.engine}")
    if options.int8.cpu not in ("auto", "vnni"):
        raise OptionError(f"--target openvino is for a CPU with VNNI: leave out --cpu {options.int8.cpu}")


def _check_engine(options: ExportOptions) -> None:
    engine = options.engine
    if given := next(engine.details(), None):
        if engine.engine == "none":
            raise OptionError(
                f"{flag_of(given)} applies to TensorRT plans only, and --engine none builds no plan: leave one out"
            )
        if engine.engine == "auto" and options.precision.weights not in HALVES:
            weights = options.precision.weights
            raise OptionError(
                f"{flag_of(given)} applies to TensorRT plans only: in {weights}, name a builder with --engine"
            )
    if options.precision.weights == "int8" and options.for_tensorrt:
        if options.int8.cpu != "auto":
            raise OptionError(f"--cpu is for --int8 on a CPU: leave it out, or --engine {engine.engine}")
        if options.int8.calibration and engine.engine == "tensorrt-rtx":
            raise OptionError("--engine tensorrt-rtx stores weights in int8 and needs no --calibration: leave it out")
    if len({len(profile.max) for profile in engine.profiles}) > 1:
        raise OptionError("every --profile must have the same number of axes")


_SYNTAX = "MIN,OPT,MAX such as 1x1,8x128,32x512 (batch x sequence; for mc batch x choices x sequence)"
# Typical and largest batch, for latency and for throughput.
_LATENCY, _THROUGHPUT = (1, 4), (32, 32)
_TYPICAL = 128
# Choices: typical and largest number.
_CHOICES = (4, 8)


def parse_profile(text: str) -> Profile:
    """Parse ``MIN,OPT,MAX``; :class:`OptionError` gives the reason if it is malformed."""
    shapes = text.split(",")
    try:
        parsed = [tuple(int(size) for size in shape.strip().lower().split("x")) for shape in shapes]
    except ValueError:
        parsed = []
    if len(parsed) != 3 or any(size < 1 for shape in parsed for size in shape):
        raise OptionError(f"expected {_SYNTAX}, got {text!r}")
    low, opt, high = parsed
    if len({len(shape) for shape in parsed}) > 1 or not all(
        a <= b <= c for a, b, c in zip(low, opt, high, strict=True)
    ):
        raise OptionError(f"expected MIN <= OPT <= MAX along every axis, got {text!r}")
    return Profile(low, opt, high)


def resolve_profiles(profiles: Sequence[Profile], head: str, max_length: int) -> tuple[Profile, ...]:
    """Check the profiles against the model; by default return one for latency and one for throughput.

    Raises:
        EngineBuildError: The number of axes is not the head's, or a row is longer than the model's maximum.
    """
    axes = HEADS[head].axes
    if not profiles:
        return tuple(_default(best, most, len(axes), max_length) for best, most in (_LATENCY, _THROUGHPUT))
    for profile in profiles:
        written = ",".join("x".join(map(str, shape)) for shape in (profile.min, profile.opt, profile.max))
        if len(profile.max) != len(axes):
            raise EngineBuildError(
                f"--profile {written} has {len(profile.max)} axes, and head {head} has {len(axes)}: {' x '.join(axes)}"
            )
        if profile.max[-1] > max_length:
            raise EngineBuildError(
                f"--profile {written} goes up to {profile.max[-1]} positions, and the model takes at most "
                f"{max_length}: give a MAX of at most {'x'.join(map(str, (*profile.max[:-1], max_length)))}"
            )
    return tuple(profiles)


def _default(best: int, most: int, axes: int, max_length: int) -> Profile:
    choices = [(1, *_CHOICES)] * (axes - 2)
    length = (1, min(_TYPICAL, max_length), max_length)
    low, opt, high = zip((1, best, most), *choices, length, strict=True)
    return Profile(low, opt, high)


def input_shapes(profile: Profile, axes: Sequence[str], spec: TensorSpec) -> list[tuple[int, ...]]:
    """Return the min, opt and max shape of a graph's input, from the sizes of the ids along ``axes``."""
    return [
        tuple(axis if isinstance(axis, int) else shape[list(axes).index(axis)] for axis in spec.shape)
        for shape in (profile.min, profile.opt, profile.max)
    ]
