"""An ONNX file as a TensorRT network, strongly typed: what it computes in is what the graph says, nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from erniem_export.errors import EngineBuildError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from erniem_export.tensorrt.library import Library

__all__ = ["STRONGLY_TYPED", "blamed", "layers_of", "parse"]

STRONGLY_TYPED = "STRONGLY_TYPED"


def parse(library: Library, builder: Any, path: Path) -> Any:
    """Return the network; :class:`EngineBuildError` names the first node that the parser does not take."""
    module = library.module
    flags = 0
    if hasattr(module.NetworkDefinitionCreationFlag, STRONGLY_TYPED):  # every network is, where the flag is gone
        flags = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = module.OnnxParser(network, library.logger)
    with library.listening() as messages:
        taken = parser.parse_from_file(str(path))
    if not taken:
        raise EngineBuildError(f"{library} cannot take {path.name}: {_reason(parser, messages)}")
    return network


def _reason(parser: Any, messages: list[str]) -> str:
    if not parser.num_errors:
        return "; ".join(messages) or "the parser gives no reason"
    error = parser.get_error(0)
    name, operator = error.node_name(), error.node_operator()
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    node = f"node {name} ({operator}): " if name or operator else ""
    return f"{node}{' '.join(str(error.desc()).split())}{more}"


def layers_of(network: Any) -> list[Any]:
    """All layers, in the network's order."""
    return [network.get_layer(i) for i in range(network.num_layers)]


def blamed(network: Any, messages: Iterable[str]) -> str:
    """The node that the messages of a failed build name, as the beginning of a sentence; empty if they name none."""
    text = " ".join(messages)
    found = [
        layer.name
        for layer in layers_of(network)
        # Some messages go by the tensor that a node makes.
        for name in (layer.name, *(layer.get_output(i).name for i in range(layer.num_outputs)))
        if name and re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text.replace("node_of_", ""))
    ]
    return f"node {max(found, key=len)}: " if found else ""
