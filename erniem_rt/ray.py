"""For Ray: :class:`Predictor` answers the batches of a dataset, :func:`application` serves a model with Ray Serve."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from erniem_rt.batcher import Batcher
from erniem_rt.errors import EngineUnavailableError, ErnieMError, InvalidInputError, QueueFullError
from erniem_rt.pipelines import pipeline as make_pipeline
from erniem_rt.serve import BATCHER_OPTIONS, MOST_ITEMS, Served, hidden_size, names_of_inputs, write_answers

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from erniem_rt.pipelines.base import Pipeline

__all__ = ["Predictor", "application", "build"]

_Kind = Literal["text", "int", "float", "texts", "floats", "vector"]
# The columns of answers that have the same fields in each row; all others are JSON in one column.
_FIELDS: dict[str, dict[str, _Kind]] = {
    "question-answering": {"answer": "text", "score": "float", "start": "int", "end": "int"},
    "text-classification": {"label": "text", "score": "float"},
    "zero-shot-classification": {"labels": "texts", "scores": "floats"},
    "multiple-choice": {"answer": "text", "index": "int", "scores": "floats"},
}
# The top_k that gives one answer for an input, not a list.
_ONE_ANSWER = {"question-answering": 1, "text-classification": "best"}
_MOST_CHARACTERS = 100_000
# Requests that a replica holds beyond those in its queue: those in computation.
_IN_COMPUTATION = 256


class Predictor:
    """A class for ``Dataset.map_batches``: adds columns of answers to each batch.

    Batches may be dicts of numpy arrays, pandas DataFrames or pyarrow Tables. The result is of the same kind, has the
    batch's rows and columns, and these columns:

    * question answering: ``answer``, ``score``, ``start``, ``end``; text classification: ``label``, ``score``;
      zero-shot classification: ``labels``, ``scores``, best first; multiple choice: ``answer``, ``index``, ``scores``;
      feature extraction: ``embedding``, float32 ``(rows, hidden)``;
    * token classification, information extraction, and tasks whose ``top_k`` asks for a list: ``answer``, as JSON;
    * ``error``: why the row could not be answered, otherwise None. The other columns are then None, or NaN for floats
      (in Tables, null).

    Args:
        model: An exported folder, an artifact in it, or a hub id, as the workers see it.
        task: The task; by default that of the artifact.
        columns: The batch's column for each key of an input, such as ``{"text": "body"}``. By default columns have the
            names of the keys, and optional keys are read if the batch has them.
        prefix: Put before the names of the new columns.
        **options: Those of :func:`erniem_rt.pipeline`, except ``errors`` and ``progress``. ``threads`` is by default
            the number of CPUs that Ray assigned to the actor, at least 1.

    Raises:
        InvalidInputError: An option is invalid.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        task: str | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        prefix: str = "",
        **options: Any,
    ) -> None:
        for name in ("errors", "progress"):
            if name in options:
                raise InvalidInputError(f"Predictor takes no {name}: errors are in a column of their own.")
        self._pipeline = _opened(model, task, {**options, "errors": "return"})
        try:
            self._columns = _checked_columns(self._pipeline, columns)
            fields = _fields(self._pipeline)
        except BaseException:
            self._pipeline.close()
            raise
        self._is_json = fields is None
        self._fields = {f"{prefix}{name}": (name, kind) for name, kind in (fields or {"answer": "text"}).items()}
        self._error = f"{prefix}error"

    def __call__(self, batch: Any) -> Any:
        """Return the batch with columns of answers.

        Raises:
            InvalidInputError: The batch is of another kind, lacks a column, or has one of the new columns.
            EngineError: The engine failed.
        """
        kind, names = _kind_and_names(batch)
        answers = self._pipeline({key: batch[name] for key, name in self._named(names).items()})
        bad = [str(answer) if isinstance(answer, ErnieMError) else None for answer in answers]
        if self._is_json:
            answers = [{"answer": text.decode()} for text in write_answers(self._pipeline, answers)[2]]
        elif hidden_size(self._pipeline) is not None:
            answers = [{"embedding": vector} for vector in answers]
        rows = [answer if error is None else None for answer, error in zip(answers, bad, strict=True)]
        found = {
            column: (kind_of, [None if row is None else row[name] for row in rows])
            for column, (name, kind_of) in self._fields.items()
        }
        return _EXTENDED[kind](batch, {**found, self._error: ("text", bad)}, hidden_size(self._pipeline))

    def _named(self, names: Sequence[Any]) -> dict[str, str]:
        """Return the batch's column for each key of an input."""
        pipeline = self._pipeline
        if self._columns is None:
            columns = {key: key for key in names_of_inputs(pipeline) if key in names or key in pipeline.required}
        else:
            columns = self._columns
        for key, name in columns.items():
            if name not in names:
                raise InvalidInputError(
                    f"{pipeline.task} reads the column {name!r}; this batch has {_listed(names)}. Name the column: "
                    f'columns={{"{key}": NAME}}.'
                )
        taken = [name for name in (*self._fields, self._error) if name in names]
        if taken:
            raise InvalidInputError(
                f"the batch has a column {taken[0]!r} already: pass prefix='...', which comes before the names of "
                "the new columns."
            )
        return columns


