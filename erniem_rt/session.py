"""One exported model: arrays in, arrays out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from erniem_rt.batching import LengthBucketing, are_by_row
from erniem_rt.checks import require_choice, require_flag
from erniem_rt.engines import (
    Device,
    EngineName,
    GraphOptions,
    PlanOptions,
    PrecisionName,
    check_signature,
    check_suffix,
    choose_engine,
    device_for,
    half_of,
    is_plan,
    open_engine,
    open_plan,
)
from erniem_rt.errors import ArtifactError, EngineUnavailableError, InvalidInputError
from erniem_rt.files import as_folder, as_path
from erniem_rt.locations import find_artifact, manifest_of
from erniem_rt.machine import threads_or_default, warn_of_cpu
from erniem_rt.manifest import HEADS, Manifest, weights_name
from erniem_rt.processes import Workers, check_gpu, renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import ArrayLike, NDArray

    from erniem_rt.engines import Engine
    from erniem_rt.engines.tensorrt import TensorRTEngine
    from erniem_rt.files import FileRecord
    from erniem_rt.manifest import Limits, TensorSpec

_KINDS = ("an ONNX graph", "a TensorRT plan")
_USE_TOKENIZER = "Use the tokenizer that was exported with this artifact."


class SessionOptions(TypedDict, total=False):
    """The options of :class:`Session`."""

    engine: str
    precision: str
    device: str | None
    threads: int | None
    spinning: bool | None
    shrink_memory: bool | None
    share_weights: bool
    cache: str | os.PathLike[str] | bool | None
    cuda_graphs: bool | None
    verify: bool
    trust_plan: bool
    runtime_cache: str | os.PathLike[str] | None


class Session:
    """A loaded artifact. Safe to share between threads; a context manager.

    A forked child opens the artifact again, with the same options, at its first run. A pickle has the path and the
    options; unpickling opens the artifact again. Both refuse files that differ from this session's.

    Args:
        path: The folder that was exported; ``HEAD.onnx``, its manifest ``HEAD.json`` or the TensorRT plan ``HEAD.plan``
            in it; or the hub id of such a folder (with ``pip install "erniem-rt[hub]"``).
        engine: the engine of a graph: ``"onnxruntime"``, ``"openvino"`` (on a CPU, with
            ``pip install "erniem-rt[openvino]"``), or ``"auto"``: an installed one, chosen by the class of CPU and the
            artifact (see docs/engines.md). ``"tensorrt"`` is for plans.
        precision: floating-point type of a graph on a CPU; for an int8 graph, the type between its int8 matmuls.
            ``"fp32"``, or ``"bf16"``, which needs OpenVINO, a CPU with bf16, and an artifact that passed the gate in
            bf16 (``manifest.proven``). ``"auto"`` uses bf16 only if the graph is in bf16.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; by default the CPU for a graph and the first GPU for a plan. A
            missing device is an error.
        threads: threads of one run on a CPU. None: the smallest of the CPUs that this process may run on, its cgroups'
            CPU quota in whole CPUs, and ``OMP_NUM_THREADS``.
        spinning: whether idle threads keep a CPU busy until there is work. None: for 0.2 ms, then they sleep (never
            before onnxruntime 1.30); True: as long as onnxruntime does by default; False: never. For a graph, in ONNX
            Runtime.
        shrink_memory: when to free the working memory of a run. None: when a run of a quarter of its size or less
            follows a large run; True: after every run; False: when the session is closed. For a graph on a CPU.
        share_weights: compute on the weights in the mapped file. Processes that serve the same model then share them in
            memory, and start sooner. Otherwise every process copies them into a layout with faster matmuls. For a graph
            on a CPU, in ONNX Runtime.
        cache: folder where OpenVINO keeps the compiled model for the next start. None: the environment variable
            ``ERNIEM_RT_CACHE``, otherwise ``.erniem-rt`` beside the artifact or, if that is not writable, the user's
            cache folder; False: none. The compiled model is as large as the artifact and holds its weights.
        cuda_graphs: record the work on a GPU per shape and replay it, which is faster for small batches. A plan does so
            unless this is False. A graph on ``cuda`` does so if this is True, for the first 16 shapes that repeat; runs
            then take turns. Packed graphs cannot: their work depends on the mask.
        verify: compare the hash of every file with the manifest, in another thread while the engine loads. If False,
            compare sizes only. A plan is code: its SHA-256 is always compared.
        trust_plan: run a plan that is not in its manifest with its SHA-256, for example one that you built yourself.
            TensorRT decides whether it fits this GPU and this version.
        runtime_cache: a file for the kernels that TensorRT for RTX compiles for a plan. It is read now if it exists,
            and written by :meth:`close`. It holds code: use one that nobody else can write to.

    Attributes:
        manifest: The artifact's manifest.
        limits: The bounds on ids and rows: the manifest's, but for a plan ``limits.max_length`` is at most the longest
            row of its profiles.
        engine: The engine: ``"onnxruntime"``, ``"openvino"`` or ``"tensorrt"``.
        precision: The floating-point type that it computes in, ``"fp32"``, ``"fp16"`` or ``"bf16"``; for an int8 graph,
            the type between its int8 matmuls.
        packed: Whether outputs are zero at padding (see :meth:`run`).
        threads: Threads of one run on a CPU.

    Raises:
        ArtifactError: a file is missing, damaged, changed, or does not fit its manifest.
        EngineUnavailableError: the engine's package or the device is missing, or the device cannot compute the graph.
        EngineError: the plan does not fit into the GPU's memory.
        InvalidInputError: an argument is invalid, or does not apply to this kind of artifact.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        engine: str = "auto",
        precision: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        spinning: bool | None = None,
        shrink_memory: bool | None = None,
        share_weights: bool = False,
        cache: str | os.PathLike[str] | bool | None = None,
        cuda_graphs: bool | None = None,
        verify: bool = True,
        trust_plan: bool = False,
        runtime_cache: str | os.PathLike[str] | None = None,
    ) -> None:
        wanted = None if device is None else Device.parse(device)
        require_choice("engine", engine, EngineName)
        require_choice("precision", precision, PrecisionName)
        for name, flag in (("share_weights", share_weights), ("verify", verify), ("trust_plan", trust_plan)):
            require_flag(name, flag)
        require_flag("cuda_graphs", cuda_graphs, optional=True)
        self.threads = threads_or_default(threads)
        path, self.manifest = locate(find_artifact(path))
        self._path = path.absolute()  # the session may be opened again from another working directory
        self._device = device_for(self._path, wanted)
        self._stamps = self._files_now()
        self.limits, self.packed = self.manifest.limits, self.manifest.packed
        options = GraphOptions(
            device=self._device,
            engine=engine,
            precision=precision,
            threads=self.threads,
            spinning=require_flag("spinning", spinning, optional=True),
            shrink_memory=require_flag("shrink_memory", shrink_memory, optional=True),
            share_weights=share_weights,
            cache=cache if cache is None or isinstance(cache, bool) else as_folder("cache", cache),
            cuda_graphs=bool(cuda_graphs),
            verify=verify,
        )
        if is_plan(self._path):
            _refuse(
                self._path,
                "ONNX graphs",
                engine=engine not in ("auto", "tensorrt") and engine,
                precision=precision != "auto" and precision,
                cache=cache,
                share_weights=share_weights,
                spinning=spinning,
                shrink_memory=shrink_memory,
            )
            self.engine = "tensorrt"
            of_plan = PlanOptions(
                device=self._device,
                cuda_graphs=cuda_graphs is not False,
                verify=verify,
                trust=trust_plan,
                runtime_cache=runtime_cache,
            )
            plan = load_plan(self._path, self.manifest, threads, of_plan)
            self._engine: Engine | None = plan
            self.limits = replace(self.limits, max_length=min(plan.max_length, self.limits.max_length))
            self.packed = True
        else:
            _refuse(self._path, "TensorRT plans", trust_plan=trust_plan, runtime_cache=runtime_cache)
            if self._device.kind == "cpu":
                warn_of_cpu(self.manifest.cpu)
            self.engine = choose_engine(self._path, self.manifest, options)
            self._graph_options = replace(options, engine=self.engine)
            self._engine = load_graph(self._path, self.manifest, self._graph_options, verify)
        self.precision = _computed_in(self.manifest, self.engine, precision)
        self._opening = Lock()
        self._outputs = [spec.name for spec in self.manifest.outputs]
        self._closed = False
        self._options: dict[str, Any] = {
            "engine": engine,
            "precision": precision,
            "device": device,
            "threads": threads,
            "spinning": spinning,
            "shrink_memory": shrink_memory,
            "share_weights": share_weights,
            "cache": options.cache,
            "cuda_graphs": cuda_graphs,
            "verify": verify,
            "trust_plan": trust_plan,
            "runtime_cache": None if runtime_cache is None else as_path("runtime_cache", runtime_cache).absolute(),
        }
        renew_after_fork(self)

    def run(
        self, inputs: Mapping[str, ArrayLike | None] | None = None, /, **named: ArrayLike | None
    ) -> dict[str, NDArray[Any]]:
        """Run one batch; inputs come by keyword, as one mapping, or both. None means missing.

        * ``input_ids``: any integer dtype, ``(batch, sequence)``, for head ``mc`` ``(batch, choices, sequence)``;
          ids from 0 to ``vocab_size - 1``, rows of at most ``max_length`` (see :attr:`limits`).
        * ``attention_mask``: same shape, 1 where to attend and 0 elsewhere, any real dtype or bool.
          By default, tokens equal to ``pad_token_id`` are padding.

        Graphs exported with further inputs also take, with the same defaults as the reference:
        ``position_ids`` (shape of the ids; 0 to ``max_length - 1``; default 0, 1, 2 …), ``head_mask``
        (``(layers, heads)``, real; default ones), ``inputs_embeds`` (``(batch, sequence, hidden)``, real, instead of
        ``input_ids``; the mask's default is then all ones).

        Returns the outputs of the manifest by name; does not change the given arrays. A plan and a packed graph give
        zeros at padding, except at the first position of a row and in rows of padding only.

        Raises :class:`InvalidInputError`, and :class:`EngineError` if the engine fails, for example out of memory.
        """
        given = _merged(inputs, named)
        self._require_open()
        feeds = prepare(self.manifest, given, longest=self.limits.max_length)
        found = self._opened().run(feeds, self._outputs)
        return dict(zip(self._outputs, found, strict=True))

    def run_all(self, batches: Iterable[Mapping[str, ArrayLike | None]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Run many batches like :meth:`run`, in their order.

        Reads each batch only when its outputs are requested.
        """
        return map(self.run, batches)

    @property
    def lanes(self) -> int:
        """The number of batches that :meth:`run_all` computes at once: 1."""
        warnings.warn("Session.lanes is always 1 and will be removed.", DeprecationWarning, stacklevel=2)
        return 1

    @property
    def path(self) -> Path:
        """The artifact's path: ``HEAD.onnx`` or ``HEAD.plan``."""
        return self._path

    @property
    def device(self) -> str:
        """Where it computes: ``"cpu"`` or ``"cuda:N"``."""
        return str(self._device)

    def with_threads(self, threads: int) -> Session:
        """Open the same artifact once more, with so many threads for a run; its weights are then in memory twice.

        Raises:
            ArtifactError: The files are not those of this session.
        """
        self._require_open()
        changed = self._files_now() != self._stamps
        options = {**self._options, "engine": self.engine, "threads": threads, "verify": changed}
        return _unpickled(type(self), self._path, options, self.manifest.files)

    def close(self) -> None:
        """Free the model after runs in other threads finish. May be called twice."""
        with self._opening:
            self._closed = True
            if self._engine is not None:
                self._engine.close()

    def _files_now(self) -> dict[str, tuple[int, ...] | None]:
        return self.manifest.stamps(manifest_of(self._path).parent)

    def _require_open(self) -> None:
        if self._closed:
            raise InvalidInputError(f"the session on {self._path} is closed; open it again.")

    def _opened(self) -> Engine:
        """Return the engine; open it again in a forked child."""
        engine = self._engine
        if engine is None:
            with self._opening:
                self._require_open()
                if self._engine is None:
                    check_gpu(self._device)
                    self._engine = self._open_again()
                engine = self._engine
        return engine

    def _open_again(self) -> Engine:
        """Open the graph again; verify its files if they changed since the first time."""
        changed = self._files_now() != self._stamps
        try:
            return load_graph(self._path, self.manifest, self._graph_options, verify=changed)
        except ArtifactError as error:
            if not changed:
                raise
            raise ArtifactError(
                f"{self._path} has to be read again, and its files are not those that this session was opened on: "
                f"open a new session, in the parent if this process was forked. {error}"
            ) from error

    def after_fork(self) -> None:
        """Reset the state in a forked child, before any other code runs there."""
        self._opening = Lock()
        self._engine = None

    def __reduce__(self) -> tuple[Callable[..., Session], tuple[object, ...]]:
        self._require_open()
        return _unpickled, (type(self), self._path, self._options, self.manifest.files)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        facts = f"head={self.manifest.head!r}, device={str(self._device)!r}, engine={self.engine!r}"
        return f"Session({str(self._path)!r}, {facts})"


def _unpickled(cls: type[Session], path: Path, options: dict[str, Any], files: Mapping[str, FileRecord]) -> Session:
    session = cls(path, **options)
    if session.manifest.files != files:
        session.close()
        raise ArtifactError(
            f"{path} is not the artifact of the pickled session: its files differ. Restore them, or pickle a "
            "session on the new files."
        )
    return session


def locate(path: Path) -> tuple[Path, Manifest]:
    """Return the artifact and its manifest, from the path of either."""
    if path.suffix != ".json":
        check_suffix(path)
        if not path.exists():
            raise ArtifactError(f"{path} is missing. Check the path, or export with erniem-export.")
    where = manifest_of(path)
    manifest = Manifest.load(where)
    artifact = _artifact_of(manifest, path, where)
    check_suffix(artifact)
    if path.suffix != ".json" and artifact.absolute() != path.absolute():
        raise ArtifactError(
            f"{where} describes {artifact.name}, not {path.name}. Exported files keep their names: restore them or "
            "export again."
        )
    return artifact, manifest


def _artifact_of(manifest: Manifest, path: Path, where: Path) -> Path:
    """Return the artifact of the manifest at ``where``: the plan if ``path`` is a plan, otherwise the graph."""
    if not is_plan(path):
        return where.parent / manifest.artifact
    if manifest.plan is None:
        raise ArtifactError(f"{where} describes no plan, so {path.name} cannot run: export again with --engine.")
    return path.with_name(manifest.plan.file)


def _refuse(path: Path, purpose: str, **options: object) -> None:
    for name, value in options.items():
        if value not in (None, False):
            raise InvalidInputError(f"{name} applies to {purpose} only; {path} is {_KINDS[is_plan(path)]}. Remove it.")


def _computed_in(manifest: Manifest, engine: str, precision: str) -> str:
    """Return a session's floating-point type: the given one, or else the graph's, but fp32 in OpenVINO."""
    if precision != "auto":
        return precision
    if engine == "openvino":
        return "fp32"
    facts = manifest.precision if engine != "tensorrt" or manifest.plan is None else manifest.plan.precision
    return half_of(facts) or "fp32"


def _merged(inputs: Mapping[str, object] | None, named: Mapping[str, object]) -> dict[str, object]:
    if inputs is None:
        return dict(named)
    if not isinstance(inputs, Mapping):
        raise InvalidInputError(
            f"run takes a mapping from input names to arrays, got {type(inputs).__name__}; "
            "for one array write run(input_ids=...)."
        )
    twice = sorted(inputs.keys() & named.keys())
    if twice:
        raise InvalidInputError(f"given twice: {', '.join(twice)}, in the mapping and as a keyword. Give each once.")
    return {**inputs, **named}


def load_graph(path: Path, manifest: Manifest, options: GraphOptions, verify: bool) -> Engine:
    """Import and open the engine while another thread verifies the files."""
    # Sizes first: reading past the end of a mapped file that was truncated kills the process.
    others = () if manifest.plan is None else (manifest.plan.file,)
    folder = manifest_of(path).parent
    manifest.verify(folder, hashes=False, without=others)
    with Workers(1) as pool:
        hashes = pool.submit(manifest.verify, folder, without=others) if verify else None
        try:
            checked = (lambda: None) if hashes is None else hashes.result
            engine = open_engine(path, manifest, options, checked)
        except ArtifactError as error:
            if hashes is not None:
                hashes.result()  # a changed file explains more
            if (
                options.device.kind == "cpu"
                and options.engine == "onnxruntime"
                and "bf16" in manifest.precision.values()
            ):
                raise EngineUnavailableError(
                    f"{path} is in bfloat16, and ONNX Runtime has no bfloat16 arithmetic on a CPU: open it with "
                    'device="cuda" or, with pip install "erniem-rt[openvino]", engine="openvino", or export with '
                    "--fp16 or in float32."
                ) from error
            raise
        try:
            if hashes is not None:
                hashes.result()
            check_signature(path, manifest, engine.inputs, engine.outputs)
        except ArtifactError:
            engine.close()
            raise
    if options.device.kind == "cpu" and manifest.packed and are_by_row(manifest):
        return LengthBucketing(engine, manifest)
    return engine


def load_plan(path: Path, manifest: Manifest, threads: int | None, options: PlanOptions) -> TensorRTEngine:
    """Open a plan, which verifies its own file; the graph beside it may be missing."""
    if threads is not None:
        raise InvalidInputError(f"threads applies to a CPU only; {path} runs on a GPU. Remove it.")
    graph = {manifest.artifact, weights_name(manifest.artifact)}
    unchecked = {*graph, path.name} if options.trust else graph
    manifest.verify(path.parent, hashes=False, without=unchecked)
    if options.verify:
        manifest.verify(path.parent, without={*graph, path.name})
    return open_plan(path, manifest, options)


def prepare(manifest: Manifest, given: Mapping[str, object], *, longest: int | None = None) -> dict[str, NDArray[Any]]:
    """Return C-contiguous arrays for every input of the graph, in its dtypes; never changes the given arrays.

    A value of None counts as missing. ``longest`` is the longest row of a plan, which may be shorter than the model's.
    Raises :class:`InvalidInputError`.
    """
    given = {name: value for name, value in given.items() if value is not None}
    specs = {spec.name: spec for spec in manifest.inputs}
    main = specs["input_ids"] if "input_ids" in specs else specs["inputs_embeds"]
    _check_names(given, specs, main.name)

    array = _as_array(main.name, given[main.name])
    if array.size == 0:
        raise InvalidInputError(
            f"{main.name} is empty (shape {array.shape}): at least one row of at least one token is needed."
        )
    _check_shape(main, array, main.shape)
    _check_length(manifest, main.name, array, longest)
    feeds = {main.name: _convert(main, array, manifest.limits)}

    sizes = dict(zip(main.shape, array.shape, strict=True))
    for name, spec in specs.items():
        if name == main.name:
            continue
        shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape)
        if name in given:
            array = _as_array(name, given[name])
            _check_shape(spec, array, shape)
            feeds[name] = _convert(spec, array, manifest.limits)
        else:
            feeds[name] = _default(spec, shape, feeds, manifest.limits)
    return feeds


def _check_names(given: Mapping[str, object], specs: Mapping[str, TensorSpec], main: str) -> None:
    for name in given:
        if name not in specs:
            hint = " ErnieM has no token types: leave them out." if name == "token_type_ids" else ""
            raise InvalidInputError(f"unknown input {name!r}; this artifact takes {', '.join(specs)}.{hint}")
    if main not in given:
        raise InvalidInputError(f"input {main!r} is missing; this artifact takes {', '.join(specs)}.")


def _as_array(name: str, value: object) -> NDArray[Any]:
    try:
        array = np.asarray(value)
        if array.dtype == object and array.size:  # nested rows, or Python numbers
            array = np.array(array.tolist())
        return array
    # RuntimeError: a torch tensor that is not on the CPU or requires gradients.
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(
            f"{name} cannot be read as one array: {reason}. Give a numpy array or nested lists whose rows are "
            "padded to the same length."
        ) from error


def _check_shape(spec: TensorSpec, array: NDArray[Any], shape: tuple[int | str, ...]) -> None:
    """Compare the array's shape with ``shape``, where a name matches any size."""
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        expected = ", ".join(map(str, shape))
        raise InvalidInputError(
            f"{spec.name} must have shape ({expected}), got {array.shape}. The graph declares "
            f"({', '.join(map(str, spec.shape))}); a single row needs all these axes too."
        )


def _check_length(manifest: Manifest, name: str, array: NDArray[Any], longest: int | None) -> None:
    length = array.shape[len(HEADS[manifest.head].axes) - 1]
    limit = manifest.limits.max_length
    who, remedy = "model", ""
    if longest is not None and longest < limit:
        who, limit, remedy = "plan", longest, ", or build it with longer profiles (--profile)"
    if length > limit:
        raise InvalidInputError(
            f"{name} has rows of {length} positions, and this {who} takes at most {limit}: truncate or split the "
            f"text{remedy}."
        )


def _convert(spec: TensorSpec, array: NDArray[Any], limits: Limits) -> NDArray[Any]:
    """Check the values of the input, then convert to the graph's dtype."""
    if spec.name == "input_ids":
        _check_range(spec.name, array, limits.vocab_size, _USE_TOKENIZER)
    elif spec.name == "position_ids":
        _check_range(spec.name, array, limits.max_length, "Positions count from 0 in every row.")
    elif spec.name == "attention_mask":
        _check_mask(spec.name, array)
    else:
        return _to_floats(spec, array)
    return np.ascontiguousarray(array, dtype=spec.dtype)


def _check_range(name: str, array: NDArray[Any], stop: int, hint: str) -> None:
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"{name} must be integers, got dtype {array.dtype}. {hint}")
    # Before conversion, in which a uint64 beyond int64 would become negative or even valid.
    if array.min() < 0 or array.max() >= stop:
        where, value = _first(array, (array < 0) | (array >= stop))
        raise InvalidInputError(f"{name}[{where}] is {value}; it must be from 0 to {stop - 1}. {hint}")


