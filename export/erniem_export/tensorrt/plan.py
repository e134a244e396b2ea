"""Builds ``HEAD.plan``: chooses a form of attention, derives the graph, builds it and checks the types it computes in.

A trial build of a single attention shows which form the library runs as one kernel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from erniem_export.bundle import files_of
from erniem_export.checkpoint import Checkpoint
from erniem_export.errors import EngineBuildError
from erniem_export.gate.parity import judge
from erniem_export.onnx_export import read, write
from erniem_export.options import EngineOptions, arithmetic_of, resolve_profiles
from erniem_export.passes.attention import ATTENTION_OPSET, keep_masks_alive, to_attention
from erniem_export.passes.precision import HALF_TYPES
from erniem_export.passes.rewriter import Rewriter, name_products
from erniem_export.progress import Terminal
from erniem_export.tensorrt.builder import (
    Library,
    add_profiles,
    build,
    configure,
    gpu_capability,
    layers_of,
    make_builder,
    parse,
)
from erniem_rt.files import FileRecord, hash_file
from erniem_rt.manifest import Manifest, Plan, Profile

ATTENTION, PRIMITIVES = "Attention", "MatMul-Softmax-MatMul"
_IR_VERSION = 10
_QKV = ("query", "key", "value")

# TensorRT for RTX without --compute-capability: "8.6, 8.9, 12.0, 12.1, and later"; here the known ones.
_RTX_DEFAULT = ("8.6", "8.9", "12.0", "12.1")
_AMPERE_PLUS = ("8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
_ENGINE_NOT_RUN = "built, not run: the figures are of the graph that went into the builder, run on a CPU"


def add_plan(
    stage: Path,
    source: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    library: Library,
    options: EngineOptions,
    progress: Terminal,
) -> tuple[Plan, FileRecord]:
    """Build ``HEAD.plan`` in ``stage``; return its description and its file's record.

    Args:
        stage: The folder for the plan.
        source: Folder of the graph in standard operators that the plan is built from.
        manifest: The manifest of that graph.
        checkpoint: The checkpoint of that graph.
        library: The builder library.
        options: The options of the build.
        progress: Shows the steps.

    Raises:
        EngineBuildError: The build fails, or the plan's types are not those of the options.
        ParityError: The graph for TensorRT does not compute what the PyTorch model computes.
    """
    profiles = resolve_profiles(options.profiles, manifest.head, manifest.limits.max_length)
    config, started = checkpoint.config, time.monotonic()
    progress.step(f"trying attention on {library}")
    heads = (config.num_attention_heads, config.hidden_size // config.num_attention_heads)
    dtype = HALF_TYPES.get(arithmetic_of(manifest.precision), ir.DataType.FLOAT)
    attention = choose_attention(library, options, profiles, heads, dtype, progress)
    with tempfile.TemporaryDirectory(dir=stage, prefix=".plan-") as folder:
        scratch = Path(folder)
        products, replaced = _derive(source / manifest.artifact, scratch, attention["form"], config.num_hidden_layers)
        attention |= replaced
        reports = _compare(scratch, manifest, checkpoint, stage, progress)
        progress.step(f"building {manifest.head}.plan with {library}")
        built = scratch / manifest.artifact
        layers = config.num_hidden_layers
        plan, proof = _built(built, manifest, library, options, profiles, (products, layers), progress)
    file = (stage / manifest.artifact).with_suffix(".plan")
    file.write_bytes(plan)
    here = gpu_capability()
    described = Plan(
        file=file.name,
        flavour=library.flavour,
        version=library.version,
        precision=manifest.precision,
        compute_capabilities=_capabilities(library, options, here),
        hardware_compatible=options.hardware_compatible,
        version_compatible=options.version_compatible,
        profiles=profiles,
        attention=attention,
        proof=proof,
        build={
            "on": f"a GPU of compute capability {here}" if here else "a machine without a GPU",
            "workspace_mib": options.workspace,
            "timing_cache": None if options.timing_cache is None else options.timing_cache.name,
            "seconds": round(time.monotonic() - started, 3),
            "bytes": plan.nbytes,
        },
        parity={"engine": _ENGINE_NOT_RUN, "graph": reports},
    )
    return described, hash_file(file)


def _derive(artifact: Path, scratch: Path, form: str, layers: int) -> tuple[dict[str, ir.Node], dict[str, Any]]:
    """Write TensorRT's graph into ``scratch``, under the artifact's name; return its matmuls and the record."""
    graph = read(artifact)
    attentions = keep_masks_alive(graph, layers)
    done: dict[str, Any] = {"layers": layers}
    if form == ATTENTION:
        replaced, declined = to_attention(graph, attentions)
        done = {"layers": replaced, **({"left_as_primitives": declined} if declined else {})}
        if not replaced:
            done |= {"form": PRIMITIVES, "layers": layers}
    products = name_products(graph)
    write(graph, scratch / artifact.name)
    return products, done


def _compare(
    scratch: Path, manifest: Manifest, checkpoint: Checkpoint, stage: Path, progress: Terminal
) -> dict[str, Any]:
    progress.step("comparing the graph for TensorRT with PyTorch")
    derived = dataclasses.replace(manifest, files=files_of(scratch), parity={})
    derived.save((scratch / manifest.artifact).with_suffix(".json"))
    return judge(
        scratch / manifest.artifact,
        checkpoint.model,
        tokenizer_dir=checkpoint.tokenizer_dir,
        scratch=stage,
        progress=lambda cases: progress.track(cases, "case"),
    )


def _built(
    path: Path,
    manifest: Manifest,
    library: Library,
    options: EngineOptions,
    profiles: tuple[Profile, ...],
    graph: tuple[dict[str, ir.Node], int],
    progress: Terminal,
) -> tuple[memoryview, dict[str, Any]]:
    """Parse, prove and build; ``graph`` has the matmuls by name and the number of layers."""
    products, layers = graph
    builder = make_builder(library)
    network = parse(library, builder, path)
    whole = library.flavour == "tensorrt"
    proof = prove(network, manifest.precision, products, layers, whole=whole)
    config = configure(library, builder, options)
    add_profiles(library, builder, config, manifest, profiles)
    plan = build(library, builder, network, config, options, progress)
    return plan, {**proof, "inspector": inspect(library, plan, manifest.precision, whole=whole)}


def _capabilities(library: Library, options: EngineOptions, here: str | None) -> tuple[str, ...]:
    if library.flavour == "tensorrt-rtx":
        return options.compute_capabilities or _RTX_DEFAULT
    return _AMPERE_PLUS if options.hardware_compatible else (str(here),)


@dataclasses.dataclass(frozen=True)
class _Trial:
    """The settings of a trial build: ``heads`` is their number and size, ``dtype`` the type of the attention."""

    library: Library
    options: EngineOptions
    profiles: Sequence[Profile]
    heads: tuple[int, int]
    dtype: ir.DataType
    progress: Terminal


def choose_attention(
    library: Library,
    options: EngineOptions,
    profiles: Sequence[Profile],
    heads: tuple[int, int],
    dtype: ir.DataType,
    progress: Terminal,
) -> dict[str, Any]:
    """Return the form of attention and the reason, for the manifest; ``packed`` says if it could run without padding.

    Args:
        library: The builder library.
        options: The plan's options.
        profiles: The plan's profiles.
        heads: The number and the size of the heads.
        dtype: The type of the attention.
        progress: Shows the trial build.

    Raises:
        EngineBuildError: The library refuses the options.
    """
    configure(library, make_builder(library), options)  # raises early for options that would fail with the plan too
    trial = _Trial(library, options, profiles, heads, dtype, progress)
    what = f"{heads[0]} heads of {heads[1]} in {dtype.name.lower()}"
    refused = _refusal(trial, _padded(trial), [_padded_shapes(profile, heads) for profile in profiles])
    form, reason = ATTENTION, "a trial build of Attention, not to be decomposed, succeeded"
    if refused:
        form, reason = PRIMITIVES, f"a trial build of Attention failed: {refused}"
    return {"form": form, "trial": what, "reason": reason, "packed": _packed_attention(trial)}


def _packed_attention(trial: _Trial) -> dict[str, Any]:
    if not hasattr(trial.library.module, "AttentionIOForm"):
        return {"available": False, "reason": f"{trial.library} knows no attention over packed rows"}
    refused = _refusal(trial, _packed(trial), [_packed_shapes(profile, trial.heads) for profile in trial.profiles])
    reason = f"failed: {refused}" if refused else "succeeded; rows still run in buckets of similar length"
    return {"available": not refused, "reason": f"a trial build of TRT_Attention on packed rows {reason}"}


def _padded(trial: _Trial) -> ir.Model:
    """Return a model of opset 23's ``Attention`` on ``(rows, heads, length, size)``, with a mask."""
    shape = ir.Shape(["rows", trial.heads[0], "length", trial.heads[1]])
    mask = _value("mask", ir.DataType.BOOL, ir.Shape(["rows", 1, "length", "length"]))
    return _model([*(_value(name, trial.dtype, shape) for name in _QKV), mask], [0, 1, 2, 3], "Attention", scale=1.0)


