"""``erniem-rt triton``: writes a model repository for Triton Inference Server; has the model of its Python backend."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniem_rt.batcher import Batcher
from erniem_rt.checks import require_count
from erniem_rt.errors import ErnieMError, InvalidInputError
from erniem_rt.locations import find_artifact, manifest_of
from erniem_rt.machine import threads_or_default
from erniem_rt.manifest import OPTIMUM_GRAPH, Manifest, weights_name
from erniem_rt.serve import LISTS, hidden_size, names_of_inputs, open_pipeline, read_call, write_answers
from erniem_rt.session import locate

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from erniem_rt.manifest import Plan, TensorSpec
    from erniem_rt.pipelines.base import Pipeline

__all__ = ["TritonPythonModel", "add_arguments", "write"]

# The first image whose onnxruntime is new enough, by the oldest version that runs a graph.
_IMAGES = {"1.21": "25.03", "1.24": "26.02"}
_TYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# The largest numbers: a process does not start more threads, and the config's integers have 32 bits.
_LARGEST = {"threads": 1024, "instances": 1024, "max_batch": 2**31 - 1}
# Most rows in one of Triton's batches: of texts, and of arrays.
_MOST_TEXTS, _MOST_ROWS = 16, 64
_MODEL = '''\
"""Written by erniem-rt triton. Triton's Python needs erniem-rt: pip install "erniem-rt[{extra},text]"."""
{paths}
from erniem_rt.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_PATHS = """
import sys

sys.path[:0] = {folders}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``erniem-rt triton``."""
    count: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("artifact", metavar="DIR", help="an exported folder, HEAD.onnx or HEAD.plan in it, or a hub id")
    parser.add_argument("--repository", required=True, metavar="DIR", help="the model repository; made if missing")
    parser.add_argument("--name", help="the model's name; default: the folder's")
    parser.add_argument(
        "--arrays",
        action="store_true",
        help="ids in, logits out, by Triton's onnxruntime backend or, for a plan, its TensorRT backend; "
        "default: texts in, answers out, by its Python backend",
    )
    parser.add_argument(
        "--options",
        metavar="JSON",
        help='the task, and options of the session and the pipeline, like \'{"task": "zero-shot-classification"}\'',
    )
    parser.add_argument(
        "--site-packages",
        action="append",
        metavar="DIR",
        help="where Triton finds erniem-rt and its packages, if its Python does not have them; may be repeated",
    )
    parser.add_argument(
        "--instances",
        **count,
        help="processes that answer; default: one per CPU of this machine, 1 for a plan, Triton's with --arrays",
    )
    parser.add_argument(
        "--threads", **count, help="threads of each, not for a plan; default: 1, with --arrays Triton's"
    )
    parser.add_argument(
        "--max-batch",
        **count,
        help=f"most rows that run together; default: {_MOST_TEXTS}, with --arrays {_MOST_ROWS}, "
        "or what a plan runs at each length",
    )
    parser.add_argument("--max-characters", **count, help="most characters of one request; default: 100000")


