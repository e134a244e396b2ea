"""OpenVINO on a CPU: runs the same graphs as ONNX Runtime, and caches compiled models in a folder."""

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
from erniem_rt.files import FileRecord, as_folder, check_hash, check_size, hash_file, require_utf_8
from erniem_rt.machine import cpu_class
from erniem_rt.manifest import TensorSpec
from erniem_rt.processes import keep_for_good, no_fork, renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from erniem_rt.engines import GraphOptions
    from erniem_rt.manifest import Manifest


_HINTS = {"auto": "f32", "fp32": "f32", "bf16": "bf16"}
_TELEMETRY = "openvino_telemetry"
_CACHE_VARIABLE = "ERNIEM_RT_CACHE"
_RECORD = "compiled.json"
# Age in seconds after which an unfinished cache folder is taken to be abandoned.
_ABANDONED = 3600


class OpenVINOEngine:
    """An ONNX graph, compiled by OpenVINO for this CPU.

    Args:
        path: The graph.
        options: ``precision`` is the floating-point type; ``"auto"`` is fp32.
        manifest: Lists the files of the graph and their hashes.
        checked: Waits until the files are verified, and raises if one differs. Only models compiled from verified files
            are cached.
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
        # Idle requests; each run uses one exclusively.
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
            with no_fork():  # a child of a fork during runs would wait for their threads when it opens a model
                found = request.infer(dict(feeds), share_inputs=True, share_outputs=True)
            results = [np.array(found[name]) for name in outputs]  # copies: the next run overwrites the arrays
            del found
            if self._memory.after(feeds) or self._owing:
                del request
                self._give_back(model)
            elif self._model is model:  # not closed meanwhile
                self._requests.append(request)
        # OpenVINO mostly raises RuntimeError, but not always.
        except Exception as error:
            raise EngineError(
                f"openvino failed on cpu: {_reason(error)}. If memory ran out, give it fewer or shorter rows at once "
                "(a smaller batch_size), or more memory."
            ) from error
        return results

    def _give_back(self, model: Any) -> None:
        """Free memory now or, if another thread's run still uses it, after the next run."""
        self._requests.clear()
        try:
            model.release_memory()
        except RuntimeError:
            self._owing = True
        else:
            self._owing = False

    def close(self) -> None:
        """Drop the model; a run in progress keeps its own reference."""
        self._model = None
        self._requests = []

    def after_fork(self) -> None:
        """Close without freeing: OpenVINO's threads do not exist in a forked child."""
        keep_for_good((self._model, self._requests))
        self.close()


def import_openvino() -> Any:
    """Import openvino without its telemetry; :class:`EngineUnavailableError` if it is not installed."""
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
        # Always set: by default OpenVINO computes in bf16 on a CPU that has it.
        "INFERENCE_PRECISION_HINT": _HINTS[options.precision],
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        # Pinning would ignore this process's affinity mask.
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
    """Cache folders, one per compiled model, each with OpenVINO's blob and a record of its hash.

    OpenVINO itself only compares the graph's path and modification time, and trusts any blob. So a folder's name has a
    digest of all that the blob depends on, such as the hashes of the artifact's files, and the blob's hash is checked.
    """

    def __init__(self, path: Path, options: GraphOptions, manifest: Manifest, ov: Any) -> None:
        self.version = ov.__version__.partition("-")[0]
        self._verify = options.verify
        cache = _from_environment() if options.cache is None else options.cache
        self._named = cache is not None
        self._folders = list(_folders(cache, path.parent))
        files = {name: manifest.files[name] for name in sorted(manifest.files) if name.startswith(manifest.artifact)}
        self._weights = sum(record.size for record in files.values())
        times = [path.with_name(Path(name).name).stat().st_mtime_ns for name in files]
        self._family = f"{path.stem}-{_digest(path, cpu_class(), self._verify)[:16]}"
        # A blob does not depend on the number of threads or the precision.
        content = [[name, record.sha256, record.size] for name, record in files.items()]
        self._name = f"{self._family}-{_digest(content, times, ov.__version__)[:16]}"

    def compiled(self, compile_with: Callable[[dict[str, str]], Any], checked: Callable[[], object]) -> Any:
        """Return the model from a cache folder, or compile it and cache it if possible."""
        for folder in self._folders:
            # os.path.isdir() returns False for a folder without read permission, where Path.is_dir() raises.
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
                "compiles again. Name another folder as cache, or leave cache out and set ERNIEM_RT_CACHE=0 for none.",
                stacklevel=2,
            )
        return compile_with({"CACHE_DIR": ""})

    def _is_whole(self, entry: Path) -> bool:
        try:
            name, fields = json.loads((entry / _RECORD).read_text("utf-8"))
            blob, record = entry / name, FileRecord(**fields)
            check_size(blob, record.size)
            if self._verify:
                check_hash(blob, record)
        except (OSError, ValueError, TypeError, RecursionError, ArtifactError):
            return False
        return True

    def _kept(self, folder: Path, compile_with: Callable[[dict[str, str]], Any], checked: Callable[[], object]) -> Any:
        """Compile into a temporary folder and rename it when complete; :class:`OSError` if it cannot be created."""
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < 2 * self._weights:
            raise OSError(None, "the disk is nearly full")
        part = folder / f".{self._family}-{uuid.uuid4().hex}"
        part.mkdir()
        try:
            model = compile_with({"CACHE_DIR": str(part)})
            checked()
            with contextlib.suppress(OSError, ValueError):  # no blob was written, or another process was first
                (blob,) = part.glob("*.blob")
                (part / _RECORD).write_text(json.dumps([blob.name, vars(hash_file(blob))]), "utf-8")
                part.replace(folder / self._name)
                self._clear(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return model

    def _clear(self, folder: Path) -> None:
        """Remove entries of earlier exports, of other versions of OpenVINO and of killed processes."""
        for other in folder.glob(f"{self._family}-*"):
            if other.name != self._name:
                shutil.rmtree(other, ignore_errors=True)
        for begun in folder.glob(f".{self._family}-*"):
            with contextlib.suppress(OSError):
                if time.time() - begun.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(begun, ignore_errors=True)


def _from_environment() -> Path | bool | None:
    """Return the cache that the environment variable names: None if it is not set, False for none."""
    named = os.environ.get(_CACHE_VARIABLE)
    if named is None:
        return None
    return named not in ("", "0") and as_folder(_CACHE_VARIABLE, named)


def _folders(cache: str | os.PathLike[str] | bool | None, beside: Path) -> Iterator[Path]:
    """Yield the folders to search for compiled models, of which the first writable one gets new ones."""
    if cache is False:
        return
    if cache is not None and cache is not True:
        yield Path(cache)
        return
    yield beside / ".erniem-rt"
    with contextlib.suppress(RuntimeError):  # the user has no home
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
    """Return the last line of an error's message that is not a position in OpenVINO's source, without a full stop."""
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return (reasons or [type(error).__name__])[-1].rstrip(".")


def _spec(port: Any) -> TensorSpec:
    """Return the model's declaration of one input or output."""
    return TensorSpec(
        name=port.any_name,
        dtype=str(port.element_type.to_dtype()),
        shape=tuple("?" if axis.is_dynamic else axis.get_length() for axis in port.partial_shape),
    )
