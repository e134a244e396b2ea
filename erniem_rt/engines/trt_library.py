"""A plan in TensorRT's hands: loaded, asked what it takes, and let go of in the right order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from erniem_rt._signature import check_signature
from erniem_rt.engines.cuda import Cuda, OutOfMemoryError
from erniem_rt.engines.trt_cache import RuntimeCache
from erniem_rt.engines.trt_checks import check_capability, check_header, import_library, install_command, read_plan
from erniem_rt.engines.trt_log import logger_of, reason
from erniem_rt.errors import ArtifactError, EngineError, InvalidInputError
from erniem_rt.manifest import TensorSpec
from erniem_rt.plan import Profile

if TYPE_CHECKING:
    from pathlib import Path

    from erniem_rt.engines.base import Device, PlanOptions
    from erniem_rt.manifest import Manifest
    from erniem_rt.plan import Plan

__all__ = ["LoadedPlan"]

# TensorRT's names of the element types, and numpy's.
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
_NO_MEMORY = ("out of memory", "outofmemory", "memoryallocation", "mem_alloc_failed")


class LoadedPlan:
    """A deserialised plan on a device.

    Attributes:
        path: The file.
        cuda: The device.
        inputs: Inputs as the plan declares them; axes without a size are ``"?"``.
        outputs: Outputs, likewise.
        profiles: The shapes of the ids that it takes.
        largest_shapes: For each profile, the largest shape of each input.
        scratch_size: Bytes that the contexts of one lane share; 0 where each has its own.
        records_graphs: Whether CUDA graphs are ours to make.

    Raises:
        ArtifactError: The file is damaged, changed, or not what its manifest says.
        EngineUnavailableError: The library, its version, the driver or the GPU is not there.
        EngineError: The device has no room.
        InvalidInputError: There is no runtime cache for plans of this flavour.
    """

    def __init__(self, path: Path, manifest: Manifest, device: Device, options: PlanOptions) -> None:
        plan = manifest.plan
        if plan is None:
            raise ArtifactError(f"{path.with_suffix('.json')} says nothing of a plan: export again with --engine.")
        if options.runtime_cache is not None and plan.flavour != "tensorrt-rtx":
            raise InvalidInputError(
                "runtime_cache is for plans of TensorRT for RTX, which compiles when it runs, and "
                f"{path} is one of {plan.flavour}: leave it out."
            )
        self.path = path
        self._library = import_library(path, plan, trust=options.trust)
        self.cuda = Cuda(device, install_command(plan))
        if not options.trust:
            check_capability(path, plan, self.cuda, self._library)
        content = read_plan(path, manifest, trust=options.trust)
        reason(self._library)  # What was said before is not about this plan.
        self._runtime: Any = self._make_runtime()
        if plan.version_compatible:
            # Such a plan brings a part of TensorRT along; that it is ours was checked.
            self._runtime.engine_host_code_allowed = True
        check_header(path, self._library, self._runtime, content)
        self._engine: Any = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise self._load_error()
        self._config: Any = None
        self._cache: RuntimeCache | None = None
        try:
            self._compare(manifest, None if options.trust else plan)
            self._configure(options)
        except BaseException:
            self._drop()  # Somebody may keep the error, and with it this.
            raise
        self.records_graphs = options.cuda_graphs and self._config is None
        self.scratch_size = 0 if self._config is not None else int(self._engine.device_memory_size_v2)

    def create_context(self, scratch: int) -> Any:
        """Return a new execution context, which computes in ``scratch`` if there is any."""
        if self._config is not None:
            context = self._engine.create_execution_context(self._config)
            self.require(context is not None, "make an execution context")
            return context
        # Contexts of one lane take turns, so they may share what they compute in.
        strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        self.require(context is not None, "make an execution context")
        if scratch:
            context.set_device_memory(scratch, self.scratch_size)
        return context

    def require(self, done: bool, what: str) -> None:
        """Raise :class:`EngineError` with TensorRT's own reason unless ``done``."""
        if done:
            return
        said = reason(self._library)
        if any(sign in said.lower() for sign in _NO_MEMORY):
            raise OutOfMemoryError(
                f"{self.path} ran out of GPU memory: {said}. Free some, or build the plan with smaller profiles "
                "(--profile)."
            )
        raise EngineError(
            f"{self._library.__name__} could not {what}: {said or 'it gave no reason'}. Open the artifact again; if "
            "it stays so, build the plan again."
        )

    def release(self) -> None:
        """Let go of the plan; no context may be left. Twice is fine."""
        if self._runtime is None:
            return
        if self._cache is not None:
            self._cache.save()
        self._drop()

    def _drop(self) -> None:
        self._cache = self._config = self._engine = self._runtime = None

    def _make_runtime(self) -> Any:
        try:
            return self._library.Runtime(logger_of(self._library))
        except TypeError as error:  # All that the bindings make of a null pointer; the reason is in the log.
            raise EngineError(
                f"{self._library.__name__} {self._library.__version__} makes no runtime here: "
                f"{reason(self._library) or 'it gave no reason'}. Check nvidia-smi and update the driver."
            ) from error

    def _load_error(self) -> Exception:
        said = reason(self._library)
        if any(sign in said.lower() for sign in _NO_MEMORY):
            return OutOfMemoryError(f"{self.path} does not fit into the memory of the GPU: {said}. Free some.")
        return ArtifactError(
            f"{self.path} cannot be loaded by {self._library.__name__} {self._library.__version__}: "
            f"{said or 'it gave no reason'}. Restore the file or export again."
        )

    def _compare(self, manifest: Manifest, plan: Plan | None) -> None:
        """Ask the engine what it takes; hold that to the manifest and, unless it is trusted, to what is said of it."""
        self.inputs, self.outputs = self._signature()
        check_signature(self.path, manifest, self, converted=True)
        self.profiles, self.largest_shapes = self._read_profiles()
        if plan is not None and self.profiles != plan.profiles:
            raise ArtifactError(
                f"{self.path} does not fit its manifest: the manifest says profiles {_shown(plan.profiles)}, the plan "
                f"has {_shown(self.profiles)}. They come from different exports; export again."
            )

    def _signature(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        engine, modes = self._engine, self._library.TensorIOMode
        found: dict[Any, list[TensorSpec]] = {modes.INPUT: [], modes.OUTPUT: []}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            kind = engine.get_tensor_dtype(name).name
            shape = tuple("?" if size < 0 else int(size) for size in engine.get_tensor_shape(name))
            found[engine.get_tensor_mode(name)].append(TensorSpec(name, _DTYPES.get(kind, kind.lower()), shape))
        return tuple(found[modes.INPUT]), tuple(found[modes.OUTPUT])

    def _read_profiles(self) -> tuple[tuple[Profile, ...], tuple[dict[str, tuple[int, ...]], ...]]:
        profiles, largest = [], []
        for index in range(self._engine.num_optimization_profiles):
            shapes = {spec.name: self._range(spec, index) for spec in self.inputs}
            profiles.append(Profile(*shapes["attention_mask"]))
            largest.append({name: shape[2] for name, shape in shapes.items()})
        return tuple(profiles), tuple(largest)

    def _range(self, spec: TensorSpec, profile: int) -> list[tuple[int, ...]]:
        """The smallest, the best and the largest shape of an input in a profile."""
        fixed = tuple(axis for axis in spec.shape if isinstance(axis, int))
        if len(fixed) == len(spec.shape):
            return [fixed] * 3
        return [tuple(map(int, dims)) for dims in self._engine.get_tensor_profile_shape(spec.name, profile)]

    def _configure(self, options: PlanOptions) -> None:
        """Where the library has them, use its own CUDA graphs, kernels for each shape, and cache of those (RTX has)."""
        strategies = getattr(self._library, "CudaGraphStrategy", None)
        if strategies is None:
            return
        self._config = self._engine.create_runtime_config()
        wanted = strategies.WHOLE_GRAPH_CAPTURE if options.cuda_graphs else strategies.DISABLED
        self._config.cuda_graph_strategy = wanted
        specialization = getattr(self._library, "DynamicShapesKernelSpecializationStrategy", None)
        if specialization is not None:  # Left alone, the first runs of each shape would take a slower kernel.
            self._config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        self._cache = RuntimeCache(self._config.create_runtime_cache, options.runtime_cache)
        self.require(self._config.set_runtime_cache(self._cache.handle), "take a runtime cache")


def _shown(profiles: tuple[Profile, ...]) -> str:
    return "; ".join(f"{profile.min} to {profile.max}" for profile in profiles)
