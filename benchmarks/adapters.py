"""One class per engine, which loads an artifact and runs rows of ids. Engines' packages are imported when used."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAD = 1

Rows = Sequence[Sequence[int]]
Array = NDArray[Any]


class Adapter(ABC):
    """A loaded engine."""

    versions: dict[str, str]

    @abstractmethod
    def run(self, rows: Rows, batch_size: int) -> Array:
        """Return the logits of the rows in their order, float32 ``(rows, labels)``."""

    def hidden_states(self, rows: Rows, batch_size: int) -> list[Array]:
        """Return the last hidden states per row, float32 ``(tokens, hidden)``, of a model without a head."""
        raise NotImplementedError(f"{type(self).__name__} answers with logits only")


class PaddedAdapter(Adapter):
    """An engine that takes padded batches."""

    @abstractmethod
    def run_batch(self, input_ids: Array, attention_mask: Array, output: str) -> Array:
        """Return the named output of the model for int64 ids and mask ``(batch, sequence)``."""

    def run(self, rows: Rows, batch_size: int) -> Array:
        return np.concatenate([self.run_batch(*pad(batch), "logits") for batch in batches(rows, batch_size)])

    def hidden_states(self, rows: Rows, batch_size: int) -> list[Array]:
        found: list[Array] = []
        for batch in batches(rows, batch_size):
            states = self.run_batch(*pad(batch), "last_hidden_state")
            found += [state[: len(row)] for state, row in zip(states, batch, strict=True)]
        return found


class TransformersModel(PaddedAdapter):
    """The reference model on a CPU: transformers' class, eager or compiled; ``autocast`` to bf16."""

    def __init__(self, artifact: Path, threads: int, compiled: bool = False, autocast: bool = False) -> None:
        import torch
        import transformers
        from transformers.models.deprecated import ernie_m

        torch.set_num_threads(threads)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        (architecture,) = ernie_m.ErnieMConfig.from_pretrained(artifact).architectures
        model = getattr(ernie_m, architecture).from_pretrained(artifact).eval()
        self._model: Any = torch.compile(model) if compiled else model
        self._torch: Any = torch
        self._autocast = autocast

    def run_batch(self, input_ids: Array, attention_mask: Array, output: str) -> Array:
        ids, mask = map(self._torch.from_numpy, (input_ids, attention_mask))
        autocast = self._torch.autocast("cpu", self._torch.bfloat16, enabled=self._autocast)
        with self._torch.inference_mode(), autocast:
            found: Array = self._model(input_ids=ids, attention_mask=mask)[output].float().numpy()
        return found


class TorchModel(PaddedAdapter):
    """PyTorch on any device with this package's class, which is equivalent to that of transformers 4.

    ``kind``: ``eager`` keeps the attention weights, like the reference; ``sdpa`` uses PyTorch's fused attention;
    ``compile`` compiles that.
    """

    def __init__(self, artifact: Path, threads: int, device: str, precision: str, kind: str) -> None:
        import torch
        import transformers

        from erniem_export.checkpoint import load_checkpoint

        torch.set_num_threads(threads)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self._device, self._options = device, {"output_attentions": True} if kind == "eager" else {}
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        model = load_checkpoint(str(artifact)).model.eval().to(device, dtype)
        self._model: Any = torch.compile(model) if kind == "compile" else model
        self._torch: Any = torch

    def run_batch(self, input_ids: Array, attention_mask: Array, output: str) -> Array:
        ids, mask = (self._torch.from_numpy(array).to(self._device) for array in (input_ids, attention_mask))
        with self._torch.inference_mode():
            answer = self._model(input_ids=ids, attention_mask=mask, **self._options)[output]
            found: Array = answer.float().cpu().numpy()
        return found