def _packed(trial: _Trial) -> ir.Model:
    """Return a model of TensorRT's ``TRT_Attention`` on ``(tokens, heads, size)`` of all rows, and each row's end."""
    shape = ir.Shape(["tokens", *trial.heads])
    ends = _value("ends", ir.DataType.INT32, ir.Shape(["ends"]))
    inputs = [*(_value(name, trial.dtype, shape) for name in _QKV), ends]
    forms = {"query_form": "packed_nhd", "kv_form": "packed_nhd", "causal_kind": "none"}
    return _model(inputs, [0, 1, 2, None, 3, 3], "TRT_Attention", domain="trt", **forms)


def _model(
    inputs: Sequence[ir.Value], order: Sequence[int | None], op_type: str, domain: str = "", **attributes: Any
) -> ir.Model:
    """Return a model of one node, whose inputs are ``inputs`` in the order of their indexes ``order``."""
    opsets = {"": ATTENTION_OPSET, **({domain: 1} if domain else {})}
    graph = ir.Graph(inputs, [], nodes=[], opset_imports=opsets, name="attention")
    rewriter = Rewriter(graph)
    taken = [None if i is None else inputs[i] for i in order]
    result = rewriter.op(op_type, *taken, name="attention", domain=domain, **attributes)
    result.type, result.shape = inputs[0].type, inputs[0].shape
    rewriter.append()
    graph.outputs.append(result)
    return ir.Model(graph, ir_version=_IR_VERSION)


