"""``erniem-rt serve``: serves models over HTTP and gRPC in the Open Inference Protocol V2, with KServe's endpoints."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import importlib.util
import json
import operator
import os
import signal
import socket
import struct
import sys
import threading
import time
import uuid
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from erniem_rt.batcher import Batcher
from erniem_rt.checks import is_count, require_count
from erniem_rt.errors import EngineUnavailableError, ErnieMError, InvalidInputError, QueueFullError
from erniem_rt.pipelines import pipeline as make_pipeline
from erniem_rt.pipelines.base import Options
from erniem_rt.pipelines.inputs import split_at_commas

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from erniem_rt.pipelines.base import Pipeline

    # Name, datatype and array.
    Tensor = tuple[str, str, NDArray[Any]]

__all__ = [
    "BATCHER_OPTIONS",
    "LISTS",
    "MOST_ITEMS",
    "Served",
    "add_arguments",
    "hidden_size",
    "names_of_inputs",
    "open_pipeline",
    "read_call",
    "read_inputs",
    "read_options",
    "serve",
    "write_answers",
]

# Inputs with a list per row.
LISTS = ("choices",)
# Only the server sets these: with them, a short request could take any amount of work or memory.
_NOT_FOR_CLIENTS = {field.name for field in fields(Options)} - {"errors"} | {"doc_stride", "stride"}
# The protocol's own parameters.
_OF_THE_PROTOCOL = ("binary_data_output",)
_SESSION_OPTIONS = ("engine", "precision", "device", "threads", "spinning", "shrink_memory", "cache")
BATCHER_OPTIONS = ("workers", "max_batch", "max_queue", "max_items", "max_characters")
MOST_ITEMS = 256
# Seconds that a stopping server has after --timeout, to close connections and models.
_CLOSING = 2


class Served:
    """A named model: reads tensors and parameters, calls the batcher, writes tensors.

    Args:
        name: The name in requests.
        batcher: The batcher of the model's pipeline.

    Attributes:
        cancelled: The number of requests that were cancelled before they had their answers.
    """

    def __init__(self, name: str, batcher: Batcher) -> None:
        self.name = name
        self.batcher = batcher
        self.cancelled = 0

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """The inputs in the protocol's metadata."""
        return [
            {"name": name, "datatype": "BYTES", "shape": [-1, -1] if name in LISTS else [-1]}
            for name in names_of_inputs(self.batcher.pipeline)
        ]

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """The outputs in the protocol's metadata."""
        hidden = hidden_size(self.batcher.pipeline)
        if hidden is None:
            return [{"name": "answer", "datatype": "BYTES", "shape": [-1]}]
        return [{"name": "embedding", "datatype": "FP32", "shape": [-1, hidden]}]

    async def answer(self, tensors: Iterable[Tensor], parameters: Mapping[str, Any]) -> Tensor:
        """Return the output for inputs of name, datatype and array.

        Raises:
            InvalidInputError: The request cannot be answered.
            QueueFullError: The queue is full.
            EngineError: The engine failed.
        """
        items, options = read_call(self.batcher, tensors, parameters)
        try:
            answers = await self.batcher.answer(items, **options)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return write_answers(self.batcher.pipeline, answers)


def names_of_inputs(pipeline: Pipeline[Any]) -> tuple[str, ...]:
    """Return the names of a request's tensors; those not in the pipeline's ``required`` may be missing."""
    return (*pipeline.required, *pipeline.optional)


def hidden_size(pipeline: Pipeline[Any]) -> int | None:
    """Return the length of a vector; None if answers are JSON."""
    if pipeline.task != "feature-extraction":
        return None
    return next(int(spec.shape[-1]) for spec in pipeline.manifest.outputs if spec.name == "last_hidden_state")


