"""What ``erniem-rt triton`` writes, in a real Triton Inference Server, asked by tritonclient.

The wheel lacks the onnxruntime backend: ``ERNIEM_TRITON_ONNXRUNTIME`` names a folder that has it (CONTRIBUTING.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import erniem_rt
from erniem_rt.cli import main

ONNXRUNTIME = os.environ.get("ERNIEM_TRITON_ONNXRUNTIME")
HEADS = ("base", "cls", "ie", "mc", "ner", "qa")


def free_port() -> int:
    """A free port below those of outgoing connections, which could take it before Triton does."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@dataclass(frozen=True)
class Triton:
    """The addresses of a running server."""

    http: str
    grpc: str


@pytest.fixture(scope="module")
def triton(nano_artifact, tmp_path_factory, examples) -> Iterator[Triton]:
    """A server with all seven models."""
    import pytriton

    folder = tmp_path_factory.mktemp("triton")
    packages = [str(Path(erniem_rt.__file__).parents[1]), sysconfig.get_paths()["purelib"]]
    places = [word for package in packages for word in ("--site-packages", package)]
    for name, example in examples.items():
        artifact = nano_artifact(example.head).parent
        command = ["triton", str(artifact), "--repository", str(folder / "models"), "--name", name, "--instances", "1"]
        task = ["--options", json.dumps({"task": example.task})] if example.task else []
        assert main([*command, *places, *task]) == 0
    for head in HEADS if ONNXRUNTIME else ():
        command = ["triton", str(nano_artifact(head).parent), "--repository", str(folder / "models"), "--arrays"]
        assert main([*command, "--name", f"{head}-arrays", "--threads", "1"]) == 0
    # The wheel has the backend in one folder, and what it starts in another.
    home = Path(pytriton.__file__).parent / "tritonserver"
    shutil.copytree(home / "backends", folder / "backends")
    stub = home / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(stub / "triton_python_backend_stub", folder / "backends" / "python")
    libraries = [str(home.parents[1] / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    if ONNXRUNTIME:
        backend = shutil.copytree(ONNXRUNTIME, folder / "backends" / "onnxruntime")
        (library,) = Path(libraries[0]).glob("libtritonserver-*.so")
        (backend / "libtritonserver.so").symlink_to(library)
    ports = {name: free_port() for name in ("http", "grpc", "metrics")}
    command = [home / "bin" / "tritonserver", "--model-repository", folder / "models"]
    command += ["--backend-directory", folder / "backends", *(f"--{name}-port={port}" for name, port in ports.items())]
    with (folder / "log").open("wb") as log:
        environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 180
        while b"Started Metrics Service" not in (said := (folder / "log").read_bytes()):
            assert process.poll() is None, said.decode()[-5000:]
            assert time.monotonic() < until, said.decode()[-5000:]
            time.sleep(0.1)
        yield Triton(f"127.0.0.1:{ports['http']}", f"127.0.0.1:{ports['grpc']}")
    finally:
        process.terminate()
        process.wait(60)


def tensors_of(library, columns):
    tensors = []
    for name, rows in columns.items():
        array = np.array(rows, dtype=object)
        array = array.reshape(-1, 1) if array.ndim == 1 else array
        tensors.append(library.InferInput(name, list(array.shape), "BYTES"))
        tensors[-1].set_data_from_numpy(array)
    return tensors


def read(result, name):
    if name == "base":
        return result.as_numpy("embedding")
    return [json.loads(text) for text in result.as_numpy("answer").reshape(-1)]


def test_answers_are_the_pipelines_to_the_bit(triton, nano_artifact, example):
    import tritonclient.grpc
    import tritonclient.http

    expected = example.answers(nano_artifact(example.head), threads=1)
    for library, address in ((tritonclient.http, triton.http), (tritonclient.grpc, triton.grpc)):
        with library.InferenceServerClient(address) as client:
            inputs = tensors_of(library, example.tensors)
            found = client.infer(example.name, inputs, parameters=example.parameters)
        example.assert_answered(read(found, example.name), expected)


def test_an_error_reaches_its_own_request_only(triton):
    import tritonclient.grpc as library

    with library.InferenceServerClient(triton.grpc) as client:
        asked = [["Fiona Kendall left Denver."], [""], ["Lakeside Motors."], ["a " * 60_000]] * 8
        found: dict[int, object] = {}

        def note(number):
            return lambda result, error: found.__setitem__(number, error or read(result, "ner"))

        for number, texts in enumerate(asked):
            client.async_infer("ner", tensors_of(library, {"text": texts}), note(number))
        until = time.monotonic() + 60
        while len(found) < len(asked):
            assert time.monotonic() < until
            time.sleep(0.01)
    told = {1: "input 0: text is empty: expected text.", 3: "has 120000 characters, more than max_characters=100000"}
    for number, answer in found.items():
        kind = number % 4
        if kind in told:
            assert told[kind] in str(answer)
        else:
            assert isinstance(answer[0], list)


@pytest.mark.parametrize(
    ("name", "columns", "parameters", "told"),
    [
        ("ner", {"text": [""]}, {}, "input 0: text is empty: expected text."),
        ("ner", {"text": ["a"]}, {"top_k": 2}, "takes no parameter 'top_k'"),
        ("qa", {"question": ["a"]}, {}, "expected 2 inputs but got 1"),
        ("base", {"text": ["a"]}, {"pooling": "none"}, "pooling='none' has no fixed shape"),
        ("nli", {"text": ["a"]}, {}, "needs candidate_labels"),
        ("nothing", {"text": ["a"]}, {}, "unknown model: 'nothing'"),
    ],
)
def test_a_bad_request_gets_one_clear_answer(triton, name, columns, parameters, told):
    import tritonclient.grpc
    import tritonclient.http as library

    with tritonclient.grpc.InferenceServerClient(triton.grpc) as client, pytest.raises(Exception) as raised:
        client.infer(name, tensors_of(tritonclient.grpc, columns), parameters=parameters)
    assert raised.value.status() == f"StatusCode.{'NOT_FOUND' if name == 'nothing' else 'INVALID_ARGUMENT'}"
    with library.InferenceServerClient(triton.http) as client:
        with pytest.raises(library.InferenceServerException) as raised:
            client.infer(name, tensors_of(library, columns), parameters=parameters)
        assert told in str(raised.value)
        assert raised.value.status() == ("404" if name == "nothing" else "400")
        assert client.infer("ner", tensors_of(library, {"text": ["Fiona Kendall."]})).as_numpy("answer").shape == (1, 1)


@pytest.mark.skipif(not ONNXRUNTIME, reason="ERNIEM_TRITON_ONNXRUNTIME names no folder with the onnxruntime backend")
@pytest.mark.parametrize("head", HEADS)
def test_arrays_are_answered_as_by_a_session(triton, nano_artifact, head):
    """Up to the last bits, because the backend may have another version of onnxruntime."""
    import tritonclient.grpc as library

    rng = np.random.default_rng(0)
    with (
        erniem_rt.Session(nano_artifact(head), threads=1) as session,
        library.InferenceServerClient(triton.grpc) as client,
    ):
        for rows, length in ((1, 1), (3, 17), (2, 511)):
            shape = (rows, 3, length) if head == "mc" else (rows, length)
            kept = rng.integers(1, length + 1, (*shape[:-1], 1))
            mask = (np.arange(length) < kept).astype(np.int64)
            feeds = {"input_ids": np.where(mask, rng.integers(5, 200, shape), 1), "attention_mask": mask}
            tensors = [library.InferInput(name, list(shape), "INT64") for name in feeds]
            for tensor, array in zip(tensors, feeds.values(), strict=True):
                tensor.set_data_from_numpy(array)
            found = client.infer(f"{head}-arrays", tensors)
            for name, expected in session.run(**feeds).items():
                np.testing.assert_allclose(found.as_numpy(name), expected, rtol=0, atol=5e-5, err_msg=name)
