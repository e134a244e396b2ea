"""A CUDA runtime without a GPU that does what it is told, late, and complains of what a real one would not forgive.

Work is queued and done when the stream is waited for. Thus what is read too early is rubbish, and what is overwritten
too early is noticed. Names and signatures are those of ``cuda.bindings.runtime`` (``test_fakes.py`` compares them).
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

POISON = 0xCD


class ProtocolError(AssertionError):
    """Something that crashes, hangs or gives wrong numbers on a real GPU."""


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


@dataclass
class Allocation:
    kind: str
    device: int
    size: int
    memory: Any

    @property
    def address(self) -> int:
        return ctypes.addressof(self.memory)

    def bytes(self, size: int) -> bytes:
        return ctypes.string_at(self.address, size)


@dataclass(eq=False)
class Work:
    """One piece of queued work: what it does and the memory it touches.

    ``frozen`` looks at what must not change meanwhile, and ``spoil`` ruins what must not be read before it is done.
    """

    action: Callable[[], None]
    touches: tuple[int, ...]
    frozen: Callable[[], bytes] | None = None
    spoil: Callable[[], object] | None = None
    context: Any = None
    seen: bytes | None = None


@dataclass
class Stream:
    device: int
    queue: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None
    capturing_thread: int = 0


class FakeGpu:
    """The runtime of a machine with ``devices`` GPUs of some capability and memory."""

    def __init__(self, devices: int = 2, capability: tuple[int, int] = (8, 9), memory: int = 1 << 30) -> None:
        self.devices, self.capability, self.memory = devices, capability, memory
        self.status = cudaError_t.cudaSuccess
        self.allocations: dict[int, Allocation] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.events: list[str] = []
        self.violations: list[str] = []
        self.failing: dict[str, list[cudaError_t]] = {}
        self.graveyard: list[Any] = []  # Freed memory stays readable here: a fault, but no crash of the tests.
        self.lock = threading.RLock()
        self.local = threading.local()
        self.handles = iter(range(1000, 10**9))
        self.calls: list[str] = []
        self.used: set[int] = set()  # devices that hold, or held, anything

    def violate(self, text: str) -> None:
        self.violations.append(text)
        raise ProtocolError(text)

    def leaks(self) -> list[str]:
        found = [f"{a.size} bytes on the {a.kind}" for a in self.allocations.values()]
        return found + ["a stream"] * len(self.streams) + ["a graph"] * len(self.graphs)

    def at(self, address: int, kind: str, size: int) -> Allocation:
        allocation = self.allocations.get(int(address))
        if allocation is None:
            self.violate(f"{kind} memory at {address} is not allocated")
        if allocation.kind != kind:
            self.violate(f"expected {kind} memory, got memory of the {allocation.kind}")
        if size > allocation.size:
            self.violate(f"{size} bytes in an allocation of {allocation.size}")
        return allocation

    def stream_of(self, handle: Any) -> Stream:
        if int(handle) == 0:
            self.violate("the default stream, which stops all others")
        if int(handle) not in self.streams:
            self.violate(f"stream {int(handle)} does not exist")
        return self.streams[int(handle)]

    def enqueue(self, handle: Any, work: Work) -> None:
        """Queue work, or record it."""
        stream = self.stream_of(handle)
        if stream.device != self.current:
            self.violate(f"a stream of device {stream.device} used on device {self.current}")
        if stream.captured is not None:
            if stream.capturing_thread != threading.get_ident():
                self.violate("work of another thread gets into a capture")
            stream.captured.append(work)
            return
        if work.spoil:
            work.spoil()
        work.seen = work.frozen() if work.frozen else None
        stream.queue.append(work)

    def pending(self) -> list[tuple[int, Work]]:
        return [(handle, work) for handle, stream in list(self.streams.items()) for work in list(stream.queue)]

    @property
    def current(self) -> int:
        return getattr(self.local, "device", 0)

    def call(self, name: str, *arguments: Any) -> Any:
        # Waiting for a stream holds up nobody else.
        with contextlib.nullcontext() if name == "cudaStreamSynchronize" else self.lock:
            self.calls.append(name)
            statuses = self.failing.get(name)
            status = statuses.pop(0) if statuses else cudaError_t.cudaSuccess
            results = {"cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaStreamEndCapture"}
            empty = (None,) if name in results | {"cudaGraphInstantiate"} else ()
            if status == cudaError_t.cudaSuccess:
                value = getattr(self, f"_{name}")(*arguments)
                if isinstance(value, cudaError_t):
                    return (value, *empty)
                return (cudaError_t.cudaSuccess, *(() if value is None else (value,)))
            if name == "cudaStreamEndCapture":
                self.stream_of(arguments[0]).captured = None
            return (status, *empty)

    def _cudaGetDeviceCount(self) -> Any:
        return self.devices

    def _cudaSetDevice(self, device: int) -> None:
        if device >= self.devices:
            self.violate(f"no device {device}")
        self.local.device = device

    def _cudaDeviceGetAttribute(self, attr: Any, device: int) -> int:
        return self.capability[0 if attr == cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor else 1]

    def _cudaMalloc(self, size: int) -> Any:
        self._refuse_in_capture("cudaMalloc")
        used = sum(a.size for a in self.allocations.values() if a.kind == "device" and a.device == self.current)
        if used + size > self.memory:
            return cudaError_t.cudaErrorMemoryAllocation
        return self._allocated("device", size)

    def _cudaHostAlloc(self, size: int, flags: int) -> int:
        self._refuse_in_capture("cudaHostAlloc")
        return self._allocated("host", size)

    def _allocated(self, kind: str, size: int) -> int:
        if size <= 0:
            self.violate(f"an allocation of {size} bytes")
        memory = (ctypes.c_uint8 * size)()
        ctypes.memset(memory, POISON, size)
        self.used.add(self.current)
        allocation = Allocation(kind, self.current, size, memory)
        self.allocations[allocation.address] = allocation
        return allocation.address

    def _cudaFree(self, address: int) -> None:
        self._freed(address, "device")

    def _cudaFreeHost(self, address: int) -> None:
        self._freed(address, "host")

    def _freed(self, address: int, kind: str) -> None:
        allocation = self.at(address, kind, 0)
        if any(address in work.touches for _, work in self.pending()):
            self.violate(f"{kind} memory freed while work on it is under way")
        if kind == "device" and allocation.device != self.current:
            self.violate(f"memory of device {allocation.device} freed on device {self.current}")
        ctypes.memset(allocation.memory, POISON, allocation.size)
        self.graveyard.append(self.allocations.pop(address))
        self.events.append(f"free {kind} {address}")

    def _cudaStreamCreateWithFlags(self, flags: int) -> int:
        if flags != 1:
            self.violate("a stream that waits for the default stream")
        handle = next(self.handles)
        self.used.add(self.current)
        self.streams[handle] = Stream(self.current)
        return handle

    def _cudaStreamDestroy(self, handle: int) -> None:
        if self.stream_of(handle).queue:
            self.violate("a stream destroyed with work under way")
        del self.streams[handle]
        self.events.append("destroy stream")

    def _cudaStreamSynchronize(self, handle: int) -> Any:
        stream = self.stream_of(handle)
        if stream.captured is not None:
            return cudaError_t.cudaErrorStreamCaptureUnsupported
        while stream.queue:
            work = stream.queue[0]
            if work.frozen and work.frozen() != work.seen:
                self.violate("host memory was written to while its copy was under way")
            try:
                work.action()
            finally:
                stream.queue.pop(0)
        return None

    def _cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Any) -> None:
        up = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        host, device = (src, dst) if up else (dst, src)
        pinned, remote = self.at(host, "host", count), self.at(device, "device", count)
        source, target = (pinned, remote) if up else (remote, pinned)

        def copy() -> None:
            self.at(host, "host", count)
            self.at(device, "device", count)
            ctypes.memmove(target.memory, source.memory, count)

        if up:
            self.enqueue(stream, Work(copy, (host, device), frozen=lambda: pinned.bytes(count)))
        else:
            self.enqueue(stream, Work(copy, (host, device), spoil=lambda: ctypes.memset(pinned.memory, POISON, count)))

    def _cudaStreamBeginCapture(self, handle: int, mode: Any) -> None:
        stream = self.stream_of(handle)
        if stream.queue:
            self.violate("a capture that begins while work is under way")
        if mode != cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            self.violate("a capture that other threads spoil")
        stream.captured, stream.capturing_thread = [], threading.get_ident()

    def _cudaStreamEndCapture(self, handle: int) -> Any:
        stream = self.stream_of(handle)
        if stream.captured is None or stream.capturing_thread != threading.get_ident():
            self.violate("a capture ended that this thread did not begin")
        work, stream.captured = stream.captured, None
        graph = next(self.handles)
        self.graphs[graph] = work
        return graph

    def _cudaGraphInstantiate(self, graph: int, flags: int) -> int:
        handle = next(self.handles)
        self.graphs[handle] = list(self.graphs[graph])
        return handle

    def _cudaGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    def _cudaGraphExecDestroy(self, graph: int) -> None:
        if graph not in self.graphs:
            self.violate("a graph destroyed twice")
        if any(work in self.graphs[graph] for _, work in self.pending()):
            self.violate("a graph destroyed while it runs")
        del self.graphs[graph]
        self.events.append("destroy graph")

    def _cudaGraphLaunch(self, graph: int, stream: Any) -> None:
        if graph not in self.graphs:
            self.violate("a graph that was destroyed")
        for work in self.graphs[graph]:
            if work.context is not None:
                work.context.check_unchanged()
            self.enqueue(stream, work)

    def _cudaGetErrorString(self, status: Any) -> bytes:
        return f"the words for {status.name}".encode()

    def _refuse_in_capture(self, name: str) -> None:
        for stream in self.streams.values():
            if stream.captured is not None and stream.capturing_thread == threading.get_ident():
                self.violate(f"{name} in a capture")


class FakeRuntime:
    """The module: every function of :class:`FakeGpu` by its CUDA name."""

    cudaError_t = cudaError_t
    cudaDeviceAttr = cudaDeviceAttr
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self.gpu, f"_{name}"):
            raise AttributeError(name)
        return lambda *arguments: self.gpu.call(name, *arguments)

    def cudaGetDeviceCount(self) -> Any:
        if self.gpu.status != cudaError_t.cudaSuccess:
            return self.gpu.status, None
        return cudaError_t.cudaSuccess, self.gpu.devices