def read_call(
    batcher: Batcher, tensors: Iterable[Tensor], parameters: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the inputs and the options of a request; raise :class:`InvalidInputError` if it is invalid."""
    items = read_inputs(batcher.pipeline, tensors, batcher.max_items)
    options = read_options(batcher.pipeline, parameters)
    if hidden_size(batcher.pipeline) is not None:
        _require_one_shape(batcher.pipeline, options, len(items))
    return items, options


def write_answers(pipeline: Pipeline[Any], answers: Any) -> Tensor:
    """Return the output for the answers to a list: ``embedding``, or ``answer`` with JSON."""
    if hidden_size(pipeline) is not None:
        return "embedding", "FP32", np.asarray(answers, np.float32)
    texts = np.empty(len(answers), object)
    texts[:] = [_json(answer) for answer in answers]
    return "answer", "BYTES", texts


def read_inputs(pipeline: Pipeline[Any], tensors: Iterable[Tensor], most: int | None = None) -> list[Any]:
    """Return the inputs of a pipeline's call from tensors ``(name, datatype, array)``, one per row of the arrays.

    Arrays are ``(rows,)`` or ``(rows, 1)``, those of choices ``(rows, choices)``, of str or of bytes in UTF-8.

    Raises:
        InvalidInputError: A tensor is missing, not of this task, or not of texts; there are more than ``most`` rows.
    """
    known = names_of_inputs(pipeline)
    columns: dict[str, list[Any]] = {}
    for name, datatype, array in tensors:
        if name not in known or name in columns:
            told = "is given twice" if name in columns else "is not known"
            raise InvalidInputError(f"input {name!r} {told}; {pipeline.task} takes {', '.join(known)}.")
        if datatype != "BYTES":
            raise InvalidInputError(f"input {name!r} must have the datatype BYTES, got {datatype}.")
        columns[name] = _column(name, array, most)
    missing = [name for name in pipeline.required if name not in columns]
    if missing:
        raise InvalidInputError(f"input {missing[0]!r} is missing; {pipeline.task} takes {', '.join(known)}.")
    if len({len(column) for column in columns.values()}) > 1:
        told = ", ".join(f"{name!r} {len(column)}" for name, column in columns.items())
        raise InvalidInputError(f"all inputs must have the same number of rows, got {told}.")
    if list(columns) == ["text"]:
        return columns["text"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _column(name: str, array: NDArray[Any], most: int | None) -> list[Any]:
    """Return the rows of a tensor: texts, or lists of texts."""
    if most is not None and array.size > most:
        raise InvalidInputError(f"input {name!r} has {array.size} texts, and a request may have at most {most}.")
    if name in LISTS:
        if array.ndim != 2:
            raise InvalidInputError(f"input {name!r} must have the shape (rows, choices), got {array.shape}.")
        return [[_text(name, one) for one in row] for row in array.tolist()]
    if array.ndim not in (1, 2) or array.shape[1:] not in ((), (1,)):
        raise InvalidInputError(f"input {name!r} must have the shape (rows,) or (rows, 1), got {array.shape}.")
    return [_text(name, one) for one in array.reshape(-1).tolist()]


def _text(name: str, value: Any) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"input {name!r} must be text in UTF-8: {error}.") from error


def read_options(pipeline: Pipeline[Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a pipeline's call from the parameters of a request: numbers, bools and str.

    Lists, and the schema, are JSON in a str; lists of names may also have commas. ``top_k="all"`` is None.

    Raises:
        InvalidInputError: The task has no such option, or clients may not set it.
    """
    names = [field.name for field in fields(pipeline.options_type) if field.name not in _NOT_FOR_CLIENTS]
    options = {name: value for name, value in parameters.items() if name not in _OF_THE_PROTOCOL}
    for name, value in options.items():
        if name not in names:
            raise InvalidInputError(f"{pipeline.task} takes no parameter {name!r}; expected one of {', '.join(names)}.")
        options[name] = _option(pipeline, name, value)
    return options


def _option(pipeline: Pipeline[Any], name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if name == "schema" or (name in ("candidate_labels", "ignore_labels") and value.lstrip().startswith("[")):
        return _from_json(name, value)
    if name == "ignore_labels":
        return split_at_commas(value)
    if name == "threshold":  # gRPC's parameters have no floats
        with contextlib.suppress(ValueError):
            return float(value)
    return None if (name, value) == ("top_k", "all") and "top_k" in pipeline.options_type.none_is_a_value else value


def _from_json(name: str, value: str) -> Any:
    if value.lstrip()[:1] not in ("[", "{", '"'):
        return value  # a schema of one name
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"parameter {name!r} must be JSON, but {error}.") from error


def _require_one_shape(pipeline: Any, options: dict[str, Any], rows: int) -> None:
    if options.get("pooling", pipeline.pooling) == "none" and rows != 1:
        raise InvalidInputError(
            f"pooling='none' gives each text as many vectors as it has tokens: send one text, not {rows}."
        )
    if options.get("errors") == "return":
        raise InvalidInputError("feature-extraction returns one array: it has no room for errors='return'.")


def _json(answer: Any) -> bytes:
    if isinstance(answer, ErnieMError):
        answer = {"error": str(answer)}
    text = json.dumps(answer, ensure_ascii=False, default=operator.methodcaller("tolist"))
    # UTF-8 cannot encode lone surrogates: they stay escaped, as JSON allows.
    return text.encode("utf-8", "backslashreplace")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``erniem-rt serve``."""
    count: dict[str, Any] = {"type": int, "metavar": "N"}
    flag: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
    parser.add_argument(
        "models",
        nargs="+",
        metavar="[NAME=]DIR",
        help="an exported folder, HEAD.onnx or HEAD.plan in it, or a hub id; NAME is the folder's if left out",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at; default: 127.0.0.1")
    parser.add_argument("--port", **count, default=8080, help="of HTTP; 0: a free one; default: 8080")
    parser.add_argument("--grpc-port", **count, help="of gRPC; default: no gRPC")
    parser.add_argument(
        "--options",
        metavar="JSON",
        default="{}",
        help="by model: its task and the pipeline's options, like "
        '\'{"cls": {"task": "zero-shot-classification", "candidate_labels": ["sports", "politics"]}}\'',
    )
    parser.add_argument("--timeout", **count, default=30, help="seconds for open requests at SIGTERM; default: 30")
    parser.add_argument("--max-body", **count, default=8 << 20, help="most bytes of a request; default: 8388608")
    queue = parser.add_argument_group("the queue of each model")
    queue.add_argument("--workers", **count, help="batches at a time; default: see the docs")
    queue.add_argument("--max-batch", **count, default=16, help="most rows that run together; default: 16")
    queue.add_argument("--max-queue", **count, default=1024, help="most rows that wait, beyond it: 503; default: 1024")
    queue.add_argument(
        "--max-items", **count, help="most rows of one request; default: 256, or --max-queue if that is less"
    )
    queue.add_argument(
        "--max-characters", **count, default=100_000, help="most characters of one request; default: 100000"
    )
    session = parser.add_argument_group("the session of each model")
    session.add_argument("--engine", default="auto", help="onnxruntime or openvino; default: the faster one")
    session.add_argument("--precision", default="auto", help="fp32 or bf16, on a CPU; default: never bf16")
    session.add_argument("--device", help="cpu, cuda or cuda:N; default: cuda for a plan, otherwise cpu")
    session.add_argument("--threads", **count, help="default: all CPUs that this process has")
    session.add_argument("--spinning", **flag, help="idle threads keep a CPU busy; default: for 0.2 ms")
    session.add_argument("--shrink-memory", **flag, help="give memory back after each run; default: after a large one")
    session.add_argument("--cache", metavar="DIR", help="where OpenVINO keeps compiled models")


def serve(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Load the models and answer requests until SIGTERM or Ctrl-C; ``say`` gets a line when the server is ready.

    Raises:
        ErnieMError: KServe is not installed, a port is taken, a model cannot be loaded, or an option is invalid.
    """
    _require_kserve()
    for name in ("timeout", "max_body", "max_queue"):
        require_count(name, getattr(arguments, name))
    if arguments.max_items is None:
        arguments.max_items = min(MOST_ITEMS, arguments.max_queue)
    named = _named(arguments.models)
    options = _options_by_name(arguments.options, named)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_bound(arguments.host, arguments.port, "--port"))
        models = [stack.enter_context(_opened(arguments, name, path, options)) for name, path in named.items()]
        return _Server(arguments, models, listening, say).run()