def _value(name: str, dtype: ir.DataType, shape: ir.Shape) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)


# The shapes of each input at a profile's min, opt and max.
_Ranges = dict[str, "Sequence[tuple[int, ...]]"]


def _padded_shapes(profile: Profile, heads: tuple[int, int]) -> _Ranges:
    sizes = [(math.prod(shape[:-1]), shape[-1]) for shape in (profile.min, profile.opt, profile.max)]
    states: Sequence[tuple[int, ...]] = [(rows, heads[0], length, heads[1]) for rows, length in sizes]
    return {**dict.fromkeys(_QKV, states), "mask": [(rows, 1, length, length) for rows, length in sizes]}


def _packed_shapes(profile: Profile, heads: tuple[int, int]) -> _Ranges:
    sizes = [(math.prod(shape[:-1]), shape[-1]) for shape in (profile.min, profile.opt, profile.max)]
    states: Sequence[tuple[int, ...]] = [(rows * length, *heads) for rows, length in sizes]
    return {**dict.fromkeys(_QKV, states), "ends": [(rows + 1,) for rows, _ in sizes]}


def _refusal(trial: _Trial, model: ir.Model, ranges: Sequence[_Ranges]) -> str | None:
    """Build ``model``; return the reason for a failure, else None."""
    library, builder = trial.library, make_builder(trial.library)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "attention.onnx"
        ir.save(model, path)
        try:
            network = parse(library, builder, path)
            config = configure(library, builder, trial.options)
            for shapes in ranges:
                added = builder.create_optimization_profile()
                for name, (low, best, high) in shapes.items():
                    added.set_shape(name, low, best, high)
                config.add_optimization_profile(added)
            with _quiet_stderr():
                build(library, builder, network, config, trial.options, trial.progress)
        except EngineBuildError as error:
            return str(error)
    return None


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silence the library's writes to standard error, which bypass its logger and are irrelevant in a trial build."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


# TensorRT's names of the matmuls' types.
_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
# The inspector's names, within a tensor's format.
_INSPECTED = {
    "FLOAT": re.compile(r"\b(FP32|Float)\b"),
    "HALF": re.compile(r"\b(FP16|Half)\b"),
    "BF16": re.compile("BF16|BFloat16"),
    "INT8": re.compile(r"\b(INT8|Int8)\b"),
}
# Keys of names, which may contain a type's name and must be ignored.
_NAMED = ("Name", "Metadata")
_LAYER = re.compile(r"encoder\.layers\.\d+\.")


def prove(
    network: Any, precision: Mapping[str, str], products: Collection[str], layers: int, *, whole: bool = False
) -> dict[str, Any]:
    """Check the type of every matmul of the encoder's layers, and of inputs and outputs; return the findings.

    Args:
        network: The network to build; it is strongly typed, so that the builder cannot change its types.
        precision: The manifest's.
        products: The names of the graph's matmuls, which are also the names of the network's layers.
        layers: The encoder's number of layers.
        whole: In int8, the matmuls must be in int8 too, not the weights only.

    Raises:
        EngineBuildError: A matmul computes in another type, or is missing.
    """
    wanted = _TYPES[arithmetic_of(precision)]
    kept = set(precision.get("kept_in_fp32", "").split(", "))
    expected = {name for name in products if _LAYER.match(name)}
    found = {layer.name: layer for layer in layers_of(network) if layer.type.name == "MATRIX_MULTIPLY"}
    if len(expected) != 6 * layers or expected - found.keys():
        missing = ", ".join(sorted(expected - found.keys())[:3]) or f"{6 * layers - len(expected)} of them"
        raise EngineBuildError(f"the precision cannot be proven: the network lacks matmuls of the layers, {missing}")
    counted: Counter[str] = Counter()
    for name in sorted(expected):
        types, right = _types(found[name]), "FLOAT" if name in kept else wanted
        if types != {right}:
            raise EngineBuildError(
                f"asked for {precision['weights']}, but the matmul {name} computes in {' and '.join(sorted(types))}"
            )
        counted[right] += 1
    int8 = _prove_int8(network, [found[name] for name in expected], whole) if precision["weights"] == "int8" else {}
    return {
        "source": "the strongly typed network that the plan was built from",
        "products": dict(counted),
        "int8": int8,
        "inputs": {tensor.name: tensor.dtype.name for tensor in _tensors(network.num_inputs, network.get_input)},
        "outputs": {tensor.name: tensor.dtype.name for tensor in _tensors(network.num_outputs, network.get_output)},
        "weight_bytes": _weight_bytes(network),
    }


