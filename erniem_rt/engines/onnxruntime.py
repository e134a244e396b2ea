"""ONNX Runtime on CPU or CUDA: import, sessions and runs, also as CUDA graphs."""

from __future__ import annotations

import os
import re
import sys
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from erniem_rt.errors import ArtifactError, EngineError, EngineUnavailableError, InvalidInputError
from erniem_rt.files import require_utf_8
from erniem_rt.manifest import TensorSpec, weights_name
from erniem_rt.processes import keep_for_good, no_fork, renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from erniem_rt.engines import Device, GraphOptions

    Runner = Callable[[list[str], dict[str, NDArray[Any]]], list[NDArray[Any]]]

    Arrays = dict[str, "NDArray[Any]"]

    Key = tuple[Any, ...]


_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_INSTALL_GPU = 'pip install "erniem-rt[gpu]"'
# How long idle threads spin: long enough for the gap between two operators of a run.
_SPIN_US = "200"
_FIRST_WITH_SPIN_DURATION = (1, 30)
# Errors are raised; at a lower level onnxruntime would also write them to standard error.
_LOG_FATAL = 4
# Part of onnxruntime's errors if a library or the device fails, not the file.
_DEVICE_FAILED = re.compile(
    r"\b(?:cuda|cudnn|cublas\w*) (?:failure|error)\b|CUDA_PATH is set|Failed to load library|LoadLibrary failed",
    re.IGNORECASE,
)
# Part of onnxruntime's error for a graph that would partly run on the CPU.
_NO_CAPTURE = "graph capture"
# Part of onnxruntime's error for weights behind a link.
_OUTSIDE = "External data path"
# In onnxruntime's message when it cannot start a thread.
_NO_THREAD = "pthread_create failed"
# ONNX Runtime's names of the element types whose names differ from numpy's.
_NUMPY_NAMES = {"float": "float32", "double": "float64"}