def _require_kserve() -> None:
    if importlib.util.find_spec("kserve") is None:
        raise EngineUnavailableError('erniem-rt serve needs the package kserve: pip install "erniem-rt[serve]".')


def _named(models: Sequence[str]) -> dict[str, str]:
    """Return paths by name: the text before ``=``, or the folder's name."""
    named: dict[str, str] = {}
    for model in models:
        name, equals, path = model.partition("=")
        if not equals or "/" in name or os.sep in name:
            path = model
            whole = Path(model).resolve()
            name = (whole.parent if whole.is_file() else whole).name
        if not name or "/" in name or not path:
            raise InvalidInputError(f"{model!r} names no model: expected DIR or NAME=DIR.")
        if name in named:
            raise InvalidInputError(f"two models are named {name!r}: give one of them another name with NAME=DIR.")
        named[name] = path
    return named


def _options_by_name(text: str, named: dict[str, str]) -> dict[str, dict[str, Any]]:
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"--options must be JSON, but {error}.") from error
    if not isinstance(options, dict) or not all(isinstance(value, dict) for value in options.values()):
        raise InvalidInputError('--options must be like {"NAME": {"top_k": 2}}.')
    for name in options:
        if name not in named:
            raise InvalidInputError(f"--options names {name!r}; the models are {', '.join(named)}.")
    return options