def _check_mask(name: str, array: NDArray[Any]) -> None:
    if array.dtype.kind not in "biuf":
        raise InvalidInputError(f"{name} must be 0 and 1 as integers, floats or booleans, got dtype {array.dtype}.")
    bad = (array != 0) & (array != 1)
    if bad.any():
        where, value = _first(array, bad)
        raise InvalidInputError(f"{name}[{where}] is {value}; it must be 1 to attend and 0 to ignore.")


def _to_floats(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind not in "biuf":
        raise InvalidInputError(f"{spec.name} must be real numbers, got dtype {array.dtype}.")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, dtype=spec.dtype)
    bad = ~np.isfinite(converted)
    if bad.any():
        where, value = _first(array, bad)
        raise InvalidInputError(f"{spec.name}[{where}] is {value}, which is not finite in {spec.dtype}.")
    return converted


def _first(array: NDArray[Any], bad: NDArray[np.bool_]) -> tuple[str, object]:
    """Return the index, as text, and the value of the first bad element."""
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    return ", ".join(map(str, index)), array[index]


def _default(
    spec: TensorSpec, shape: tuple[int, ...], feeds: Mapping[str, NDArray[Any]], limits: Limits
) -> NDArray[Any]:
    """Return the reference model's default of an optional input."""
    if spec.name == "attention_mask" and "input_ids" in feeds:
        attended: NDArray[Any] = feeds["input_ids"] != limits.pad_token_id
        return attended.astype(spec.dtype)
    if spec.name == "position_ids":
        return np.ascontiguousarray(np.broadcast_to(np.arange(shape[-1], dtype=spec.dtype), shape))
    return np.ones(shape, dtype=spec.dtype)
