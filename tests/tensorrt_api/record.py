"""Write ``bindings.json``: what the bindings of full TensorRT offer, read from the bindings themselves.

The package index has the bindings, ``tensorrt-cu13-bindings``, and not the libraries under them. Nothing but names is
needed of those, so libraries of empty functions stand in while the bindings are imported. Needs gcc and Linux:

    pip download --no-deps tensorrt-cu12-bindings==10.4.0 tensorrt-cu13-bindings==11.4.0.106
    python tests/tensorrt_api/record.py *.whl
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("bindings.json")
LIBRARIES = {
    "nvinfer": "createInferBuilder createInferRefitter createInferRuntime",
    "nvonnxparser": "createNvOnnxParser createNvOnnxParserRefitter",
    "nvinfer_plugin": "",
}
PLAIN = {"nvinfer": "getBuilderPluginRegistry getPluginRegistry", "nvonnxparser": "getNvOnnxParserVersion"}
CLASSES = [
    *("Builder", "IBuilderConfig", "INetworkDefinition", "ILayer", "ITensor", "IOptimizationProfile", "ITimingCache"),
    *("OnnxParser", "ParserError", "IProgressMonitor", "ILogger"),
    *("Runtime", "ICudaEngine", "IExecutionContext", "EngineInspector", "IRuntimeConfig"),
]
VALUES = [
    *("NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "ProfilingVerbosity"),
    *("HardwareCompatibilityLevel", "ComputeCapability", "LayerInformationFormat", "LayerType", "AttentionIOForm"),
    *("DataType", "TensorIOMode", "ExecutionContextAllocationStrategy", "CudaGraphStrategy"),
    *("EngineValidity", "EngineInvalidityDiagnostics"),
]
PARAMETER = re.compile(r"(\w+): ")


def read(wheel: Path) -> dict[str, Any]:
    """Unpack a wheel and let another process, which finds the stand-ins, describe what is in it."""
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        make_libraries(Path(folder))
        environment = {**os.environ, "LD_LIBRARY_PATH": folder, "PYTHONPATH": folder}
        command = [sys.executable, __file__, "--describe"]
        return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def make_libraries(folder: Path) -> None:
    binary = next(folder.glob("*/tensorrt.so")).read_bytes()
    major = re.search(rb"libnvinfer\.so\.(\d+)", binary)
    assert major is not None
    for name, created in LIBRARIES.items():
        functions = [f"{function}_INTERNAL" for function in created.split()] + PLAIN.get(name, "").split()
        functions += ["initLibNvInferPlugins"] if name == "nvinfer_plugin" else []
        source = "".join(f"void* {function}(void) {{ return 0; }}\n" for function in functions)
        file = f"lib{name}.so.{major[1].decode()}"
        command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{file}", "-o", str(folder / file)]
        subprocess.run(command, input=source.encode(), check=True)


def describe(module: Any) -> dict[str, Any]:
    """Members of classes, with the parameters of each overload where it is a method, and values of enumerations."""
    classes = {name: vars_of(getattr(module, name)) for name in CLASSES if hasattr(module, name)}
    values = {
        name: {value: int(number) for value, number in getattr(module, name).__members__.items()}
        for name in VALUES
        if hasattr(module, name)
    }
    return {"classes": classes, "values": values}


def vars_of(kind: Any) -> dict[str, list[list[str]] | None]:
    return {name: overloads(getattr(kind, name)) for name in dir(kind) if not name.startswith("_")}


def overloads(member: Any) -> list[list[str]] | None:
    if not callable(member):
        return None
    lines = (member.__doc__ or "").splitlines()
    signatures = [re.sub(r"\[[^\]]*\]", "", line) for line in lines if re.match(r"(\d+\. )?\w+\(self: ", line)]
    return [PARAMETER.findall(line)[1:] for line in signatures]


def main(arguments: list[str]) -> None:
    if arguments == ["--describe"]:
        import tensorrt_bindings  # type: ignore[import-not-found]

        print(json.dumps({tensorrt_bindings.__version__: describe(tensorrt_bindings)}))
        return
    record = {version: found for wheel in arguments for version, found in read(Path(wheel)).items()}
    RECORD.write_text(layout(record), "utf-8")


def layout(record: dict[str, Any]) -> str:
    """JSON with a line for each class and enumeration."""
    parts = []
    for version, sections in record.items():
        inner = [
            f'  "{section}": {{\n'
            + ",\n".join(f'   "{name}": {json.dumps(what)}' for name, what in kinds.items())
            + "\n  }"
            for section, kinds in sections.items()
        ]
        parts.append(f' "{version}": {{\n' + ",\n".join(inner) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main(sys.argv[1:])
