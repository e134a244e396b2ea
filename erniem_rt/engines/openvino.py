"""OpenVINO on a CPU: the same graphs as in ONNX Runtime, compiled once and kept in a cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from erniem_rt.engines.onnxruntime import Shrinking
from erniem_rt.errors import ArtifactError, EngineError, EngineUnavailableError, InvalidInputError
from erniem_rt.files import FileRecord, check_hash, check_size, hash_file, require_utf_8
from erniem_rt.machine import cpu_class
from erniem_rt.manifest import TensorSpec
from erniem_rt.processes import keep_for_good, no_fork, renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from erniem_rt.engines.base import GraphOptions
    from erniem_rt.manifest import Manifest

__all__ = ["OpenVINOEngine", "import_openvino"]

_HINTS = {"auto": "f32", "fp32": "f32", "bf16": "bf16"}
_TELEMETRY = "openvino_telemetry"
_CACHE_VARIABLE = "ERNIEM_RT_CACHE"
_RECORD = "compiled.json"
# Seconds after which a folder that was begun and not finished belongs to a process that was killed.
_ABANDONED = 3600


class OpenVINOEngine:
    """An ONNX graph, compiled by OpenVINO for this CPU.

    Args:
        path: The graph.
        options: ``precision`` is the floating-point type; ``"auto"`` is fp32.
        manifest: Lists the files of the graph and their hashes.
        checked: Waits until the files are compared with the manifest, and raises what that found. Only a model that was
            compiled from checked files is kept.
    """

    def __init__(self, path: Path, *, options: GraphOptions, manifest: Manifest, checked: Callable[[], object]) -> None:
        with no_fork():
            ov = import_openvino()
            core = ov.Core()
            _check_precision(core, options.precision)
            self._model: Any = _compile(core, path, options, _Cache(path, options, manifest, ov), checked)
        self.inputs = tuple(map(_spec, self._model.inputs))
        self.outputs = tuple(map(_spec, self._model.outputs))
        self._memory = Shrinking(options.shrink_memory)
        self._owing = False
        # Requests that no run holds: each run has one to itself.
        self._requests: list[Any] = []
        renew_after_fork(self)

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Compute ``outputs`` in the order given; :class:`EngineError` if OpenVINO cannot."""
        model = self._model
        if model is None:
            raise InvalidInputError("the engine is closed; open the artifact again.")
        try:
            try:
                request = self._requests.pop()
            except IndexError:
                request = model.create_infer_request()
            found = request.infer(dict(feeds), share_inputs=True, share_outputs=True)
            results = [np.array(found[name]) for name in outputs]  # copies: the next run overwrites the request's own
            del found
            if self._memory.after(feeds) or self._owing:
                del request
                self._give_back(model)
            elif self._model is model:  # and not closed meanwhile
                self._requests.append(request)
        # What OpenVINO raises is RuntimeError for the most part, but not all of it.
        except Exception as error:
            raise EngineError(
                f"openvino failed on cpu: {_reason(error)}. If memory ran out, give it fewer or shorter rows at once "
                "(a smaller batch_size), or more memory."
            ) from error
        return results

    def _give_back(self, model: Any) -> None:
        """Give memory back now or, where another thread's run is under way and holds it, after the next run."""
        self._requests.clear()
        try:
            model.release_memory()
        except RuntimeError:
            self._owing = True
        else:
            self._owing = False

    def close(self) -> None:
        """Drop the model; a run under way holds its own reference until it is done."""
        self._model = None
        self._requests = []

    def after_fork(self) -> None:
        """Close without freeing: OpenVINO's threads stayed in the parent."""
        keep_for_good((self._model, self._requests))
        self.close()


def import_openvino() -> Any:
    """The module, imported without its telemetry; :class:`EngineUnavailableError` if it is not installed."""
    if "openvino" not in sys.modules and _TELEMETRY not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # OpenVINO then does without
        try:
            return _imported()
        finally:
            del sys.modules[_TELEMETRY]
    return _imported()


def _imported() -> Any:
    try:
        import openvino
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise
        raise EngineUnavailableError(
            'OpenVINO, for engine="openvino" and for precision="bf16" on a CPU, is not installed: '
            'pip install "erniem-rt[openvino]".'
        ) from error
    return openvino


def _check_precision(core: Any, precision: str) -> None:
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EngineUnavailableError(
            f"precision='bf16' needs a CPU with AVX-512 BF16 or AMX, and this one is {cpu_class()}: leave precision "
            "out."
        )


def _compile(core: Any, path: Path, options: GraphOptions, cache: _Cache, checked: Callable[[], object]) -> Any:
    require_utf_8(path)
    settings = {
        # Always said: on a CPU that has bf16, OpenVINO would compute in it.
        "INFERENCE_PRECISION_HINT": _HINTS[options.precision],
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        # It would choose among all CPUs, be they this process's or not.
        "ENABLE_CPU_PINNING": False,
    }
    try:
        return cache.compiled(lambda folder: core.compile_model(path, "CPU", settings | folder), checked)
    except (MemoryError, ArtifactError):
        raise
    except Exception as error:
        raise ArtifactError(
            f"{path} cannot be compiled by openvino {cache.version}: {_reason(error)}. Open it with "
            "engine='onnxruntime', or export again."
        ) from error


