"""Runs with IO binding and as CUDA graphs: numbers on a real onnxruntime, the protocol on one that keeps a record."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from erniem_rt import EngineError, InvalidInputError
from erniem_rt.engines import Device, GraphOptions
from erniem_rt.engines.onnxruntime import BoundRuns, GraphRuns, OrtEngine

PLACE = ("cuda", 1)


class Value:
    """An OrtValue: an array at an address of its own."""

    def __init__(self, record, array, place):
        self.record, self.array, self.place = record, np.array(array), place

    def update_inplace(self, array):
        assert array.shape == self.array.shape, "another shape would need another address"
        assert array.dtype == self.array.dtype
        self.array[...] = array
        self.record.append(("copy in", self))


class Binding:
    """An IOBinding that notes what is bound where."""

    def __init__(self):
        self.inputs, self.outputs, self.results = {}, {}, None

    def bind_ortvalue_input(self, name, value):
        assert isinstance(value, Value)
        self.inputs[name] = value

    def bind_output(self, name, kind, index):
        self.outputs[name] = (kind, index)

    def bind_ortvalue_output(self, name, value):
        assert isinstance(value, Value)
        self.outputs[name] = value

    def copy_outputs_to_cpu(self):
        return [np.array(array) for array in self.results]


class Recorder:
    """An onnxruntime with CUDA whose graph adds its inputs (``sum``) and their shapes (``sizes``)."""

    __version__ = "1.0"
    SessionOptions = onnxruntime.SessionOptions

    def __init__(self):
        self.runs, self.record, self.captured, self.failure, self.takes = [], [], {}, None, 0.0
        self.OrtValue = SimpleNamespace(
            ortvalue_from_numpy=lambda array, *place: Value(self.record, array, place),
            ortvalue_from_shape_and_type=lambda shape, dtype, *place: Value(self.record, np.zeros(shape, dtype), place),
        )

    def RunOptions(self):
        entries = {}
        return SimpleNamespace(entries=entries, add_run_config_entry=entries.__setitem__)

    def get_available_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, *_, **__):
        return SimpleNamespace(
            get_providers=self.get_available_providers,
            get_inputs=list,
            get_outputs=list,
            io_binding=Binding,
            run=lambda *_: pytest.fail("a run without binding"),
            run_with_iobinding=self.run,
        )

    def run(self, binding, options):
        if self.failure is not None:
            raise self.failure
        graph = None if options is None else options.entries["gpu_graph_id"]
        if graph not in (None, "-1"):
            # A graph replays what it was captured with, whatever is bound now.
            assert self.captured.setdefault(graph, binding) is binding
            assert all(isinstance(value, Value) for value in binding.outputs.values())
        total = sum(value.array for value in binding.inputs.values()).astype(np.float32)
        computed = {"sum": total, "sizes": np.array(total.shape)}
        binding.results = [computed[name] for name in binding.outputs]
        time.sleep(self.takes)
        self.runs.append((graph, binding))


@pytest.fixture
def recorder(monkeypatch):
    module = Recorder()
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


def engine(tmp_path, graphs):
    return OrtEngine(tmp_path / "qa.onnx", GraphOptions(Device(*PLACE), cuda_graphs=graphs))


def feeds(rows, length, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 9, (rows, length)) for name in ("input_ids", "attention_mask")}


def total(given):
    return given["input_ids"] + given["attention_mask"]


def test_everything_is_bound_on_the_device_by_name(tmp_path, recorder):
    given = feeds(2, 3)
    results = engine(tmp_path, False).run(given, ["sizes", "sum"])
    np.testing.assert_array_equal(results[0], [2, 3])
    np.testing.assert_array_equal(results[1], total(given))
    ((graph, binding),) = recorder.runs
    assert graph is None
    assert binding.outputs == {"sizes": PLACE, "sum": PLACE}
    assert {name: (value.place, value.array.dtype) for name, value in binding.inputs.items()} == {
        "input_ids": (PLACE, np.int64),
        "attention_mask": (PLACE, np.int64),
    }


def test_without_graphs_every_run_has_a_binding_of_its_own(tmp_path, recorder):
    opened = engine(tmp_path, False)
    for _ in range(3):
        opened.run(feeds(2, 3), ["sum"])
    assert len({id(binding) for _, binding in recorder.runs}) == 3


def test_a_shape_is_captured_when_it_comes_again(tmp_path, recorder):
    opened = engine(tmp_path, True)
    for seed, shape in enumerate([(2, 3), (2, 4), (2, 3), (2, 3), (2, 4), (1, 1), (2, 4), (2, 3)]):
        given = feeds(*shape, seed)
        np.testing.assert_array_equal(opened.run(given, ["sum"])[0], total(given))
    assert [graph for graph, _ in recorder.runs] == ["-1", "-1", "1", "1", "2", "-1", "2", "1"]


def test_a_captured_shape_keeps_its_addresses(tmp_path, recorder):
    opened = engine(tmp_path, True)
    for seed in range(4):
        opened.run(feeds(2, 3, seed), ["sum", "sizes"])
    bindings = [binding for graph, binding in recorder.runs if graph == "1"]
    assert len(bindings) == 3
    assert len({id(binding) for binding in bindings}) == 1
    binding = bindings[0]
    assert {name: (v.array.shape, v.array.dtype, v.place) for name, v in binding.outputs.items()} == {
        "sum": ((2, 3), np.float32, PLACE),
        "sizes": ((2,), np.int64, PLACE),
    }
    copied = [value for what, value in recorder.record if what == "copy in"]
    assert copied == [binding.inputs["input_ids"], binding.inputs["attention_mask"]] * 2


def test_other_outputs_or_another_order_are_another_graph(tmp_path, recorder):
    opened = engine(tmp_path, True)
    for _ in range(2):
        for names in (["sum"], ["sum", "sizes"], ["sizes", "sum"]):
            opened.run(feeds(2, 3), names)
    assert [graph for graph, _ in recorder.runs] == ["-1"] * 3 + ["1", "2", "3"]


def test_graphs_are_kept_few(tmp_path, recorder, monkeypatch):
    monkeypatch.setattr("erniem_rt.engines.onnxruntime.MOST_GRAPHS", 2)
    opened = engine(tmp_path, True)
    for _ in range(3):
        for length in (1, 2, 3):
            given = feeds(1, length)
            np.testing.assert_array_equal(opened.run(given, ["sum"])[0], total(given))
    assert [graph for graph, _ in recorder.runs] == ["-1"] * 3 + ["1", "2", "-1"] * 2


def test_threads_take_turns_on_the_addresses_of_a_graph(tmp_path, recorder):
    opened = engine(tmp_path, True)
    for _ in range(2):
        opened.run(feeds(2, 3), ["sum"])
    recorder.takes = 1e-4  # for others to come in between
    wrong = []

    def work(seed):
        for step in range(50):
            given = feeds(2, 3, 1000 * seed + step)
            if not np.array_equal(opened.run(given, ["sum"])[0], total(given)):
                wrong.append((seed, step))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("graphs", [False, True])
def test_a_run_that_fails_says_where_and_can_be_tried_again(tmp_path, recorder, graphs):
    opened = engine(tmp_path, graphs)
    opened.run(feeds(2, 3), ["sum"])
    recorder.failure = RuntimeError("CUDA failure 2: out of memory")
    with pytest.raises(EngineError, match=r"^onnxruntime failed on cuda:1: CUDA failure 2: out of memory\. If memory"):
        opened.run(feeds(2, 3), ["sum"])
    recorder.failure = None
    given = feeds(2, 3, 5)
    np.testing.assert_array_equal(opened.run(given, ["sum"])[0], total(given))
    opened.close()
    with pytest.raises(InvalidInputError, match="the engine is closed"):
        opened.run(given, ["sum"])


@pytest.mark.parametrize("runs", [BoundRuns, GraphRuns])
def test_numbers_are_those_of_a_plain_run(heads, runs):
    """On a real onnxruntime, with the CPU in the place of the device: the calls exist and do what they must."""
    session = onnxruntime.InferenceSession(str(heads["qa"].path), providers=["CPUExecutionProvider"])
    bound = runs(onnxruntime, session, Device("cpu"))
    rng = np.random.default_rng(0)
    names = ["end_logits", "start_logits"]
    kept = []
    for shape in [(2, 5), (2, 5), (1, 3), (2, 5), (2, 5), (1, 3), (1, 3)]:
        given = {"input_ids": rng.integers(0, 7, shape), "attention_mask": rng.integers(0, 2, shape)}
        kept.append((bound.run(names, given), session.run(names, given)))
    for found, expected in kept:  # at the end: no result may be overwritten by a later run
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