class OrtEngine:
    """An ONNX graph in an ``onnxruntime.InferenceSession``."""

    def __init__(self, path: Path, options: GraphOptions, *, least: str | None = None) -> None:
        device = options.device
        with no_fork():
            ort = import_onnxruntime()
            _require_version(ort, least, path, device)
            if device.kind == "cuda":
                _require_cuda(ort)
            session = _create(ort, path, options)
        if device.kind == "cuda" and _CUDA not in session.get_providers():
            raise EngineUnavailableError(
                f"onnxruntime could not start CUDA on {device} and would have run on the CPU: check the NVIDIA "
                "driver and that CUDA and cuDNN are of the versions this onnxruntime-gpu was built for."
            )
        self.inputs = tuple(map(_spec, session.get_inputs()))
        self.outputs = tuple(map(_spec, session.get_outputs()))
        if device.kind == "cpu":
            runs: Any = ShrinkingRuns(ort, session, options.shrink_memory)
        else:
            runs = (GraphRuns if options.cuda_graphs else BoundRuns)(ort, session, device)
        self._run: Runner | None = runs.run
        self._device = device
        renew_after_fork(self)

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Compute ``outputs`` in the order given; :class:`EngineError` if onnxruntime cannot."""
        run = self._run
        if run is None:
            raise InvalidInputError("the engine is closed; open the artifact again.")
        try:
            return run(list(outputs), dict(feeds))
        # onnxruntime's errors have no common base class but Exception.
        except Exception as error:
            raise EngineError(
                f"onnxruntime failed on {self._device}: {_reason(error)}. If memory ran out, give it fewer or shorter "
                "rows at once (a smaller batch_size), or more memory."
            ) from error

    def close(self) -> None:
        """Drop the session; a run in progress keeps its own reference."""
        self._run = None

    def after_fork(self) -> None:
        """Close without freeing: onnxruntime would wait for its threads, which a forked child does not have."""
        keep_for_good(self._run)
        self._run = None


def _require_version(ort: Any, least: str | None, path: Path, device: Device) -> None:
    found = version_of(ort)
    if least is None or not found or found >= tuple(map(int, least.split("."))):
        return
    package = "onnxruntime-gpu" if device.kind == "cuda" else "onnxruntime"
    raise EngineUnavailableError(
        f"{path} needs onnxruntime {least} or newer, and {ort.__version__} may compute it wrongly: "
        f'pip install --upgrade "{package}>={least}".'
    )


def _require_cuda(ort: Any) -> None:
    available = ort.get_available_providers()
    if _CUDA in available:
        return
    plain, gpu = _installed("onnxruntime"), _installed("onnxruntime-gpu")
    if plain and gpu:
        raise EngineUnavailableError(
            f"device 'cuda' needs onnxruntime with CUDA, and onnxruntime {plain}, without it, lies over the files of "
            f"onnxruntime-gpu {gpu}: pip uninstall onnxruntime, then pip install --force-reinstall --no-deps "
            f"onnxruntime-gpu=={gpu}."
        )
    raise EngineUnavailableError(
        f"device 'cuda' needs onnxruntime with CUDA, and the one installed offers {', '.join(available)}: "
        f"{_INSTALL_GPU}."
    )


def _installed(package: str) -> str | None:
    """Return the version of a package, which the module does not show: both packages install the same one."""
    from importlib import metadata  # slow to import

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _session_options(ort: Any, wanted: GraphOptions) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    # Always set: by default onnxruntime pins its threads to CPUs, even outside this process's affinity mask.
    options.intra_op_num_threads = wanted.threads
    if wanted.spinning is None and version_of(ort) >= _FIRST_WITH_SPIN_DURATION:
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
    elif not wanted.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if wanted.share_weights:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _create(ort: Any, path: Path, wanted: GraphOptions) -> Any:
    require_utf_8(path)
    device, cuda_graphs, options = wanted.device, wanted.cuda_graphs, _session_options(ort, wanted)
    providers: list[Any] = [_CPU]
    # On a CPU the fused SkipLayerNormalization takes about 1.5 times as long as Add and LayerNormalization.
    disabled = ["SkipLayerNormFusion"]
    if device.kind == "cuda":
        capture = {"enable_cuda_graph": "1"} if cuda_graphs else {}
        providers, disabled = [(_CUDA, {"device_id": device.index, **capture}), _CPU], []
    try:
        # By path, not as bytes: only then are the external weights memory-mapped. enable_fallback=False: do not
        # switch to the CPU if the device fails.
        return ort.InferenceSession(
            str(path), options, providers=providers, disabled_optimizers=disabled, enable_fallback=False
        )
    except MemoryError:
        raise
    except Exception as error:
        reason = _reason(error)
        if cuda_graphs and _NO_CAPTURE in reason:
            raise ArtifactError(
                f"{path} cannot run as a CUDA graph: {reason}. Export with --target onnxruntime-cuda, or leave out "
                "cuda_graphs."
            ) from error
        # onnxruntime's message names the path, which may contain these words.
        if device.kind == "cuda" and _DEVICE_FAILED.search(reason.replace(str(path.parent), "")):
            raise EngineUnavailableError(f"onnxruntime could not use {device}: {reason}") from error
        if _NO_THREAD in reason:
            raise EngineError(
                f"onnxruntime could not start {options.intra_op_num_threads} threads: this system, container or user "
                "may have no more. Pass fewer threads, or end other processes."
            ) from error
        if _OUTSIDE in reason and (said := _about_links(path, ort.__version__)):
            raise ArtifactError(said) from error
        raise ArtifactError(
            f"{path} cannot be loaded by onnxruntime {ort.__version__}: {reason}. Restore the file or export again."
        ) from error


def _about_links(path: Path, version: str) -> str:
    """Return what to do about links that onnxruntime does not follow; empty if neither graph nor weights are one."""
    weights = path.with_name(weights_name(path.name))
    if not (path.is_symlink() or weights.is_symlink()):
        return ""
    copy = f"copy the files (cp -rL {path.parent} COPY) and open the copy"
    if path.resolve().parent == weights.resolve().parent:
        return (
            f"onnxruntime {version} does not open {weights}, a link as in a hub cache: install another version, as "
            f"pip install 'onnxruntime!=1.24.1' does, or {copy}."
        )
    return (
        f"{path} and {weights.name} are links into different folders, and onnxruntime {version} opens weights beside "
        f"the graph only: link their whole folder, or {copy}."
    )


def _reason(error: Exception) -> str:
    """Return the first line of an error's message, without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _spec(node: Any) -> TensorSpec:
    """Return the graph's declaration of one input or output (``tensor(int64)``, ``['batch', 'sequence']``)."""
    element = node.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(
        name=node.name,
        dtype=_NUMPY_NAMES.get(element, element),
        shape=tuple("?" if axis is None else axis for axis in node.shape),
    )


_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_FIRST_WITH_TELEMETRY = (1, 29)


def import_onnxruntime() -> Any:
    """Import onnxruntime, without telemetry unless the user set it; :class:`EngineUnavailableError` if not installed.

    Warns once if it was already imported without a choice on telemetry.
    """
    loaded = sys.modules.get("onnxruntime")
    if _TELEMETRY not in os.environ:
        os.environ[_TELEMETRY] = "1"
        if loaded is not None and version_of(loaded) >= _FIRST_WITH_TELEMETRY:
            warnings.warn(
                f"onnxruntime {loaded.__version__} was imported before erniem_rt could turn its telemetry off: it may "
                "send telemetry, and a process forked from this one may never end. Set ORT_DISABLE_TELEMETRY=1 before "
                "it is imported (0 if you want it on).",
                stacklevel=2,
            )
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise EngineUnavailableError(
            'Running an .onnx artifact needs the package onnxruntime: pip install "erniem-rt[ort]".'
        ) from error
    return onnxruntime


def version_of(ort: Any) -> tuple[int, ...]:
    """Return major and minor version; empty if unknown."""
    try:
        return tuple(map(int, ort.__version__.split(".")[:2]))
    except (AttributeError, ValueError):
        return ()


# onnxruntime frees a captured graph and its memory only with the session.
MOST_GRAPHS = 16

