"""Reads PaddleNLP checkpoints: converts their configs, weights and names to PyTorch's.

A ``.pdparams`` file is a pickle. It is never unpickled: a parser follows its opcodes in the mapped file, and refuses
those that Paddle does not write.
"""

from __future__ import annotations

import math
import mmap
import os
import pickletools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erniem_export.errors import CheckpointError, some

SUFFIX = ".pdparams"
# PaddleNLP's name of the class for information extraction.
IE_CLASS = "UIEM"
# Epsilon of every LayerNorm in PaddleNLP's ErnieM; no config has it.
LAYER_NORM_EPS = 1e-5
# Beginning of the names of all its other classes.
_CLASS = "ErnieM"

_TORCH_IE_CLASS = "ErnieMForInformationExtraction"
# What uie_pytorch writes for UIE and UIEM alike, without a model_type; of the two, UIE alone has one of these keys.
_EITHER = ["UIE"]
_OF_UIE = ("type_vocab_size", "sent_type_vocab_size", "task_type_vocab_size", "use_task_id")
_PREFIX = re.compile(r"^(?P<prefix>ernie_m|encoder)\.(?=(?:embeddings|encoder|pooler)\.)")
_PROJECTION = re.compile(r"^(encoder\.layers\.\d+\.self_attn\.)([qkv]_proj\.)")
# In transformers these are nested one module deeper: self_attn.self_attn.q_proj.
_OWN_NAME = re.compile(r"layers\.\d+\.self_attn\.[qkv]_proj\.")
_EMBEDDING = "_embeddings.weight"

# The entry of a state dict with the names of Paddle's variables, which is no weight.
_VARIABLES = "StructuredToParameterName@@"
_SLICES = "UnpackBigParamInfor@@"

# numpy's codes of the weights' dtypes; bfloat16 is stored as u2.
_DTYPES = {"f2": "<f2", "f4": "<f4", "f8": "<f8", "u2": "<u2", "i8": "<i8", "i4": "<i4"}
# A pickle of protocol 2, 3 or 4.
_BEGINNINGS = (b"\x80\x02", b"\x80\x03", b"\x80\x04")
_LONGEST_COPY = 4096


def flat_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert ``config.json`` or ``model_config.json`` to the former's keys and the names of PyTorch's classes.

    Flattens ``init_args``, over which other keys take precedence. ``init_class`` becomes the architecture.
    """
    outer = {key: value for key, value in content.items() if key not in ("init_args", "init_class")}
    given = content.get("init_args", [])
    parts = [part for part in (given if isinstance(given, list) else [given]) if isinstance(part, dict)]
    flat: dict[str, Any] = {}
    for part in parts:
        flat |= {key: value for key, value in flat_config(part).items() if key != "architectures"}
        if str(part.get("init_class")).startswith(_CLASS) and "init_class" not in content:
            flat["model_type"] = "ernie_m"
    flat |= outer
    if "init_class" in content:
        flat["architectures"] = [content["init_class"]]
    if content.get("architectures") == _EITHER and not any(key in flat for key in ("model_type", *_OF_UIE)):
        flat |= {"architectures": [IE_CLASS], "model_type": "ernie_m"}
    if isinstance(flat.get("architectures"), list):
        flat["architectures"] = [_TORCH_IE_CLASS if name == IE_CLASS else name for name in flat["architectures"]]
    return flat


def is_paddle(files: Iterable[Path], names: Iterable[str]) -> bool:
    """Return whether weight files, with tensors of these names, are Paddle's."""
    return any(file.suffix == SUFFIX for file in files) or any(_OWN_NAME.search(name) for name in names)


def names_as_pytorch(names: Collection[str], head: str) -> dict[str, str]:
    """Map PyTorch's names to Paddle's.

    Raises:
        CheckpointError: The names mix the prefixes of older and later versions.
    """
    prefixes: dict[str, list[str]] = {}
    for name in names:
        if found := _PREFIX.match(name):
            prefixes.setdefault(found["prefix"], []).append(name)
    if len(prefixes) > 1:
        shown = " and ".join(some(found) for found in prefixes.values())
        raise CheckpointError(
            f"the weights have the prefixes of two versions of PaddleNLP, {shown}: keep those of one model"
        )
    return {_as_pytorch(name, head): name for name in names}


def _as_pytorch(name: str, head: str) -> str:
    bare = _PREFIX.sub("", name)
    inner = bare.startswith(("embeddings.", "encoder.", "pooler."))
    bare = _PROJECTION.sub(r"\1self_attn.\2", bare)
    if head == "qa":
        bare = re.sub(r"^classifier\.", "qa_outputs.", bare)
    return f"ernie_m.{bare}" if inner else bare


