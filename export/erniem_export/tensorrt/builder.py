"""Building: the configuration, and the call that takes long."""

from __future__ import annotations

import os
import re
import warnings
from typing import TYPE_CHECKING, Any

from erniem_export.errors import EngineBuildError, ExportError
from erniem_export.tensorrt.monitor import monitor_for
from erniem_export.tensorrt.network import blamed
from erniem_export.tensorrt.profiles import input_shapes
from erniem_rt.manifest import HEADS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from erniem_export.options import EngineOptions
    from erniem_export.progress import Progress
    from erniem_export.tensorrt.library import Library
    from erniem_rt.manifest import Manifest, Profile

__all__ = ["build", "configure", "make_builder"]

_OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|bad_alloc|MEM_ALLOC|insufficient memory|within workspace limit", re.IGNORECASE
)
_MIB = 1 << 20
_HINT = "; try without --version-compatible"


def make_builder(library: Library) -> Any:
    """Return a builder; :class:`EngineBuildError` if the library makes none, for want of a driver that it can use."""
    with library.listening() as messages:
        try:
            return library.module.Builder(library.logger)
        except TypeError as error:  # All that the bindings make of a null pointer; the reason is in the log.
            reason = "; ".join(dict.fromkeys(messages)) or "it gives no reason"
            raise EngineBuildError(
                f"{library} makes no builder here: {reason}. Check nvidia-smi, update the driver, or say --engine none"
            ) from error


def configure(library: Library, builder: Any, options: EngineOptions) -> Any:
    """Return the builder's configuration, without profiles.

    Raises:
        EngineBuildError: The library has not what an option asks for, or refuses it.
    """
    module, config = library.module, builder.create_builder_config()
    if hasattr(module, "ProfilingVerbosity"):  # or the inspector would not tell types
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if hasattr(module.BuilderFlag, "TF32"):  # on by default, and ten bits of mantissa are not fp32
        config.clear_flag(module.BuilderFlag.TF32)
    if options.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace * _MIB)
    if options.compute_capabilities:
        _target(library, config, options.compute_capabilities)
    if options.hardware_compatible:
        _make_hardware_compatible(library, config)
    if options.version_compatible:
        if not hasattr(module.BuilderFlag, "VERSION_COMPATIBLE"):
            raise _lacking(library, "--version-compatible", "plans that other releases run")
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if options.timing_cache is not None:
        _open_timing_cache(library, config, options)
    return config


def add_profiles(library: Library, builder: Any, config: Any, manifest: Manifest, profiles: Sequence[Profile]) -> None:
    """Add a profile for each of ``profiles``, over all inputs with dynamic axes."""
    axes = HEADS[manifest.head].axes
    for profile in profiles:
        added = builder.create_optimization_profile()
        for spec in manifest.inputs:
            if any(isinstance(axis, str) for axis in spec.shape):
                added.set_shape(spec.name, *input_shapes(profile, axes, spec))
        with library.listening() as messages:
            refused = config.add_optimization_profile(added) < 0
        if refused:
            reason = "; ".join(messages) or "it gives no reason"
            raise EngineBuildError(f"{library} refuses the profile {profile}: {reason}")


def build(
    library: Library, builder: Any, network: Any, config: Any, options: EngineOptions, progress: Progress
) -> memoryview:
    """Build; return the plan.

    Raises:
        EngineBuildError: With the library's reason and, where it tells, the node; or it ran out of memory.
        KeyboardInterrupt: Somebody interrupted.
    """
    monitor = monitor_for(library.module, progress)
    if monitor is not None and hasattr(config, "progress_monitor"):
        config.progress_monitor = monitor
    with library.listening() as messages:
        try:
            plan = builder.build_serialized_network(network, config)
        except MemoryError:
            plan, messages[:] = None, ["out of memory"]
        finally:
            if monitor is not None:
                monitor.close()
    if monitor is not None and monitor.interrupted is not None:
        raise monitor.interrupted
    if plan is None:
        raise EngineBuildError(_why(library, network, messages) + _HINT * options.version_compatible)
    if options.timing_cache is not None:
        _save_timing_cache(config, options)
    return memoryview(plan)


def _why(library: Library, network: Any, messages: Sequence[str]) -> str:
    reason = "; ".join(dict.fromkeys(messages)) or "it gives no reason"
    if _OUT_OF_MEMORY.search(reason):
        return (
            f"{library} ran out of memory while building ({reason}): allow more with --workspace, or ask for a "
            "--profile with a smaller MAX"
        )
    return f"{library} cannot build this graph: {blamed(network, messages)}{reason}"


def _target(library: Library, config: Any, capabilities: Sequence[str]) -> None:
    if not hasattr(config, "set_compute_capability"):
        raise EngineBuildError(
            f"{library} builds for the GPU that it builds on: leave out --compute-capability, or try "
            "--hardware-compatible"
        )
    known = library.module.ComputeCapability
    names = {capability: f"SM{capability.replace('.', '')}" for capability in capabilities}
    unknown = [capability for capability, name in names.items() if not hasattr(known, name)]
    config.num_compute_capabilities = len(names)  # before any is set: they would be refused without a word
    if unknown or not all(
        config.set_compute_capability(getattr(known, name), i) for i, name in enumerate(names.values())
    ):
        have = sorted(int(name[2:]) for name in dir(known) if re.fullmatch(r"SM\d+", name))
        raise EngineBuildError(
            f"{library} cannot build for compute capability {', '.join(unknown or capabilities)}: it knows "
            f"{', '.join(f'{number // 10}.{number % 10}' for number in have)}"
        )


def _make_hardware_compatible(library: Library, config: Any) -> None:
    levels = getattr(library.module, "HardwareCompatibilityLevel", None)
    if levels is not None and hasattr(config, "hardware_compatibility_level"):
        config.hardware_compatibility_level = levels.AMPERE_PLUS
        if config.hardware_compatibility_level == levels.AMPERE_PLUS:
            return
    raise _lacking(library, "--hardware-compatible", "plans for all GPUs, only for those of --compute-capability")


def _open_timing_cache(library: Library, config: Any, options: EngineOptions) -> None:
    path = options.timing_cache
    if path is None or not hasattr(config, "create_timing_cache"):
        raise _lacking(library, "--timing-cache", "timing cache")
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise ExportError(f"--timing-cache {path} cannot be read: {error.strerror or error}") from error
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        cache = config.create_timing_cache(content)
        taken = cache is not None and config.set_timing_cache(cache, False)
    # TensorRT for RTX has the calls, and says in a warning that they do nothing.
    if warned or not taken:
        raise _lacking(library, f"--timing-cache {path}", "timing cache, or none that this file fits")


def _save_timing_cache(config: Any, options: EngineOptions) -> None:
    path = options.timing_cache
    cache = config.get_timing_cache()
    if path is None or cache is None:
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(memoryview(cache.serialize()))
        part.replace(path)  # never half a file, which the next build would refuse
    except OSError as error:
        raise ExportError(f"--timing-cache {path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _lacking(library: Library, option: str, what: str) -> EngineBuildError:
    return EngineBuildError(f"{library} has no {what}: leave out {option}")
