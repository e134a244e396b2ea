"""Runs of an ONNX Runtime session whose inputs and outputs are on the device, once or as CUDA graphs.

A CUDA graph replays the kernels of one shape, on the addresses that it was captured with, without launching each of
them: for small batches, launching is most of the time.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from erniem_rt.engines.base import Device

    Arrays = dict[str, "NDArray[Any]"]
    Key = tuple[Any, ...]

__all__ = ["MOST_GRAPHS", "BoundRuns", "GraphRuns"]

# onnxruntime lets go of a captured graph and of the memory it works in only with the session.
MOST_GRAPHS = 16

_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = "-1"


class BoundRuns:
    """Runs with IO binding: inputs are copied to the device, outputs stay there until all are done, then come back."""

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
    """One shape: the inputs at their fixed addresses, what is bound to them, and the graph's number."""

    inputs: dict[str, Any]
    binding: Any
    options: Any


class GraphRuns(BoundRuns):
    """The same, as CUDA graphs: one per shape, captured when the shape comes for the second time.

    The first :data:`MOST_GRAPHS` of those; other shapes run as they would without. Runs take turns: a graph has one
    set of addresses.
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
        """Run without a graph, and note the shapes of the outputs for the next time."""
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