def shape_as_pytorch(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a tensor's shape in PyTorch's layout, which transposes the weights of linear layers."""
    return shape[::-1] if len(shape) == 2 and not name.endswith(_EMBEDDING) else shape


def tensor_as_pytorch(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor in PyTorch's layout, with the same bits; uint16 becomes bfloat16."""
    if tensor.dtype == torch.uint16:
        tensor = tensor.view(torch.bfloat16)
    return tensor.T if tensor.ndim == 2 and not name.endswith(_EMBEDDING) else tensor


class Array:
    """An array of a ``.pdparams`` file, whose values are read on demand."""

    shape: tuple[int, ...] = ()
    _dtype = ""
    _fortran = False
    _data: memoryview | bytes | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the array's values were found."""
        return self._data is not None

    def fill(self, state: object) -> None:
        """Set the state from numpy's pickle of an array; may be called once."""
        if self.is_whole:
            raise _UnexpectedError("an array with two states")
        match state:
            case (_, tuple(shape), _Dtype(code=code), bool(fortran), memoryview() | bytes() as data):
                if not all(type(size) is int and size >= 0 for size in shape):
                    raise _UnexpectedError(f"an array of shape {shape}")
                if math.prod(shape) * np.dtype(_DTYPES[code]).itemsize != len(data):
                    raise _UnexpectedError(f"an array of shape {shape} with {len(data)} bytes of {code}")
                self.shape, self._dtype, self._fortran, self._data = shape, _DTYPES[code], fortran, data
            case _:
                raise _UnexpectedError("an array of something else than numbers")

    def tensor(self) -> Tensor:
        """Return the values, copied from the file."""
        assert self._data is not None
        flat = np.frombuffer(self._data, self._dtype).copy()  # the file's data may be unaligned
        return torch.from_numpy(flat.reshape(self.shape, order="F" if self._fortran else "C"))


def read_arrays(file: Path) -> dict[str, Array]:
    """Return the weights in a ``.pdparams`` file by name, without running code or reading values.

    Raises:
        CheckpointError: The file is truncated, or is not a state dict written by Paddle.
    """
    try:
        with file.open("rb") as opened:
            content = _Mapped(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # an empty file cannot be mapped
        raise CheckpointError(f"{file} is empty: fetch it again") from error
    try:
        found = _Walk().walk(content)
    except _UnexpectedError as error:
        raise CheckpointError(
            f"{file} is not a state dict that Paddle saved ({error}): fetch it again, or save the model with "
            "save_pretrained where you trust it"
        ) from error
    return _weights_in(file, found)


def _weights_in(file: Path, found: object) -> dict[str, Array]:
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds no state dict: expected arrays by name")
    if found.get(_SLICES):
        raise CheckpointError(
            f"{file} holds weights in slices, as Paddle's protocols 2 and 3 do: save it with protocol 4"
        )
    weights = {name: value for name, value in found.items() if name not in (_VARIABLES, _SLICES)}
    others = [name for name, value in weights.items() if not isinstance(value, Array) or not value.is_whole]
    if others:
        inner = [name for name in others if isinstance(weights[name], dict)]
        around = f"a dict around the weights ({some(inner)})" if inner else f"more than weights ({some(others)})"
        raise CheckpointError(
            f"{file} holds {around}: save the model's state dict alone, with paddle.save(model.state_dict(), ...)"
        )
    return weights


class _UnexpectedError(Exception):
    """The file has content that Paddle does not write."""


class _Mapped(mmap.mmap):
    """A file for :func:`pickletools.genops`; arrays are not copied from it."""

    def read(self, size: int | None = None) -> Any:
        """Return the next bytes, as a view if there are many."""
        if size is None or size <= _LONGEST_COPY:
            return super().read(size)
        start = self.tell()
        view = memoryview(self)[start : start + size]
        self.seek(len(view), os.SEEK_CUR)
        return view


class _Global(Enum):
    """What a pickle may name."""

    RECONSTRUCT, ARRAY, DTYPE, ENCODE, TUPLE, DICT = range(6)


@dataclass(frozen=True)
class _Dtype:
    code: str


_KNOWN = {
    "numpy.core.multiarray._reconstruct": _Global.RECONSTRUCT,  # numpy 1
    "numpy._core.multiarray._reconstruct": _Global.RECONSTRUCT,  # numpy 2
    "numpy.ndarray": _Global.ARRAY,
    "numpy.dtype": _Global.DTYPE,
    "_codecs.encode": _Global.ENCODE,  # bytes in protocol 2
    "builtins.tuple": _Global.TUPLE,
    "collections.OrderedDict": _Global.DICT,
}


class _Walk:
    """Interprets the opcodes that Paddle writes, with a stack of plain data."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def walk(self, content: _Mapped) -> object:
        """Return the file's object."""
        if content[:2] not in _BEGINNINGS:
            raise _UnexpectedError("it does not begin as a pickle of protocol 2, 3 or 4")
        for opcode, argument, at in _opcodes(content):
            if opcode.name == "STOP" or at == 0:
                continue
            step = _STEPS.get(opcode.name)
            if step is None:
                raise _UnexpectedError(f"opcode {opcode.code.encode('latin-1')!r}")
            step(self, argument)
        found = self._pop()
        if self._stack or self._marks:
            raise _UnexpectedError("it holds more than one object")
        if after := len(content) - content.tell():
            raise _UnexpectedError(f"{after} bytes follow its end; expected none")
        return found

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise _UnexpectedError("a value is missing")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _to_mark(self) -> list[Any]:
        if not self._marks:
            raise _UnexpectedError("a mark is missing")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._top()

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise _UnexpectedError("a reference to nothing")
        self.push(self._memo[index])

    def tuple_of(self, count: int | None) -> None:
        values = self._to_mark() if count is None else [self._pop() for _ in range(count)][::-1]
        self.push(tuple(values))

    def name(self, name: str) -> None:
        if name not in _KNOWN:
            raise _UnexpectedError(f"it names {name}, which is not weights and could run code")
        self.push(_KNOWN[name])

    def name_on_stack(self) -> None:
        name, module = self._pop(), self._pop()
        self.name(f"{module}.{name}")

    def call(self) -> None:
        arguments, function = self._pop(), self._pop()
        self.push(_called(function, arguments))

    def build(self) -> None:
        state, value = self._pop(), self._top()
        if isinstance(value, Array):
            value.fill(state)
        elif not (isinstance(value, _Dtype) and isinstance(state, tuple) and state[1:2] in (("<",), ("|",))):
            raise _UnexpectedError("a state of something else than an array of little-endian numbers")

    def items(self, *, one: bool) -> None:
        items = [self._pop() for _ in range(2)][::-1] if one else self._to_mark()
        target, names = self._top(), items[::2]
        if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(name, str) for name in names):
            raise _UnexpectedError("items of something else than a dict with names")
        for name, value in zip(names, items[1::2], strict=True):
            if name in target:
                raise _UnexpectedError(f"it has {name} twice")
            target[name] = value


def _opcodes(content: Any) -> Iterator[tuple[Any, Any, int | None]]:
    try:
        yield from pickletools.genops(content)
    except ValueError as error:
        raise _UnexpectedError(f"it is truncated or damaged: {error}") from error


def _called(function: object, arguments: object) -> Any:
    if isinstance(arguments, tuple):
        match (function, *arguments):
            case (_Global.RECONSTRUCT, _Global.ARRAY, _, _):
                return Array()
            case (_Global.DTYPE, str(code), *_) if code in _DTYPES:
                return _Dtype(code)
            case (_Global.ENCODE, str(text), "latin1"):
                return _latin1(text)
            case (_Global.DICT,):
                return {}
            case (_Global.TUPLE, tuple(items)):
                return items
    raise _UnexpectedError("a call that makes no array")


def _latin1(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise _UnexpectedError("bytes that are none") from error


_VALUES = ("BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_STEPS: dict[str, Callable[[_Walk, Any], None]] = {  # Paddle's opcodes, with their argument; all others are refused
    "FRAME": lambda *_: None,
    "EMPTY_DICT": lambda walk, _: walk.push({}),
    "EMPTY_TUPLE": lambda walk, _: walk.push(()),
    "NONE": lambda walk, _: walk.push(None),
    "NEWTRUE": lambda walk, _: walk.push(True),
    "NEWFALSE": lambda walk, _: walk.push(False),
    **dict.fromkeys(_VALUES, _Walk.push),
    **dict.fromkeys(("MEMOIZE", "BINPUT", "LONG_BINPUT"), _Walk.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Walk.get),
    "MARK": lambda walk, _: walk.mark(),
    "TUPLE1": lambda walk, _: walk.tuple_of(1),
    "TUPLE2": lambda walk, _: walk.tuple_of(2),
    "TUPLE3": lambda walk, _: walk.tuple_of(3),
    "TUPLE": lambda walk, _: walk.tuple_of(None),
    "GLOBAL": lambda walk, name: walk.name(name.replace(" ", ".")),
    "STACK_GLOBAL": lambda walk, _: walk.name_on_stack(),
    "REDUCE": lambda walk, _: walk.call(),
    "BUILD": lambda walk, _: walk.build(),
    "SETITEM": lambda walk, _: walk.items(one=True),
    "SETITEMS": lambda walk, _: walk.items(one=False),
}