def _types(layer: Any) -> set[str]:
    inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
    return {tensor.dtype.name for tensor in (*inputs, layer.get_output(0)) if tensor is not None}


def _prove_int8(network: Any, products: Sequence[Any], whole: bool) -> dict[str, int]:
    makers = {layer.get_output(i).name: layer for layer in layers_of(network) for i in range(layer.num_outputs)}
    inputs, weights = (sum(_comes_from_int8(product.get_input(i), makers) for product in products) for i in (0, 1))
    if (weights, inputs) != (len(products), whole * len(products)):
        raise EngineBuildError(
            f"asked for int8 {'matmuls' if whole else 'weights'}, but of {len(products)} matmuls {weights} have int8 "
            f"weights and {inputs} int8 inputs"
        )
    return {"weights": weights, "inputs": inputs}


def _comes_from_int8(tensor: Any, makers: Mapping[str, Any]) -> bool:
    """Return whether the tensor comes from int8 through layers that only move or convert values."""
    layer = makers.get(tensor.name)
    while layer is not None and layer.type.name in ("SHUFFLE", "CAST", "UNSQUEEZE", "IDENTITY"):
        layer = makers.get(layer.get_input(0).name)
    return layer is not None and layer.type.name == "DEQUANTIZE" and layer.get_input(0).dtype.name == "INT8"


def _tensors(count: int, get: Any) -> list[Any]:
    return [get(i) for i in range(count)]


def _weight_bytes(network: Any) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for layer in layers_of(network):
        if layer.type.name == "CONSTANT":
            tensor = layer.get_output(0)
            sizes[tensor.dtype.name] += int(math.prod(tensor.shape) * tensor.dtype.itemsize)
    return dict(sizes)


def inspect(library: Library, plan: memoryview, precision: Mapping[str, str], *, whole: bool = False) -> dict[str, Any]:
    """Return the engine inspector's findings, or the reason if no GPU here can load the plan.

    ``whole``: in int8, the matmuls must be in int8 too, not the weights only.

    Raises:
        EngineBuildError: No layer of the engine computes in a type of ``precision``.
    """
    with library.listening() as messages:
        try:
            runtime = library.module.Runtime(library.logger)
            if hasattr(runtime, "engine_host_code_allowed"):  # host code of a version-compatible plan
                runtime.engine_host_code_allowed = True
            engine = runtime.deserialize_cuda_engine(plan)
        except TypeError:  # the bindings raise it for a null pointer; the reason is in the log
            engine = None
    if engine is None:
        return {"run": False, "reason": messages[0] if messages else "the engine could not be loaded here"}
    information = engine.create_engine_inspector().get_engine_information(library.module.LayerInformationFormat.JSON)
    layers = json.loads(information).get("Layers", [])
    text = [layer if isinstance(layer, str) else json.dumps(layer) for layer in layers]
    types = [layer if isinstance(layer, str) else json.dumps(_without_names(layer)) for layer in layers]
    wanted = [_TYPES[arithmetic_of(precision)]]
    wanted += ["INT8"] * (whole and precision["weights"] == "int8")
    computing = {name: sum(bool(_INSPECTED[name].search(layer)) for layer in types) for name in wanted}
    for name, count in computing.items():
        if not count:
            raise EngineBuildError(
                f"asked for {precision['weights']}, but no layer of the engine ({len(text)}) has a tensor in {name}"
            )
    return {
        "run": True,
        "layers": len(text),
        **{f"in_{name}": count for name, count in computing.items()},
        "fused_attention": sum("_mha" in layer for layer in text),
    }


def _without_names(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _without_names(value) for key, value in found.items() if key not in _NAMED}
    return [_without_names(value) for value in found] if isinstance(found, list) else found