_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = "-1"


class BoundRuns:
    """Runs with IO binding: copies inputs to the device, and outputs back once all are computed."""

    def __init__(self, ort: Any, session: Any, device: Device) -> None:
        self._ort = ort
        self._session = session
        self._place = (device.kind, device.index)

    def run(self, outputs: list[str], feeds: Arrays) -> list[NDArray[Any]]:
        """Compute ``outputs``, in that order."""
        return self._run_once(outputs, feeds, None)

    def _run_once(self, outputs: list[str], feeds: Arrays, options: Any) -> list[NDArray[Any]]:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, self._on_device(array))
        for name in outputs:
            binding.bind_output(name, *self._place)
        return self._computed(binding, options)

    def _computed(self, binding: Any, options: Any) -> list[NDArray[Any]]:
        self._session.run_with_iobinding(binding, options)
        results: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return results

    def _on_device(self, array: NDArray[Any]) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array, *self._place)


@dataclass(frozen=True)
class _Graph:
    """One captured shape: the inputs at their fixed addresses, the binding, and the graph's number."""

    inputs: dict[str, Any]
    binding: Any
    options: Any


class GraphRuns(BoundRuns):
    """:class:`BoundRuns` as CUDA graphs: one per shape, captured at the shape's second run.

    A CUDA graph replays all kernels of one shape at fixed addresses with a single launch: for small batches, launches
    take most of the time.

    There are at most :data:`MOST_GRAPHS` graphs; other shapes run without one. Runs are serialized, since a graph has
    one set of addresses.
    """

    def __init__(self, ort: Any, session: Any, device: Device) -> None:
        super().__init__(ort, session, device)
        self._lock = threading.Lock()
        self._seen: dict[Key, list[tuple[tuple[int, ...], Any]]] = {}
        self._graphs: dict[Key, _Graph] = {}

    def run(self, outputs: list[str], feeds: Arrays) -> list[NDArray[Any]]:
        """Compute ``outputs``, in that order."""
        key = (*outputs, *((name, array.shape) for name, array in sorted(feeds.items())))
        with self._lock:
            graph = self._graphs.get(key)
            if graph is not None:
                for name, array in feeds.items():
                    graph.inputs[name].update_inplace(array)
            elif key in self._seen and len(self._graphs) < MOST_GRAPHS:
                graph = self._bound(outputs, feeds, self._seen.pop(key))
                self._graphs[key] = graph
            else:
                return self._observed(key, outputs, feeds)
            return self._computed(graph.binding, graph.options)

    def _observed(self, key: Key, outputs: list[str], feeds: Arrays) -> list[NDArray[Any]]:
        """Run without a graph, and record the outputs' shapes for the capture."""
        results = self._run_once(outputs, feeds, self._options(_NO_GRAPH))
        if len(self._graphs) < MOST_GRAPHS:
            self._seen[key] = [(array.shape, array.dtype) for array in results]
        return results

    def _bound(self, outputs: list[str], feeds: Arrays, shapes: list[tuple[tuple[int, ...], Any]]) -> _Graph:
        binding = self._session.io_binding()
        inputs = {name: self._on_device(array) for name, array in feeds.items()}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, (shape, dtype) in zip(outputs, shapes, strict=True):
            value = self._ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, *self._place)
            binding.bind_ortvalue_output(name, value)
        return _Graph(inputs, binding, self._options(str(len(self._graphs) + 1)))

    def _options(self, graph_id: str) -> Any:
        options = self._ort.RunOptions()
        options.add_run_config_entry(_GRAPH_ID, graph_id)
        return options


# Number of positions, padding included: after smaller runs, freeing memory saves less than allocating it again costs.
_LARGE = 4096
# Shrink after a run of at most 1/4 of the positions of the largest run since memory was last freed.
_SHARE = 4


class Shrinking:
    """Decides when to free memory: after every run, never, or (None) after a much smaller run than before."""

    def __init__(self, shrink: bool | None) -> None:
        self._shrink = shrink
        self._largest = 0

    def after(self, feeds: Mapping[str, NDArray[Any]]) -> bool:
        """Return whether to free memory after the run of ``feeds``."""
        if self._shrink is not None:
            return self._shrink
        mask = feeds.get("attention_mask")
        size = 0 if mask is None else mask.size
        # A race between threads is harmless: memory is freed once too often or one run late.
        if self._largest >= _LARGE and size * _SHARE <= self._largest:
            self._largest = size
            return True
        self._largest = max(self._largest, size)
        return False


class ShrinkingRuns:
    """Runs after which onnxruntime returns its arena's free memory to the system.

    Args:
        ort: The module onnxruntime.
        session: The onnxruntime session.
        shrink: See :class:`Shrinking`.
    """

    def __init__(self, ort: Any, session: Any, shrink: bool | None) -> None:
        self._session = session
        self._shrinking = Shrinking(shrink)
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, outputs: list[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute ``outputs``, in that order."""
        options = self._options if self._shrinking.after(feeds) else None
        results: list[NDArray[Any]] = self._session.run(outputs, feeds, options)
        return results