@contextlib.contextmanager
def _bound(host: str, port: int, option: str) -> Iterator[socket.socket]:
    """Yield a socket that does not listen yet, so that connections are refused until the models are loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without the protocol, asyncio sets no TCP_NODELAY, and small answers wait 40 ms.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        if os.name == "posix":  # elsewhere the option would take a port in use
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OverflowError as error:
            raise InvalidInputError(f"{option} must be a port, 0 to 65535, got {port}.") from error
        except OSError as error:
            reason = error.strerror or str(error).rstrip(".")
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise InvalidInputError(
                    f"cannot listen at {host}: {reason}. --host must be an address of this machine, or 0.0.0.0 for all."
                ) from error
            raise _port_error(host, port, option, reason) from error
        yield listening


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _port_error(host: str, port: int, option: str, reason: object) -> InvalidInputError:
    return InvalidInputError(
        f"cannot listen at {host}, port {port}: {reason}. Choose another {option}, or stop what uses it."
    )


def open_pipeline(path: str | Path, options: Mapping[str, Any]) -> Pipeline[Any]:
    """Open a pipeline with the options of ``--options``, which may have the task."""
    if "model" in options:
        raise InvalidInputError("--options cannot have 'model': the command names the model already.")
    return make_pipeline(options.get("task"), path, **{key: options[key] for key in options if key != "task"})


@contextlib.contextmanager
def _opened(
    arguments: argparse.Namespace, name: str, path: str, options: dict[str, dict[str, Any]]
) -> Iterator[Served]:
    given = dict(options.get(name, {}))
    session = {option: getattr(arguments, option) for option in _SESSION_OPTIONS}
    twice = sorted(session.keys() & given.keys())
    if twice:
        raise InvalidInputError(f"{twice[0]} is for all models: give it as --{twice[0].replace('_', '-')}.")
    pipeline = open_pipeline(path, {**session, **given})
    try:
        batcher = Batcher(pipeline, **{option: getattr(arguments, option) for option in BATCHER_OPTIONS})
        try:
            yield Served(name, batcher)
        finally:
            batcher.close()
    finally:
        pipeline.close()


class _Server:
    """KServe's endpoints on uvicorn and, with ``--grpc-port``, on grpc."""

    def __init__(
        self, arguments: argparse.Namespace, models: list[Served], listening: socket.socket, say: Callable[[str], None]
    ) -> None:
        kserve = _import_kserve()
        self._arguments = arguments
        self._models = models
        self._listening = listening
        self._say = say
        self._repository = kserve.ModelRepository()
        for model in models:
            self._repository.update(_kserve_model(kserve, model))
        self._plane = _data_plane(self._repository)
        self._grpc: Any = None

    def run(self) -> int:
        """Answer until a signal comes, then answer the open requests; return 0, or 1 if they took too long."""
        from prometheus_client import REGISTRY

        collector = _Collector(self._models)
        REGISTRY.register(collector)
        try:
            until = _run_loop()(self._run())
        finally:
            REGISTRY.unregister(collector)
        closing = [threading.Thread(target=model.batcher.close, daemon=True) for model in self._models]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(max(until - time.monotonic(), 0))
        running, dropped = any(thread.is_alive() for thread in closing), self._cancelled() > self._before
        if running or dropped:
            late = f"a request took longer than --timeout={self._arguments.timeout}"
            self._say(f"error: {'a second signal came' if self._forced else late}; stopped without an answer")
        if running:
            sys.stderr.flush()
            os._exit(1)  # its thread cannot be stopped
        return 1 if dropped else 0

    def _cancelled(self) -> int:
        return sum(model.cancelled for model in self._models)

    async def _run(self) -> float:
        """Serve; return the deadline for the end, on the monotonic clock."""
        import uvicorn

        config = uvicorn.Config(
            _Limited(self._application(), self._arguments.max_body),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=self._arguments.timeout,
        )
        server = uvicorn.Server(config)
        # Its own handlers would raise the signal again at the end.
        server.capture_signals = contextlib.nullcontext
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stop(*_: object) -> None:
            server.force_exit = server.should_exit  # a second signal stops at once
            server.should_exit = True
            loop.call_soon_threadsafe(stopping.set)

        with _signals(stop):
            self._listen(config.backlog)
            await self._start_grpc()
            serving = asyncio.create_task(server.serve(sockets=[self._listening]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            if serving.done():
                serving.result()  # raises what kept it from starting
            self._tell()
            await asyncio.wait({serving, asyncio.create_task(stopping.wait())}, return_when=asyncio.FIRST_COMPLETED)
            until: float = time.monotonic() + self._arguments.timeout + _CLOSING
            self._before = self._cancelled()  # by clients
            await asyncio.gather(serving, self._stop_grpc(server))
            self._forced = server.force_exit
        return until

    def _listen(self, backlog: int) -> None:
        try:
            self._listening.listen(backlog)
        except OSError as error:  # another process listens by now
            raise _port_error(self._arguments.host, self._arguments.port, "--port", error.strerror) from error

    def _tell(self) -> None:
        host, port = self._listening.getsockname()[:2]
        address = f"http://{_in_address(host)}:{port}"
        for model in self._models:
            self._say(f"serving {model.batcher.pipeline.task} at {address}/v2/models/{model.name}/infer")
        if self._grpc is not None:
            self._say(f"serving gRPC at {_in_address(self._arguments.host)}:{self._arguments.grpc_port}")

    def _application(self) -> Any:
        from fastapi import FastAPI
        from kserve.protocol.rest.server import metrics_handler
        from kserve.protocol.rest.v2_endpoints import register_v2_endpoints

        app = FastAPI(title="erniem-rt", docs_url=None, redoc_url=None, openapi_url=None)
        app.add_api_route("/metrics", metrics_handler, methods=["GET"])
        register_v2_endpoints(app, self._plane, _fixed_repository(self._repository))
        for kind, status in _statuses():
            app.add_exception_handler(kind, _handler(status))
        return app

    async def _start_grpc(self) -> None:
        arguments = self._arguments
        if arguments.grpc_port is None:
            return
        from grpc import aio
        from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
        from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
        from kserve.protocol.grpc.servicer import InferenceServicer

        # Without so_reuseport=0 two servers would share a port.
        options = [("grpc.max_receive_message_length", arguments.max_body), ("grpc.so_reuseport", 0)]
        self._grpc = aio.server(interceptors=[ExceptionToStatusInterceptor()], options=options)
        servicer = InferenceServicer(self._plane, _fixed_repository(self._repository))
        add_GRPCInferenceServiceServicer_to_server(servicer, self._grpc)
        with _bound(arguments.host, arguments.grpc_port, "--grpc-port"):
            pass  # grpc would write its own message to standard error if the port is taken
        try:
            arguments.grpc_port = self._grpc.add_insecure_port(f"{_in_address(arguments.host)}:{arguments.grpc_port}")
        except RuntimeError as error:
            raise _port_error(arguments.host, arguments.grpc_port, "--grpc-port", "it is taken") from error
        await self._grpc.start()

    async def _stop_grpc(self, server: Any) -> None:
        if self._grpc is not None:
            await self._grpc.stop(0 if server.force_exit else self._arguments.timeout)


def _run_loop() -> Callable[[Coroutine[Any, Any, float]], float]:
    """Return the function that runs a coroutine on uvloop, which takes less CPU time, or on asyncio without it."""
    try:
        import uvloop
    except ImportError:  # not for Windows
        return asyncio.run
    run: Callable[[Coroutine[Any, Any, float]], float] = uvloop.run
    return run


@contextlib.contextmanager
def _signals(stop: Callable[..., None]) -> Iterator[None]:
    """Call ``stop`` at SIGTERM, Ctrl-C and SIGHUP, except at ignored signals, such as SIGHUP under nohup."""
    # Python sets handlers in the main thread only.
    names = ("SIGTERM", "SIGINT", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP
    before = {one: signal.signal(one, stop) for one in numbers if signal.getsignal(one) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _import_kserve() -> Any:
    """Import kserve with an empty command line, because the module reads it at import."""
    import logging

    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        import kserve
    finally:
        sys.argv = arguments
    logger = logging.getLogger("kserve")
    logger.setLevel(logging.ERROR)
    logger.addFilter(lambda record: not _is_clients(record.exc_info))
    return kserve


def _is_clients(raised: Any) -> bool:
    """Return whether the error is only a bad request, which KServe would log with a traceback."""
    from grpc_interceptor.exceptions import GrpcException
    from kserve.errors import InvalidInput, ModelNotFound

    return bool(raised) and isinstance(raised[1], (InvalidInput, ModelNotFound, GrpcException, NotImplementedError))


def _kserve_model(kserve: Any, model: Served) -> Any:
    from grpc_interceptor import exceptions
    from kserve.errors import InvalidInput
    from kserve.protocol.infer_type import to_http_parameters

    class Model(kserve.Model):  # type: ignore[misc]
        """The model as KServe calls it."""

        def get_input_types(self) -> list[dict[str, Any]]:
            return model.inputs

        def get_output_types(self) -> list[dict[str, Any]]:
            return model.outputs

        async def predict(self, payload: Any, headers: Any = None) -> Any:  # noqa: ARG002
            try:
                name, kind, array = await model.answer(
                    map(_tensor, payload.inputs), to_http_parameters(payload.parameters or {})
                )
            except InvalidInputError as error:
                raise InvalidInput(str(error)) from None
            except QueueFullError as error:
                raise exceptions.Unavailable(str(error)) from None
            except ErnieMError as error:
                raise exceptions.Internal(str(error)) from error
            written = kserve.InferOutput(name, list(array.shape), kind, array)
            if payload.from_grpc:  # over gRPC, KServe 0.21 fails on arrays if inputs came as binary data
                written.set_data_from_numpy(array)
            return kserve.InferResponse(
                payload.id or str(uuid.uuid4()),
                model.name,
                [written],
                use_binary_outputs=payload.use_binary_outputs,
                requested_outputs=payload.request_outputs,
            )

    made = Model(model.name)
    made.load()
    return made


def _tensor(given: Any) -> Tensor:
    """Return name, datatype and array of KServe's input."""
    try:
        array = given.as_numpy()
        if list(array.shape) != list(given.shape):  # numpy fills in a negative size
            raise ValueError(f"they are {array.shape}")
        return given.name, given.datatype, array
    except Exception as error:  # numpy and struct raise many errors for data that does not fit
        raise InvalidInputError(
            f"input {given.name!r}: its data do not fit the shape {list(given.shape)} and the datatype "
            f"{given.datatype}: {error}."
        ) from error


def _data_plane(repository: Any) -> Any:
    from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER
    from kserve.errors import InvalidInput
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.rest.v2_datamodels import InferenceRequest

    class Plane(DataPlane):  # type: ignore[misc]
        """KServe's data plane; it also reads JSON of any content type, and has one error for invalid messages."""

        def decode(self, body: Any, headers: Any, **named: Any) -> Any:
            try:
                if isinstance(body, bytes):
                    length = headers.get(INFERENCE_CONTENT_LENGTH_HEADER)
                    if length is None:
                        body = InferenceRequest.model_validate_json(body)
                    elif problem := _wrong_with_binary(body, length):
                        raise InvalidInput(f"the request is not of the Open Inference Protocol: {problem}.")
                return super().decode(body, headers, **named)
            except InvalidInput:
                raise
            except struct.error as error:
                raise InvalidInput(
                    "the request is not of the Open Inference Protocol: binary data of BYTES must be texts, each after "
                    "its length in bytes as a little-endian 32-bit integer."
                ) from error
            except Exception as error:
                raise InvalidInput(_told(error)) from error

    return Plane(repository)


def _wrong_with_binary(body: bytes, length: str) -> str | None:
    """Return why a body is not JSON of ``length`` bytes and the binary data that it announces; None if it is.

    Further errors in the JSON are KServe's to find.
    """
    if not (length.isascii() and length.isdigit() and len(length) < 20 and int(length) <= len(body)):
        return f"Inference-Header-Content-Length must be the JSON's length, at most {len(body)} bytes, got {length!r}"
    try:
        inputs = json.loads(body[: int(length)])["inputs"]
        binary = [one for one in inputs if "binary_data_size" in (one.get("parameters") or {})]
        sizes = [one["parameters"]["binary_data_size"] for one in binary]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if any(one.get("data") is not None for one in binary):
        return "an input has either data or binary_data_size"
    if not all(is_count(size, 0) for size in sizes):
        return f"binary_data_size must be a number of bytes, got {sizes}"
    left = len(body) - int(length)
    return None if sum(sizes) == left else f"binary_data_size adds up to {sum(sizes)}, and {left} bytes follow the JSON"


def _fixed_repository(repository: Any) -> Any:
    from kserve.errors import InvalidInput
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension

    class Fixed(ModelRepositoryExtension):  # type: ignore[misc]
        """Refuses to load and unload models."""

        async def load(self, model_name: str) -> None:
            raise InvalidInput(f"{model_name!r} cannot be loaded or unloaded: start erniem-rt serve with other models.")

        unload = load

    return Fixed(repository)


def _statuses() -> Iterator[tuple[Any, Callable[[Any], int]]]:
    """Yield the HTTP status of each kind of error; others give 500, and uvicorn logs them."""
    from fastapi.exceptions import RequestValidationError
    from grpc_interceptor.exceptions import GrpcException, Unavailable
    from kserve.errors import InvalidInput, ModelNotFound
    from starlette.exceptions import HTTPException

    yield InvalidInput, lambda _: 400
    yield RequestValidationError, lambda _: 400
    yield ModelNotFound, lambda _: 404
    yield NotImplementedError, lambda _: 501
    yield HTTPException, lambda error: error.status_code
    yield GrpcException, lambda error: 503 if isinstance(error, Unavailable) else 500
    yield Exception, lambda _: 500


def _handler(status: Callable[[Any], int]) -> Callable[..., Any]:
    async def handle(_: Any, error: Any) -> Any:
        from starlette.responses import JSONResponse

        code = status(error)
        headers = {"Retry-After": "1"} if code == 503 else None
        return JSONResponse({"error": _told(error)}, code, headers)

    return handle


def _told(error: Any) -> str:
    """Return the message of an error, in one sentence."""
    if isinstance(error, NotImplementedError) or hasattr(error, "reason"):  # KServe's
        return str(error)
    for name in ("details", "detail"):  # grpc's, Starlette's
        if isinstance(told := getattr(error, name, None), str):
            return told
    if hasattr(error, "errors"):  # pydantic's; the first is enough
        first: dict[str, Any] = next(iter(error.errors()), {})
        place = ".".join(str(part) for part in first.get("loc", ()) if part not in ("body", "InferenceRequest"))
        cause = first.get("ctx", {}).get("error") or first.get("msg")
        return f"the request is not of the Open Inference Protocol: {place and f'{place}: '}{cause}."
    if isinstance(error, (ValueError, TypeError, LookupError)):
        return f"the request is not of the Open Inference Protocol: {type(error).__name__}: {error}."
    return "the server failed; its log says why."


class _Limited:
    """An ASGI application that limits the bytes of a request, and answers requests that a stopping server drops."""

    def __init__(self, app: Any, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        from fastapi import HTTPException
        from starlette.responses import JSONResponse

        encoding = dict(scope["headers"]).get(b"content-encoding", b"identity").decode("latin-1")
        if encoding.lower() != "identity":
            told = f"Content-Encoding {encoding!r} is not supported: send the body as it is."
            await JSONResponse({"error": told}, 415)(scope, receive, send)
            return
        total, started = 0, False

        async def counted() -> Any:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._most:
                raise HTTPException(413, f"the request is larger than --max-body={self._most} bytes: divide it.")
            return message

        async def noted(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except asyncio.CancelledError:  # --timeout is over, or a second signal came
            if not started:
                await JSONResponse({"error": "the server stops."}, 503)(scope, receive, send)


class _Collector:
    """Collects the batchers' counters for Prometheus."""

    def __init__(self, models: list[Served]) -> None:
        self._models = models

    def collect(self) -> Iterator[Any]:
        """Yield all metrics, by model."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

        found = [(model.name, model.batcher.stats) for model in self._models]
        requests = CounterMetricFamily(
            "erniem_requests", "Requests by how they ended", labels=["model_name", "outcome"]
        )
        waiting = GaugeMetricFamily("erniem_queue_rows", "Rows that wait", labels=["model_name"])
        running = GaugeMetricFamily("erniem_running_batches", "Batches that are computed", labels=["model_name"])
        batches = SummaryMetricFamily("erniem_batch_requests", "Requests per batch", labels=["model_name"])
        seconds = SummaryMetricFamily("erniem_request_seconds", "From request to answer", labels=["model_name"])
        for name, stats in found:
            for outcome in ("answered", "failed", "refused", "cancelled"):
                requests.add_metric([name, outcome], getattr(stats, outcome))
            waiting.add_metric([name], stats.waiting)
            running.add_metric([name], stats.running)
            sizes = stats.batch_sizes
            batches.add_metric([name], sum(sizes.values()), sum(size * count for size, count in sizes.items()))
            seconds.add_metric([name], stats.answered, stats.seconds)
        yield from (requests, waiting, running, batches, seconds)
