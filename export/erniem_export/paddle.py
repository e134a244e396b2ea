"""Reads PaddleNLP checkpoints: converts their configs, weights and names to PyTorch's.

A ``.pdparams`` file is a pickle. It is never unpickled: a parser follows its opcodes in the mapped file, and refuses
those that Paddle does not write.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from erniem_export.errors import CheckpointError, some

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "IE_CLASS",
    "LAYER_NORM_EPS",
    "SUFFIX",
    "flat_config",
    "is_paddle",
    "names_as_pytorch",
    "read_arrays",
    "shape_as_pytorch",
    "tensor_as_pytorch",
]

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
_PROTOCOLS = (2, 3, 4)
_LONGEST_LINE = 200


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
            content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # an empty file cannot be mapped
        raise CheckpointError(f"{file} is empty: fetch it again") from error
    try:
        found = _Walk(memoryview(content)).walk()
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


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Dtype:
    code: str


_RECONSTRUCT, _ARRAY, _DTYPE = _Global("_reconstruct"), _Global("ndarray"), _Global("dtype")
_ENCODE, _TUPLE, _DICT = _Global("encode"), _Global("tuple"), _Global("OrderedDict")
_KNOWN = {
    "numpy.core.multiarray._reconstruct": _RECONSTRUCT,  # numpy 1
    "numpy._core.multiarray._reconstruct": _RECONSTRUCT,  # numpy 2
    "numpy.ndarray": _ARRAY,
    "numpy.dtype": _DTYPE,
    "_codecs.encode": _ENCODE,  # bytes in protocol 2
    "builtins.tuple": _TUPLE,
    "collections.OrderedDict": _DICT,
}


class _Walk:
    """Interprets the opcodes that Paddle writes, with a stack of plain data."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def walk(self) -> object:
        """Return the file's object."""
        if bytes(self._take(1)) != b"\x80" or self._take(1)[0] not in _PROTOCOLS:
            raise _UnexpectedError("it does not begin as a pickle of protocol 2, 3 or 4")
        while (code := bytes(self._take(1))) != b".":
            step = _STEPS.get(code)
            if step is None:
                raise _UnexpectedError(f"opcode {code!r}")
            step(self)
        found = self._pop()
        if self._stack or self._marks:
            raise _UnexpectedError("it holds more than one object")
        if after := len(self._content) - self._at:
            raise _UnexpectedError(f"{after} bytes follow its end; expected none")
        return found

    def _take(self, count: int) -> memoryview:
        if self._at + count > len(self._content):
            raise _UnexpectedError("it is truncated")
        self._at += count
        return self._content[self._at - count : self._at]

    def _number(self, kind: str) -> int:
        return int(struct.unpack(kind, self._take(struct.calcsize(kind)))[0])

    def _text(self, size: int) -> str:
        try:
            return bytes(self._take(size)).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise _UnexpectedError("a text that is not UTF-8") from error

    def _line(self) -> str:
        rest = bytes(self._content[self._at : self._at + _LONGEST_LINE])
        line, end, _ = rest.partition(b"\n")
        if not end:
            raise _UnexpectedError("a name without an end")
        self._at += len(line) + 1
        return line.decode("ascii", "backslashreplace")

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

    def skip_frame(self) -> None:
        self._take(8)

    def put(self, kind: str | None) -> None:
        self._memo[len(self._memo) if kind is None else self._number(kind)] = self._top()

    def get(self, kind: str) -> None:
        index = self._number(kind)
        if index not in self._memo:
            raise _UnexpectedError("a reference to nothing")
        self.push(self._memo[index])

    def number(self, kind: str) -> None:
        self.push(self._number(kind))

    def text(self, kind: str) -> None:
        self.push(self._text(self._number(kind)))

    def data(self, kind: str) -> None:
        self.push(self._take(self._number(kind)))

    def tuple_of(self, count: int | None) -> None:
        values = self._to_mark() if count is None else [self._pop() for _ in range(count)][::-1]
        self.push(tuple(values))

    def global_in_lines(self) -> None:
        module = self._line()
        self.push(_global(module, self._line()))

    def global_on_stack(self) -> None:
        name, module = self._pop(), self._pop()
        self.push(_global(module, name))

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


def _global(module: object, name: object) -> _Global:
    known = _KNOWN.get(f"{module}.{name}")
    if known is None:
        raise _UnexpectedError(f"it names {module}.{name}, which is not weights and could run code")
    return known


def _called(function: object, arguments: object) -> Any:
    if isinstance(arguments, tuple):
        match (function, *arguments):
            case (f, a, _, _) if f is _RECONSTRUCT and a is _ARRAY:
                return Array()
            case (f, str(code), *_) if f is _DTYPE and code in _DTYPES:
                return _Dtype(code)
            case (f, str(text), "latin1") if f is _ENCODE:
                return _latin1(text)
            case (f,) if f is _DICT:
                return {}
            case (f, tuple(items)) if f is _TUPLE:
                return items
    raise _UnexpectedError("a call that makes no array")


def _latin1(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise _UnexpectedError("bytes that are none") from error


_STEPS: dict[bytes, Callable[[_Walk], None]] = {  # Paddle's opcodes; all others are refused
    b"\x95": _Walk.skip_frame,
    b"}": lambda walk: walk.push({}),
    b")": lambda walk: walk.push(()),
    b"N": lambda walk: walk.push(None),
    b"\x88": lambda walk: walk.push(True),
    b"\x89": lambda walk: walk.push(False),
    b"\x94": lambda walk: walk.put(None),
    b"q": lambda walk: walk.put("<B"),
    b"r": lambda walk: walk.put("<I"),
    b"h": lambda walk: walk.get("<B"),
    b"j": lambda walk: walk.get("<I"),
    b"(": _Walk.mark,
    b"\x8c": lambda walk: walk.text("<B"),
    b"X": lambda walk: walk.text("<I"),
    b"C": lambda walk: walk.data("<B"),
    b"B": lambda walk: walk.data("<I"),
    b"\x8e": lambda walk: walk.data("<Q"),
    b"K": lambda walk: walk.number("<B"),
    b"M": lambda walk: walk.number("<H"),
    b"J": lambda walk: walk.number("<i"),
    b"\x85": lambda walk: walk.tuple_of(1),
    b"\x86": lambda walk: walk.tuple_of(2),
    b"\x87": lambda walk: walk.tuple_of(3),
    b"t": lambda walk: walk.tuple_of(None),
    b"c": _Walk.global_in_lines,
    b"\x93": _Walk.global_on_stack,
    b"R": _Walk.call,
    b"b": _Walk.build,
    b"s": lambda walk: walk.items(one=True),
    b"u": lambda walk: walk.items(one=False),
}