class _Cache:
    """Folders with compiled models, one folder per model: the blob that OpenVINO wrote, and a record of its hash.

    OpenVINO looks at the graph's path and time of change alone, and takes a blob as it is. So a folder is named by all
    that a blob depends on, the hashes of the artifact's files first, and a blob is used if it is what was written.
    """

    def __init__(self, path: Path, options: GraphOptions, manifest: Manifest, ov: Any) -> None:
        self.version = ov.__version__.partition("-")[0]
        self._verify = options.verify
        self._named = options.cache is not None
        self._folders = list(_folders(options.cache, path.parent))
        files = {name: manifest.files[name] for name in sorted(manifest.files) if name.startswith(manifest.artifact)}
        self._weights = sum(record.size for record in files.values())
        times = [path.with_name(Path(name).name).stat().st_mtime_ns for name in files]
        self._family = f"{path.stem}-{_digest(path, cpu_class(), self._verify)[:16]}"
        # A blob does not depend on threads, and has the same content in fp32 and bf16.
        content = [[name, record.sha256, record.size] for name, record in files.items()]
        self._name = f"{self._family}-{_digest(content, times, ov.__version__)[:16]}"

    def compiled(self, compile_with: Callable[[dict[str, str]], Any], checked: Callable[[], object]) -> Any:
        """The model from a cache folder, or else compiled and, if there is a folder for it, kept there."""
        for folder in self._folders:
            # os.path's: it is False where a folder may not be read.
            if os.path.isdir(entry := folder / self._name):  # noqa: PTH112
                if self._is_whole(entry):
                    model = compile_with({"CACHE_DIR": str(entry)})
                    if model.get_property("LOADED_FROM_CACHE"):
                        return model
                shutil.rmtree(entry, ignore_errors=True)
        problem: OSError | None = None
        for folder in self._folders:
            try:
                return self._kept(folder, compile_with, checked)
            except OSError as error:
                problem = error
        if problem is not None and self._named:
            warnings.warn(
                f"the compiled model was not kept in {self._folders[0]}: {problem.strerror or problem}. The next start "
                "compiles again; give another folder as cache, or cache=False.",
                stacklevel=2,
            )
        return compile_with({"CACHE_DIR": ""})

    def _is_whole(self, entry: Path) -> bool:
        try:
            name, fields = json.loads((entry / _RECORD).read_text("utf-8"))
            blob, record = entry / name, FileRecord(**fields)
            check_size(blob, record.size)
            if self._verify:
                check_hash(blob, record, os.cpu_count() or 1)
        except (OSError, ValueError, TypeError, RecursionError, ArtifactError):
            return False
        return True

    def _kept(self, folder: Path, compile_with: Callable[[dict[str, str]], Any], checked: Callable[[], object]) -> Any:
        """Compile into a folder that takes its name when all is in it; :class:`OSError` where that cannot be begun."""
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < 2 * self._weights:
            raise OSError(None, "the disk is nearly full")
        part = folder / f".{self._family}-{uuid.uuid4().hex}"
        part.mkdir()
        try:
            model = compile_with({"CACHE_DIR": str(part)})
            checked()
            with contextlib.suppress(OSError, ValueError):  # a blob that was not written, or another process's entry
                (blob,) = part.glob("*.blob")
                (part / _RECORD).write_text(json.dumps([blob.name, vars(hash_file(blob))]), "utf-8")
                part.replace(folder / self._name)
                self._clear(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return model

    def _clear(self, folder: Path) -> None:
        """Remove what is left of this artifact as it was before, of other versions of OpenVINO, of killed processes."""
        for other in folder.glob(f"{self._family}-*"):
            if other.name != self._name:
                shutil.rmtree(other, ignore_errors=True)
        for begun in folder.glob(f".{self._family}-*"):
            with contextlib.suppress(OSError):
                if time.time() - begun.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(begun, ignore_errors=True)


def _folders(cache: str | os.PathLike[str] | bool | None, beside: Path) -> Iterator[Path]:
    """Where compiled models are looked for and kept, the first that can be written."""
    if cache is None:
        cache = os.environ.get(_CACHE_VARIABLE, True)
        if cache in ("", "0"):
            cache = False
    if cache is False:
        return
    if cache is not True:
        yield Path(cache)
        return
    yield beside / ".erniem-rt"
    with contextlib.suppress(RuntimeError):  # of a user without a home
        yield _user_folder()


def _user_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "erniem-rt/cache"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/erniem-rt"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erniem-rt"


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _reason(error: Exception) -> str:
    """What an error says in the end, without where in OpenVINO's source it was raised, and without a full stop."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return (told or [type(error).__name__])[-1].rstrip(".")


def _spec(port: Any) -> TensorSpec:
    """The model's own word on one input or output."""
    return TensorSpec(
        name=port.any_name,
        dtype=str(port.element_type.to_dtype()),
        shape=tuple("?" if axis.is_dynamic else axis.get_length() for axis in port.partial_shape),
    )
