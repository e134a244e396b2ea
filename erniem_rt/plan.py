"""What the manifest says of a TensorRT plan: how it was built, and where and for which shapes it runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from erniem_rt._fields import artifact_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from erniem_rt._fields import Fields

__all__ = ["FLAVOURS", "Plan", "Profile"]

# The name of each flavour's package and the name of the module that it installs.
FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_CAPABILITY = re.compile(r"[1-9][0-9]?\.[0-9]")


@dataclass(frozen=True)
class Profile:
    """A range of shapes that a plan runs: the sizes of the ids along the axes of its head, all three alike.

    ``opt`` is the shape that the kernels were chosen for; ``min <= opt <= max`` along every axis.
    """

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether a request of this shape fits."""
        return len(shape) == len(self.max) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


@dataclass(frozen=True)
class Plan:
    """The key ``plan`` of a manifest.

    ``version`` is the exact version of the library that built the plan, ``compute_capabilities`` the GPUs that it
    runs on (such as ``"8.9"``). ``attention``, ``proof``, ``build`` and ``parity`` are records for people and for the
    exporter: any JSON objects.
    """

    file: str
    flavour: str
    version: str
    precision: Mapping[str, str]
    compute_capabilities: tuple[str, ...]
    hardware_compatible: bool
    version_compatible: bool
    profiles: tuple[Profile, ...]
    attention: Mapping[str, Any]
    proof: Mapping[str, Any]
    build: Mapping[str, Any]
    parity: Mapping[str, Any]


def parse_plan(fields: Fields, axes: int, max_length: int) -> Plan:
    """Read and check the key ``plan`` of a head whose ids have ``axes`` axes and at most ``max_length`` positions."""
    precision = fields.section("precision")
    plan = Plan(
        file=fields.plain_name(fields.string("file")),
        flavour=fields.one_of("flavour", tuple(FLAVOURS)),
        version=fields.string("version"),
        precision={name: precision.string(name) for name in precision.data},
        compute_capabilities=fields.strings("compute_capabilities"),
        hardware_compatible=fields.boolean("hardware_compatible"),
        version_compatible=fields.boolean("version_compatible"),
        profiles=tuple(_parse_profile(profile, axes, max_length) for profile in fields.sections("profiles")),
        attention=fields.section("attention").data,
        proof=fields.section("proof").data,
        build=fields.section("build").data,
        parity=fields.section("parity").data,
    )
    fields.no_others(Plan.__dataclass_fields__)
    if not plan.compute_capabilities or not all(map(_CAPABILITY.fullmatch, plan.compute_capabilities)):
        raise artifact_error(
            fields.path,
            "key 'plan.compute_capabilities' must be a non-empty list of capabilities such as \"8.9\", "
            f"got {list(plan.compute_capabilities)}",
        )
    return plan


def _parse_profile(fields: Fields, axes: int, max_length: int) -> Profile:
    shapes = [fields.sizes(key, axes) for key in ("min", "opt", "max")]
    fields.no_others(Profile.__dataclass_fields__)
    place = f"key {fields.prefix.rstrip('.')!r}"
    if not all(low <= opt <= high for low, opt, high in zip(*shapes, strict=True)):
        raise artifact_error(fields.path, f"{place} must have min <= opt <= max along every axis, got {shapes}")
    if shapes[2][-1] > max_length:
        raise artifact_error(
            fields.path, f"{place} takes {shapes[2][-1]} positions, and the model takes at most {max_length}"
        )
    return Profile(*shapes)