def write(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Write a model into the repository, completely or not at all.

    Raises:
        ErnieMError: The artifact cannot be served, an option is invalid, or the repository has a model of this name.
    """
    artifact = find_artifact(arguments.artifact)
    described = manifest_of(artifact)
    if described.is_file() and Manifest.load(described).artifact == OPTIMUM_GRAPH and artifact.suffix != ".plan":
        raise InvalidInputError(
            f"{arguments.artifact} is in the layout of optimum, which Triton's folders have no place for: export it "
            "without --layout."
        )
    name = arguments.name or _default_name(arguments.artifact, artifact)
    if not _NAME.fullmatch(name):  # with others, Triton's Python backend fails
        raise InvalidInputError(
            f"--name must have English letters, digits and ._- only, and start with a letter or digit, got {name!r}."
        )
    target = Path(arguments.repository) / name
    _require_new(target)
    files, needs = (_arrays if arguments.arrays else _texts)(arguments, artifact, name)
    _publish(files, target)
    say(f"{target} needs {needs}")
    return 0


def _default_name(given: str, artifact: Path) -> str:
    """Return the folder's name, or the hub's: the folder of a download is named after a commit."""
    # Not resolved: a link keeps its name.
    folder = os.path.abspath(artifact.parent)  # noqa: PTH100
    return Path(folder).name if Path(given).exists() else given.rpartition("/")[2]


def _publish(files: dict[str, str | Path], target: Path) -> None:
    """Write a model beside the repository and move it there, since Triton reads every folder of the repository.

    If that is not possible, for example because the repository is mounted, prepare it in the repository.
    """
    repository = target.parent
    repository.mkdir(parents=True, exist_ok=True)
    try:
        _move_in(files, target, repository.resolve().parent)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        _move_in(files, target, repository)


def _move_in(files: dict[str, str | Path], target: Path, prepared: Path) -> None:
    part = prepared / f".{target.name}-{uuid.uuid4().hex}"
    try:
        _fill(part, files)
        _require_new(target)
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _require_new(target: Path) -> None:
    if os.path.lexists(target):
        raise InvalidInputError(f"{target} exists: give another --name or --repository, or remove it.")


def _fill(part: Path, files: dict[str, str | Path]) -> None:
    """Write texts, and copy files."""
    for place, content in files.items():
        path = part / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_text(content, "utf-8")


def _texts(arguments: argparse.Namespace, artifact: Path, name: str) -> tuple[dict[str, str | Path], str]:
    """Return the files for the Python backend; opening the pipeline once checks the artifact and the options."""
    has_plan = artifact.suffix == ".plan"
    options = _options(arguments, {} if has_plan else {"threads": 1})
    instances = _count(arguments, "instances") or (1 if has_plan else threads_or_default(None))
    limits = {
        "max_batch": _count(arguments, "max_batch") or _MOST_TEXTS,
        "max_characters": 100_000 if arguments.max_characters is None else arguments.max_characters,
    }
    with open_pipeline(artifact, options) as pipeline, Batcher(pipeline, workers=1, **limits):
        config = _python_config(pipeline, name, instances, limits, options)
        extra = _extra(pipeline.manifest, options, has_plan)
    found: dict[str, str | Path] = {f"1/artifact/{path.name}": path for path in _companions(artifact)}
    paths = _PATHS.format(folders=arguments.site_packages) if arguments.site_packages else ""
    files = {"config.pbtxt": config, "1/model.py": _MODEL.format(extra=extra, paths=paths), **found}
    return files, f"erniem-rt[{extra},text] in Triton's Python"


def _extra(manifest: Manifest, options: dict[str, Any], has_plan: bool) -> str:
    """Return the extra with the engine that Triton's Python needs."""
    if has_plan and manifest.plan is not None:
        return manifest.plan.flavour
    if str(options.get("device", "")).startswith("cuda"):
        return "gpu"
    return "openvino" if options.get("engine") == "openvino" or "bf16" in manifest.precision.values() else "ort"


def _count(arguments: argparse.Namespace, name: str) -> int | None:
    """Return an option that counts; None if it was not given."""
    given = getattr(arguments, name)
    return None if given is None else require_count(name, given, most=_LARGEST[name])


def _companions(artifact: Path) -> Iterator[Path]:
    """Yield the files of this artifact and its tokenizer, without those of other artifacts in the folder."""
    heads = {path.stem for path in artifact.parent.glob("*.onnx")} - {artifact.stem}
    for path in sorted(artifact.parent.iterdir()):
        if path.is_file() and path.name.partition(".")[0] not in heads:
            yield path


def _options(arguments: argparse.Namespace, defaults: dict[str, Any]) -> dict[str, Any]:
    try:
        options = json.loads("{}" if arguments.options is None else arguments.options)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"--options must be JSON, but {error}.") from error
    if not isinstance(options, dict):
        raise InvalidInputError('--options must be like {"top_k": 2}.')
    threads = _count(arguments, "threads")
    if threads is None:
        return {**defaults, **options}
    if "threads" in options:
        raise InvalidInputError("threads is given twice: by --threads and in --options.")
    return {"threads": threads, **options}