class OnnxRuntime(PaddedAdapter):
    """ONNX Runtime with its default optimizations."""

    def __init__(self, artifact: Path, threads: int, device: str = "cpu", precision: str = "") -> None:
        import onnxruntime

        del precision  # the graph fixes it
        self.versions = {"onnxruntime": onnxruntime.__version__}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        kind, _, index = device.partition(":")
        provider, settings = (
            ("CUDAExecutionProvider", {"device_id": index or "0"}) if kind == "cuda" else ("CPUExecutionProvider", {})
        )
        graph = str(artifact / "model.onnx")
        self._session = onnxruntime.InferenceSession(graph, options, providers=[(provider, settings)])
        if provider not in self._session.get_providers():
            raise RuntimeError(f"onnxruntime offers no {provider} and would have run on the CPU")

    def run_batch(self, input_ids: Array, attention_mask: Array, output: str) -> Array:
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        found: Array = self._session.run([output], feeds)[0]
        return found


class OpenVino(PaddedAdapter):
    """OpenVINO with the latency hint; ``hint`` is the type for the model's fp32 operations."""

    def __init__(self, artifact: Path, threads: int, hint: str = "f32") -> None:
        import openvino

        self.versions = {"openvino": openvino.__version__.split("-")[0]}
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": hint,
        }
        self._model = openvino.Core().compile_model(artifact / "model.xml", "CPU", settings)

    def run_batch(self, input_ids: Array, attention_mask: Array, output: str) -> Array:
        outputs = self._model({"input_ids": input_ids, "attention_mask": attention_mask})
        found: Array = outputs[output].copy()  # a view of memory that the next run overwrites
        return found


class Optimum(PaddedAdapter):
    """optimum's ORTModel on the plain export; optimum itself cannot export ErnieM."""

    def __init__(self, artifact: Path, threads: int) -> None:
        from importlib.metadata import version

        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTModelForSequenceClassification

        torch.set_num_threads(threads)
        self.versions = {name: version(name) for name in ("optimum", "optimum-onnx", "onnxruntime", "transformers")}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._from_numpy = torch.from_numpy
        self._model = ORTModelForSequenceClassification.from_pretrained(
            artifact, file_name="model.onnx", session_options=options, provider="CPUExecutionProvider"
        )

    def run_batch(self, input_ids: Array, attention_mask: Array, output: str) -> Array:
        found = self._model(input_ids=self._from_numpy(input_ids), attention_mask=self._from_numpy(attention_mask))
        logits: Array = found[output].numpy()
        return logits


class CTranslate2(Adapter):
    """CTranslate2 with the weights as XLM-R's; it has no classifier, so numpy computes that matmul."""

    def __init__(self, artifact: Path, threads: int, compute_type: str) -> None:
        import ctranslate2

        self.versions = {"ctranslate2": ctranslate2.__version__}
        self._encoder = ctranslate2.Encoder(
            str(artifact), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=threads
        )
        classifier = artifact / "classifier.npz"
        if classifier.exists():
            head = np.load(classifier)
            self._weight, self._bias = head["weight"].T.copy(), head["bias"]

    def run(self, rows: Rows, batch_size: int) -> Array:
        pooled = [np.asarray(self._forward(batch).pooler_output) for batch in batches(rows, batch_size)]
        logits: Array = np.concatenate(pooled) @ self._weight + self._bias
        return logits

    def hidden_states(self, rows: Rows, batch_size: int) -> list[Array]:
        found: list[Array] = []
        for batch in batches(rows, batch_size):
            states = np.asarray(self._forward(batch).last_hidden_state)
            found += [state[: len(row)] for state, row in zip(states, batch, strict=True)]
        return found

    def _forward(self, rows: Rows) -> Any:
        # Lists, not arrays: CTranslate2 pads them itself and skips the padding.
        return self._encoder.forward_batch([list(row) for row in rows])