def _opened(model: str | os.PathLike[str], task: str | None, options: dict[str, Any]) -> Pipeline[Any]:
    options.setdefault("threads", _assigned_cpus())
    made: Pipeline[Any] = make_pipeline(task, model, **options)
    return made


def _assigned_cpus() -> int | None:
    """Return the number of CPUs that Ray assigned to this actor or task, at least 1; None outside of both."""
    ray: Any = sys.modules.get("ray")  # a worker has imported it
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.get_actor_id() is None and context.get_task_id() is None:
        return None
    cpus: float = context.get_assigned_resources().get("CPU", 1)
    return max(math.floor(cpus), 1)


def _checked_columns(pipeline: Pipeline[Any], columns: Mapping[str, str] | None) -> dict[str, str] | None:
    if columns is None:
        return None
    known = names_of_inputs(pipeline)
    if not set(pipeline.required) <= set(columns) <= set(known):
        raise InvalidInputError(f"columns must name a column for each of {_listed(known)}, got {dict(columns)!r}.")
    return dict(columns)


def _fields(pipeline: Pipeline[Any]) -> dict[str, _Kind] | None:
    """Return the columns of answers; None if an answer is one column of JSON."""
    asked = pipeline.options_for({})
    if hidden_size(pipeline) is not None:
        if (asked.pooling or pipeline.pooling) == "none":  # type: ignore[attr-defined]
            raise InvalidInputError("pooling='none' gives as many vectors as a text has tokens: a column needs one.")
        return {"embedding": "vector"}
    if getattr(asked, "top_k", None) != _ONE_ANSWER.get(pipeline.task):
        return None
    return _FIELDS.get(pipeline.task)


def _kind_and_names(batch: Any) -> tuple[str, list[Any]]:
    """Return numpy, pandas or pyarrow, and the names of the batch's columns."""
    if isinstance(batch, dict):
        return "numpy", list(batch)
    if hasattr(batch, "append_column"):
        return "pyarrow", list(batch.column_names)
    if hasattr(batch, "assign") and hasattr(batch, "columns"):
        return "pandas", list(batch.columns)
    raise InvalidInputError(
        "a batch must be a dict of numpy arrays, a pandas DataFrame or a pyarrow Table, got "
        f"{type(batch).__name__}: pass batch_format='numpy', 'pandas' or 'pyarrow'."
    )


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _with_numpy(batch: Any, found: dict[str, tuple[_Kind, list[Any]]], hidden: int | None) -> dict[str, Any]:
    return {**batch, **{name: _numpy(kind, values, hidden) for name, (kind, values) in found.items()}}


def _numpy(kind: _Kind, values: list[Any], hidden: int | None) -> Any:
    if kind == "vector":
        missing = np.full(hidden or 0, np.nan, np.float32)
        return np.stack([missing if value is None else value for value in values] or [missing])[: len(values)]
    if kind == "float":
        return np.array([math.nan if value is None else value for value in values], np.float64)
    if kind == "int" and None not in values:
        return np.array(values, np.int64)
    array = np.empty(len(values), object)
    for index, value in enumerate(values):  # a slice would spread lists over axes
        array[index] = value
    return array