def _python_config(
    pipeline: Pipeline[Any], name: str, instances: int, limits: dict[str, Any], options: dict[str, Any]
) -> str:
    inputs = [
        _block(
            name=one,
            data_type="TYPE_STRING",
            dims=["-1"] if one in LISTS else ["1"],
            optional=one not in pipeline.required,
            allow_ragged_batch=one in LISTS,
        )
        for one in names_of_inputs(pipeline)
    ]
    hidden = hidden_size(pipeline)
    output = _block(
        name="answer" if hidden is None else "embedding",
        data_type="TYPE_STRING" if hidden is None else "TYPE_FP32",
        dims=["1" if hidden is None else str(hidden)],
    )
    # Encoded twice: text protobuf needs the JSON as a quoted string.
    value = json.dumps(json.dumps({"options": options, "limits": limits, "artifact": pipeline.session.path.name}))
    return "\n".join(
        [
            f"name: {json.dumps(name)}",
            'backend: "python"',
            f"max_batch_size: {limits['max_batch']}",
            f"input [ {', '.join(inputs)} ]",
            f"output [ {output} ]",
            "dynamic_batching { }",
            f"instance_group [ {{ count: {instances} kind: KIND_CPU }} ]",
            f'parameters {{ key: "erniem_rt" value {{ string_value: {value} }} }}',
            "",
        ]
    )


def _arrays(arguments: argparse.Namespace, artifact: Path, name: str) -> tuple[dict[str, str | Path], str]:
    """Return the files for the onnxruntime or TensorRT backend."""
    for option in ("options", "site_packages", "max_characters"):
        if getattr(arguments, option) is not None:
            raise InvalidInputError(f"--{option.replace('_', '-')} is for texts: leave it out, or --arrays.")
    artifact, manifest = locate(artifact)
    plan = manifest.plan if artifact.suffix == ".plan" else None
    # As for a session: the plan runs without the graph, and the graph without the plan.
    if plan is not None:
        others = {manifest.artifact, weights_name(manifest.artifact)}
    else:
        others = set() if manifest.plan is None else {manifest.plan.file}
    manifest.verify(artifact.parent, without=others)
    file, backend = (manifest.artifact, "onnxruntime") if plan is None else (plan.file, "tensorrt")
    by_row = all(spec.shape[:1] == ("batch",) for spec in (*manifest.inputs, *manifest.outputs))
    lines = [
        f"name: {json.dumps(name)}",
        f'backend: "{backend}"',
        f"default_model_filename: {json.dumps(file)}",
        f"max_batch_size: {_rows(_count(arguments, 'max_batch'), plan, by_row)}",
        f"input [ {', '.join(_tensor_block(spec, by_row) for spec in manifest.inputs)} ]",
        f"output [ {', '.join(_tensor_block(spec, by_row) for spec in manifest.outputs)} ]",
        *(["dynamic_batching { }"] if by_row else []),
        *_instances(_count(arguments, "instances"), _count(arguments, "threads"), plan),
        "",
    ]
    data = weights_name(file)
    files: dict[str, str | Path] = {"config.pbtxt": "\n".join(lines), f"1/{file}": artifact.with_name(file)}
    if data in manifest.files:
        files[f"1/{data}"] = artifact.with_name(data)
    return files, _needs(manifest, plan)


def _rows(given: int | None, plan: Plan | None, by_row: bool) -> int:
    """Return Triton's ``max_batch_size``: 0 says that the tensors have no rows to put together."""
    if not by_row:
        if given is not None:
            raise InvalidInputError("--max-batch: the artifact's tensors have no rows to put together: leave it out.")
        return 0
    if plan is None:
        return given or _MOST_ROWS
    most = [profile.max for profile in plan.profiles]
    rows = [max(other[0] for other in most if _covers(other[1:], shape[1:])) for shape in most]
    if given is not None and given > max(rows):
        raise InvalidInputError(f"--max-batch {given}: the plan runs at most {max(rows)} rows.")
    return given or min(rows)


def _covers(most: tuple[int, ...], row: tuple[int, ...]) -> bool:
    return all(one >= other for one, other in zip(most, row, strict=True))


