"""Nodes named after the parameters that they read, for those who must find one: error messages, and proofs."""

from __future__ import annotations

import re

import onnx_ir as ir

__all__ = ["name_products"]

_WEIGHT = re.compile(r"(?:ernie_m\.)?(?P<module>.+)\.weight(\.(T|int8|float16|bfloat16))*$")
_CARRIERS = frozenset({"Cast", "DequantizeLinear"})


def name_products(model: ir.Model) -> dict[str, ir.Node]:
    """Name each product after its linear layer, such as ``encoder.layers.0.linear1``, in place; return them by name."""
    products: dict[str, ir.Node] = {}
    for node in model.graph:
        source = node.inputs[1] if node.op_type == "MatMul" else None
        while source is not None and (maker := source.producer()) is not None and maker.op_type in _CARRIERS:
            source = maker.inputs[0]
        found = None if source is None else _WEIGHT.match(str(source.name))
        if found:
            node.name = found["module"]
            products[node.name] = node
    return products