class ErnieM(Adapter):
    """erniem_rt: one batch through ``Session.run``, more than one through ``batching.run_rows``."""

    def __init__(
        self,
        artifact: Path,
        threads: int,
        device: str = "cpu",
        precision: str | None = None,
        suffix: str = ".onnx",
        cuda_graphs: bool = False,
        share_weights: bool = False,
        engine: str = "onnxruntime",
        compute: str = "fp32",
    ) -> None:
        import erniem_rt

        (path,) = artifact.glob(f"*{suffix}")
        is_plan = suffix == ".plan"
        # Plans are our own, so they are trusted: TensorRT decides whether one runs on a GPU that its manifest does not
        # list. CUDA graphs are set explicitly, since plans have them by default.
        self._session = erniem_rt.Session(
            path,
            device=device,
            threads=None if is_plan else threads,
            share_weights=share_weights,
            cuda_graphs=cuda_graphs,
            trust_plan=is_plan,
            **({"engine": engine, "precision": compute} if device == "cpu" and not is_plan else {}),
        )
        self._on_cpu = device == "cpu"
        manifest = self._session.manifest
        if precision is not None and manifest.precision["weights"] != precision:
            raise RuntimeError(f"{path.name} is in {manifest.precision['weights']}, expected {precision}")
        self.versions = {"erniem_rt": erniem_rt.__version__, **_engine_version(manifest.plan, engine)}

    def run(self, rows: Rows, batch_size: int) -> Array:
        if batch_size == 1:
            return np.concatenate([self._run_batch([row]) for row in rows])
        if len(rows) <= batch_size:
            return self._run_batch(rows)
        return np.stack([outputs["logits"] for outputs in self._run_rows(rows, None if self._on_cpu else batch_size)])

    def hidden_states(self, rows: Rows, batch_size: int) -> list[Array]:
        return [
            outputs["last_hidden_state"]
            for batch in batches(rows, batch_size)
            for outputs in self._run_rows(batch, batch_size)
        ]

    def _run_batch(self, rows: Rows) -> Array:
        input_ids, attention_mask = pad(rows)
        return self._session.run(input_ids=input_ids, attention_mask=attention_mask)["logits"]

    def _run_rows(self, rows: Rows, batch_size: int | None) -> list[dict[str, Array]]:
        from erniem_rt.batching import run_rows

        options = {} if batch_size is None else {"batch_size": batch_size}
        found = dict(run_rows(self._session, rows, **options))
        return [found[i] for i in range(len(rows))]


def _engine_version(plan: Any, engine: str) -> dict[str, str]:
    if plan is not None:
        return {plan.flavour: plan.version}
    # Imported here: before, the session imports it while it checks its files.
    return {engine: importlib.import_module(engine).__version__.split("-")[0]}


class ErnieMPipeline(Adapter):
    """From text to answer with ``erniem_rt.pipeline`` on the exported folder."""

    def __init__(self, artifact: Path, threads: int) -> None:
        import onnxruntime

        import erniem_rt

        self.versions = {"erniem_rt": erniem_rt.__version__, "onnxruntime": onnxruntime.__version__}
        self._path, self._threads = artifact / "cls.onnx", threads
        self._pipelines: dict[int, Any] = {}

    def run(self, rows: Any, batch_size: int) -> Array:
        import erniem_rt

        if batch_size not in self._pipelines:
            self._pipelines[batch_size] = erniem_rt.pipeline(self._path, threads=self._threads, batch_size=batch_size)
        return scores_by_label(self._pipelines[batch_size](list(rows), top_k=None))


class TransformersPipeline(Adapter):
    """From text to answer with transformers' text-classification pipeline, the reference model and its tokenizer."""

    def __init__(self, artifact: Path, threads: int) -> None:
        import torch
        import transformers
        from transformers.models.deprecated.ernie_m import ErnieMForSequenceClassification, ErnieMTokenizer

        torch.set_num_threads(threads)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        model = ErnieMForSequenceClassification.from_pretrained(artifact, torch_dtype=torch.float32).eval()
        tokenizer = ErnieMTokenizer.from_pretrained(artifact)
        self._pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)

    def run(self, rows: Any, batch_size: int) -> Array:
        return scores_by_label(self._pipeline(list(rows), batch_size=batch_size, top_k=None))


def batches(rows: Rows, batch_size: int) -> Iterator[Rows]:
    """Cut rows into batches, in order."""
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


def pad(rows: Rows) -> tuple[Array, Array]:
    """Return ids and mask of a batch padded on the right."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), PAD, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def scores_by_label(answers: Sequence[Sequence[dict[str, Any]]]) -> Array:
    """Return scores ``(texts, labels)`` from a pipeline's answers, the labels in alphabetical order."""
    return np.array([[item["score"] for item in sorted(answer, key=lambda item: item["label"])] for answer in answers])