def _instances(count: int | None, threads: int | None, plan: Plan | None) -> Iterator[str]:
    """Yield what the config says about the instances that run arrays; without it, Triton decides."""
    if plan is not None and len(plan.profiles) > 1:  # Triton would take the first only
        profiles = ", ".join(f'"{index}"' for index in range(len(plan.profiles)))
        yield f"instance_group [ {{ count: {count or 1} kind: KIND_GPU profile: [ {profiles} ] }} ]"
    elif count is not None:
        yield f"instance_group [ {{ count: {count} }} ]"
    if threads is not None:
        if plan is not None:
            raise InvalidInputError("--threads is for a CPU, and a plan runs on a GPU: leave it out.")
        yield f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}'


def _needs(manifest: Manifest, plan: Plan | None) -> str:
    """Return what the artifact needs."""
    if plan is None:
        least = manifest.onnxruntime or min(_IMAGES)
        known = f", as in Triton {_IMAGES[least]} and later" if least in _IMAGES else ""
        return f"onnxruntime {least} or newer{known}{', and a GPU' * (manifest.precision['weights'] == 'bf16')}"
    if plan.flavour != "tensorrt":
        raise InvalidInputError(
            f"{plan.file} is a plan of {plan.flavour}, and Triton runs those of TensorRT: export with "
            "--engine tensorrt."
        )
    if plan.version_compatible:
        option = "--backend-config=tensorrt,version-compatible=true"
        return f"a Triton image with TensorRT {plan.version} or newer, and tritonserver {option}"
    return f"a Triton image with TensorRT {plan.version}"


def _tensor_block(spec: TensorSpec, by_row: bool) -> str:
    dims = [str(axis) if isinstance(axis, int) else "-1" for axis in spec.shape[1 if by_row else 0 :]]
    return _block(name=spec.name, data_type=f"TYPE_{_TYPES[spec.dtype]}", dims=dims)


def _block(*, name: str, data_type: str, dims: list[str], **flags: bool) -> str:
    told = "".join(f" {flag}: true" for flag, value in flags.items() if value)
    return f'{{ name: "{name}" data_type: {data_type} dims: [ {", ".join(dims)} ]{told} }}'


class TritonPythonModel:
    """The model class for Triton's Python backend: texts in, answers as JSON out, an error for each bad request."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the artifact of this version of the model."""
        settings = json.loads(json.loads(args["model_config"])["parameters"]["erniem_rt"]["string_value"])
        folder = Path(args["model_repository"]) / args["model_version"] / "artifact"
        pipeline = open_pipeline(folder / settings["artifact"], settings["options"])
        # Triton has a queue of its own.
        self._batcher = Batcher(pipeline, workers=1, max_queue=1 << 30, **settings["limits"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response for each request."""
        calls = [_call_of(self._batcher, request) for request in requests]
        futures = iter(self._batcher.submit_all(call for call in calls if not isinstance(call, ErnieMError)))
        return [self._response(call if isinstance(call, ErnieMError) else next(futures)) for call in calls]

    def finalize(self) -> None:
        """Close the model."""
        self._batcher.close()
        self._batcher.pipeline.close()

    def _response(self, answered: Any) -> Any:
        import triton_python_backend_utils as backend

        error = answered if isinstance(answered, ErnieMError) else answered.exception()
        if error is not None:
            kind = (
                backend.TritonError.INVALID_ARG
                if isinstance(error, InvalidInputError)
                else backend.TritonError.INTERNAL
            )
            return backend.InferenceResponse([], backend.TritonError(str(error), kind))
        name, _, array = write_answers(self._batcher.pipeline, answered.result())
        return backend.InferenceResponse([backend.Tensor(name, array if array.ndim > 1 else array[:, None])])


def _call_of(batcher: Batcher, request: Any) -> tuple[list[Any], dict[str, Any]] | InvalidInputError:
    """Return a request's inputs and options, or the error in them."""
    tensors = [(tensor.name(), "BYTES", tensor.as_numpy()) for tensor in request.inputs()]
    parameters = json.loads(request.parameters() or "{}")
    try:
        if parameters.get("pooling") == "none":
            raise InvalidInputError("pooling='none' has no fixed shape, as Triton's outputs have: use erniem-rt serve.")
        return read_call(batcher, tensors, parameters)
    except InvalidInputError as error:
        return error