def _with_pandas(batch: Any, found: dict[str, tuple[_Kind, list[Any]]], hidden: int | None) -> Any:
    import pandas

    types = {"text": "string", "int": "Int64"}
    return batch.assign(
        **{
            name: pandas.array(values, dtype=types[kind]) if kind in types else list(_numpy(kind, values, hidden))
            for name, (kind, values) in found.items()
        }
    )


def _with_pyarrow(batch: Any, found: dict[str, tuple[_Kind, list[Any]]], hidden: int | None) -> Any:
    import pyarrow

    types: dict[str, Any] = {"text": pyarrow.string(), "int": pyarrow.int64(), "float": pyarrow.float64()}
    types |= {"texts": pyarrow.list_(types["text"]), "floats": pyarrow.list_(types["float"])}
    if hidden is not None:
        types["vector"] = pyarrow.list_(pyarrow.float32(), hidden)
    for name, (kind, values) in found.items():
        batch = batch.append_column(name, pyarrow.array(values, types[kind]))
    return batch


_EXTENDED = {"numpy": _with_numpy, "pandas": _with_pandas, "pyarrow": _with_pyarrow}


def application(
    model: str | os.PathLike[str],
    task: str | None = None,
    *,
    name: str | None = None,
    deployment: Mapping[str, Any] | None = None,
    batcher: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Return a ``ray.serve.Application`` for ``serve.run``: one model behind a :class:`~erniem_rt.Batcher`.

    Over HTTP it takes the requests of ``erniem-rt serve`` as JSON: ``/v2/models/NAME/infer``, ``/v2/models/NAME`` and
    ``/v2/health/ready``. A bad request is answered with 400, a full queue with 503. From Python, call
    ``handle.answer.remote(inputs, **options)`` with the arguments of the pipeline's call.

    Args:
        model: An exported folder, an artifact in it, or a hub id.
        task: The task; by default that of the artifact.
        name: The model's name in requests and the name of the deployment; by default the folder's.
        deployment: Options of ``ray.serve.deployment``, such as ``{"num_replicas": 2}``.
        batcher: Options of :class:`~erniem_rt.Batcher`. By default a request has at most 256 rows and 100,000
            characters.
        **options: Those of :func:`erniem_rt.pipeline`. ``threads`` is by default the number of CPUs of the replica
            (``ray_actor_options``), at least 1.

    Raises:
        InvalidInputError: An argument is invalid.
        EngineUnavailableError: Ray is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise EngineUnavailableError(
            'erniem_rt.ray.application needs Ray Serve: pip install "erniem-rt[ray]".'
        ) from error
    path = Path(model)
    model = str(path.resolve() if path.exists() else model)  # a replica may have another working directory
    if name is None:
        name = (path.resolve().parent if path.is_file() else path.resolve()).name
    if not name or "/" in name:
        raise InvalidInputError(f"name must be a name without '/', got {name!r}.")
    limits = _limits(batcher or {})
    # Ray Serve's default of 5 would keep requests out of the queue.
    settings = {"name": name, "max_ongoing_requests": limits["max_queue"] + _IN_COMPUTATION, **(deployment or {})}
    return serve.deployment(_Replica, **settings).bind(name, model, task, limits, options)


def build(args: dict[str, Any]) -> Any:
    """Return :func:`application` with its arguments in one dict.

    For ``serve run erniem_rt.ray:build model=out/cls``, and for ``import_path: erniem_rt.ray:build`` with ``args`` in
    a config file of Ray Serve.
    """
    if "model" not in args:
        raise InvalidInputError(f"args must have 'model', an exported folder or a hub id; got {_listed(args)}.")
    return application(**args)


def _limits(batcher: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batcher's options with the defaults for untrusted clients."""
    for name in batcher:
        if name not in BATCHER_OPTIONS:
            raise InvalidInputError(f"Batcher takes no {name!r}; expected one of {', '.join(BATCHER_OPTIONS)}.")
    limits = {"max_queue": 1024, "max_characters": _MOST_CHARACTERS, **batcher}
    return {"max_items": min(MOST_ITEMS, limits["max_queue"]), **limits}


class _Replica:
    """The class of the deployment: a model behind a batcher."""

    def __init__(
        self, name: str, model: str, task: str | None, limits: dict[str, Any], options: dict[str, Any]
    ) -> None:
        pipeline = _opened(model, task, dict(options))
        try:
            self._batcher = Batcher(pipeline, **limits)
        except BaseException:
            pipeline.close()
            raise
        self._served = Served(name, self._batcher)

    async def answer(self, inputs: Any = None, **options: Any) -> Any:
        """The pipeline's call, for handles."""
        return await self._batcher.answer(inputs, **options)

    async def __call__(self, request: Any) -> Any:
        """Answer an HTTP request."""
        from starlette.responses import Response

        status, found = await self._response(request)
        text = json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
        headers = {"Retry-After": "1"} if status == 503 else None
        return Response(text, status, headers, "application/json")

    async def _response(self, request: Any) -> tuple[int, dict[str, Any]]:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "").rstrip("/"))
        model = f"/v2/models/{self._served.name}"
        known = {"/v2/health/live": "GET", "/v2/health/ready": "GET", model: "GET", f"{model}/infer": "POST"}
        if path not in known:
            return 404, {"error": f"there is no {path}; expected one of {', '.join(known)}."}
        if request.method != known[path]:
            return 405, {"error": f"{path} takes {known[path]}, not {request.method}."}
        if path == model:
            told = {"name": self._served.name, "versions": [], "platform": "erniem-rt"}
            return 200, {**told, "inputs": self._served.inputs, "outputs": self._served.outputs}
        if request.method == "GET":
            return 200, {path.rpartition("/")[2]: True}
        try:
            return 200, await self._infer(request.headers, await request.body())
        except InvalidInputError as error:
            return 400, {"error": str(error)}
        except QueueFullError as error:
            return 503, {"error": str(error)}
        except ErnieMError as error:
            return 500, {"error": str(error)}

    async def _infer(self, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        if "inference-header-content-length" in headers:
            raise InvalidInputError("Ray Serve takes JSON only: send the request without binary data.")
        message = _message(body)
        tensors = [_tensor(given) for given in message["inputs"]]
        name, kind, array = await self._served.answer(tensors, message["parameters"])
        data = [text.decode() for text in array.tolist()] if kind == "BYTES" else array.reshape(-1).tolist()
        output = {"name": name, "shape": list(array.shape), "datatype": kind, "parameters": None, "data": data}
        told = {"model_name": self._served.name, "model_version": None, "id": message["id"], "parameters": None}
        return {**told, "outputs": [output]}

    async def check_health(self) -> None:
        """Run one row of one token; Ray restarts the replica if that fails or does not end."""
        session = self._batcher.pipeline.session
        axes = next(len(spec.shape) for spec in session.manifest.inputs if spec.name == "input_ids")
        await asyncio.to_thread(session.run, input_ids=np.zeros([1] * axes, np.int64))

    def __del__(self) -> None:
        """Ray calls this once a replica that stops has no more requests."""
        if hasattr(self, "_batcher"):
            self._batcher.close()
            self._batcher.pipeline.close()


def _message(body: bytes) -> dict[str, Any]:
    """Return a request's ``id``, ``inputs`` and ``parameters``."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"the request must be JSON of the Open Inference Protocol, but {error}.") from error
    if not isinstance(message, dict) or not isinstance(message.get("inputs"), list):
        raise InvalidInputError('the request must be like {"inputs": [...], "parameters": {...}}.')
    parameters = message.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidInputError('parameters must be like {"top_k": 2}.')
    return {"id": message.get("id"), "inputs": message["inputs"], "parameters": parameters}


def _tensor(given: Any) -> tuple[str, str, Any]:
    """Return name, datatype and array of an input in JSON."""
    types = {"name": str, "shape": list, "datatype": str, "data": list}
    if not isinstance(given, dict) or not all(isinstance(given.get(key), kind) for key, kind in types.items()):
        raise InvalidInputError(
            'an input must be like {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["..."]}.'
        )
    shape, data = given["shape"], given["data"]
    while any(isinstance(one, list) for one in data):
        data = [value for one in data for value in (one if isinstance(one, list) else [one])]
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) != len(data):
        raise InvalidInputError(f"input {given['name']!r}: its data, {len(data)} values, do not fit the shape {shape}.")
    return given["name"], given["datatype"], _numpy("text", data, None).reshape(shape)
