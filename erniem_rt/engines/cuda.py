"""The CUDA runtime of one GPU through cuda-python: memory, streams, graphs; checks every status."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from erniem_rt.errors import EngineError, EngineUnavailableError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from erniem_rt.engines import Device


class OutOfMemoryError(EngineError):
    """The GPU, or the host's pinned memory, is full."""


class Cuda:
    """One device. Handles of streams and graphs are cuda-python's; addresses are integers.

    Args:
        device: The GPU's index.
        install: The command that installs cuda-python, for the error if it is missing.

    Raises:
        EngineUnavailableError: cuda-python, the driver or the device is missing.
    """

    def __init__(self, device: Device, install: str) -> None:
        self._runtime: Any = _import_runtime(install)
        self._device = device
        self._require_device()
        self.use()

    @property
    def capability(self) -> str:
        """The compute capability, such as ``"8.9"``."""
        kinds = self._runtime.cudaDeviceAttr
        parts = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        return ".".join(str(self._call("cudaDeviceGetAttribute", part, self._device.index)) for part in parts)

    def use(self) -> None:
        """Make this the calling thread's current device."""
        self._call("cudaSetDevice", self._device.index)

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` bytes on the device."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Free device memory."""
        self._call("cudaFree", address)

    def allocate_pinned(self, size: int) -> tuple[int, NDArray[np.uint8]]:
        """Return the address of ``size`` bytes of pinned host memory, and a view of them."""
        address = int(self._call("cudaHostAlloc", size, self._runtime.cudaHostAllocDefault))
        return address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, address: int) -> None:
        """Free pinned memory; its views become invalid."""
        self._call("cudaFreeHost", address)

    def create_stream(self) -> Any:
        """Return a non-blocking stream: the default stream does not wait for it."""
        return self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Any) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: Any) -> None:
        """Wait until the stream's work is done."""
        self._call("cudaStreamSynchronize", stream)

    def upload(self, device: int, host: int, size: int, stream: Any) -> None:
        """Enqueue a copy of ``size`` bytes from pinned memory to the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", device, host, size, kind, stream)

    def download(self, host: int, device: int, size: int, stream: Any) -> None:
        """Enqueue a copy of ``size`` bytes from the device to pinned memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host, device, size, kind, stream)

    def begin_capture(self, stream: Any) -> None:
        """Start recording the calling thread's work on the stream instead of running it."""
        # Thread-local: a global capture would fail if another thread allocates.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        """Stop recording and return the graph."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """Enqueue a recorded graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Destroy a graph, which must not be running."""
        self._call("cudaGraphExecDestroy", graph)

    def _require_device(self) -> None:
        kinds = self._runtime.cudaError_t
        try:
            status, count = self._runtime.cudaGetDeviceCount()
        except RuntimeError as error:  # some versions of cuda-python load the driver's library only now
            raise _no_driver(str(error)) from error
        if status == kinds.cudaErrorInsufficientDriver:
            raise _no_driver(self._text(status))
        if status == kinds.cudaErrorNoDevice or (status == kinds.cudaSuccess and count == 0):
            raise EngineUnavailableError(
                f"a TensorRT plan needs an NVIDIA GPU, and this machine shows none ({self._text(status)}): check "
                "nvidia-smi and CUDA_VISIBLE_DEVICES, or open the .onnx file on the CPU."
            )
        if status != kinds.cudaSuccess:
            raise EngineUnavailableError(f"CUDA cannot be used: {self._text(status)}. Check nvidia-smi.")
        if self._device.index >= count:
            there = ", ".join(f"'cuda:{index}'" for index in range(count))
            raise EngineUnavailableError(f"device '{self._device}' is not there; this machine has {there}.")

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime, check its status and return its results."""
        status, *values = getattr(self._runtime, name)(*arguments)
        kinds = self._runtime.cudaError_t
        if status == kinds.cudaErrorMemoryAllocation:
            size = f" of {arguments[0]:,} bytes" if name in {"cudaMalloc", "cudaHostAlloc"} else ""
            where = "the host's pinned memory" if name == "cudaHostAlloc" else str(self._device)
            raise OutOfMemoryError(
                f"out of memory on {where} ({name}{size}): free some, give it fewer rows at once, or build the plan "
                "with smaller profiles (--profile)."
            )
        if status != kinds.cudaSuccess:
            raise EngineError(
                f"CUDA failed on {self._device}: {self._text(status)} ({name}). Open the artifact again, in a "
                "new process if that fails too."
            )
        return values[0] if values else None

    def _text(self, status: Any) -> str:
        """Return CUDA's text and name of a status."""
        text = self._runtime.cudaGetErrorString(status)[1]
        return f"{text.decode() if isinstance(text, bytes) else text}, {status.name}"


def _import_runtime(install: str) -> Any:
    try:
        import cuda.bindings.runtime  # noqa: F401  written out, for tools that pack programs
    except ModuleNotFoundError as error:
        if error.name not in {"cuda", "cuda.bindings", "cuda.bindings.runtime"}:
            raise
        raise EngineUnavailableError(f"Running a TensorRT plan needs the package cuda-python: {install}.") from error
    except ImportError as error:
        raise EngineUnavailableError(f"cuda-python cannot be used: {error}. Install it again: {install}.") from error
    return sys.modules["cuda.bindings.runtime"]


def _no_driver(reason: str) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"a TensorRT plan needs an NVIDIA driver, and there is none that CUDA can use ({reason}): install or update "
        "the driver, or open the .onnx file on the CPU."
    )
