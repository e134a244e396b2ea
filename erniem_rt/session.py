"""One exported model: arrays in, arrays out."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniem_rt._cpu import warn_of_cpu
from erniem_rt._inputs import prepare
from erniem_rt._signature import check_signature
from erniem_rt.engines import check_suffix, open_engine
from erniem_rt.engines.base import Device, Engine
from erniem_rt.errors import ArtifactError, EngineUnavailableError, InvalidInputError
from erniem_rt.manifest import Manifest

if TYPE_CHECKING:
    import os
    from types import TracebackType

    from numpy.typing import ArrayLike, NDArray

__all__ = ["Session"]


class Session:
    """An artifact, loaded. Safe to share between threads; a context manager.

    Args:
        path: ``HEAD.onnx``, or its manifest ``HEAD.json``, in the folder that was exported.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. Never a wish: a device that is not there is an error.
        threads: threads that one run may use; None leaves it to the engine (all physical cores).
        cuda_graphs: on ``cuda``, replay each shape as a CUDA graph from its second time on (the first 16 shapes that
            come again): faster for small batches. Runs then take turns. Not for packed graphs, whose work depends on
            the mask.
        verify: compare the SHA-256 of every file with the manifest, at about a second per GB of weights.
            Without it, only that the files are there with their sizes.

    Raises:
        ArtifactError: a file is missing, damaged, changed, or does not fit its manifest.
        EngineUnavailableError: the engine's package or the device is not there, or the device cannot compute the graph.
        InvalidInputError: ``device``, ``threads`` or ``cuda_graphs`` is none of the above.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        threads: int | None = None,
        cuda_graphs: bool = False,
        verify: bool = True,
    ) -> None:
        self._device = Device.parse(device)
        threads = _checked_threads(threads)
        self._path, self.manifest = _locate(Path(path))
        if self._device.kind == "cpu":
            warn_of_cpu(self.manifest.engine)
        if cuda_graphs:
            _check_capture(self._path, self.manifest, self._device)
        self._engine = _load(self._path, self.manifest, self._device, threads, cuda_graphs, verify)
        self._outputs = [spec.name for spec in self.manifest.outputs]
        self._closed = False

    def run(
        self, inputs: Mapping[str, ArrayLike | None] | None = None, /, **named: ArrayLike | None
    ) -> dict[str, NDArray[Any]]:
        """Answer one batch; inputs by keyword, as one mapping, or both. None means not given.

        * ``input_ids``: any integer dtype, ``(batch, sequence)``, for head ``mc`` ``(batch, choices, sequence)``;
          ids from 0 to ``vocab_size - 1``, rows of at most ``max_length`` (see ``manifest.limits``).
        * ``attention_mask``: same shape, 1 where to attend and 0 elsewhere, any real dtype or bool.
          Without it, padding is what equals ``pad_token_id``.

        Graphs exported with further inputs also take, with the same defaults as the reference:
        ``position_ids`` (shape of the ids; 0 to ``max_length - 1``; default 0, 1, 2 …), ``head_mask``
        (``(layers, heads)``, real; default ones), ``inputs_embeds`` (``(batch, sequence, hidden)``, real, instead of
        ``input_ids``; the mask's default is then all ones).

        Returns the outputs of the manifest by name, and leaves the arrays that were given as they are. Raises
        :class:`InvalidInputError`, and :class:`EngineError` if the engine fails, for want of memory for example.
        """
        if self._closed:
            raise InvalidInputError(f"the session on {self._path} is closed; open it again.")
        feeds = prepare(self.manifest, _merged(inputs, named))
        return dict(zip(self._outputs, self._engine.run(feeds, self._outputs), strict=True))

    def close(self) -> None:
        """Free the model; runs under way in other threads finish. Closing twice is fine."""
        self._closed = True
        self._engine.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Session({str(self._path)!r}, head={self.manifest.head!r}, device={str(self._device)!r})"


def _locate(path: Path) -> tuple[Path, Manifest]:
    """The artifact and its manifest, from the path of either."""
    if path.suffix != ".json":
        if path.is_dir():
            raise ArtifactError(f"{path} is a folder; give the artifact in it, for example {path / 'qa.onnx'}.")
        check_suffix(path)
        if not path.exists():
            raise ArtifactError(f"{path} is missing. Check the path, or export with erniem-export.")
    manifest = Manifest.load(path.with_suffix(".json"))
    artifact = path.with_name(manifest.artifact)
    check_suffix(artifact)
    if path.suffix != ".json" and artifact.name != path.name:
        raise ArtifactError(
            f"{path.with_suffix('.json')} describes {artifact.name}, not {path.name}. Exported files keep their names: "
            "restore them or export again."
        )
    return artifact, manifest


def _check_capture(path: Path, manifest: Manifest, device: Device) -> None:
    if device.kind != "cuda":
        raise InvalidInputError(f"cuda_graphs=True needs device='cuda', got device={str(device)!r}.")
    if (manifest.engine or {}).get("packed"):
        raise ArtifactError(
            f"{path} was exported with --target {manifest.target}, and the work of a packed graph depends on the mask: "
            "leave out cuda_graphs, or export with --target onnxruntime-cuda."
        )


def _load(
    path: Path, manifest: Manifest, device: Device, threads: int | None, cuda_graphs: bool, verify: bool
) -> Engine:
    """Open the engine while another thread computes the hashes, which take longer: about a second per GB."""
    # Sizes first: reading past the end of a mapped file that was truncated kills the process.
    manifest.verify(path.parent, hashes=False)
    with ThreadPoolExecutor(max_workers=1) as pool:
        hashes = pool.submit(manifest.verify, path.parent) if verify else None
        try:
            engine = open_engine(path, device=device, threads=threads, cuda_graphs=cuda_graphs)
        except ArtifactError as error:
            if hashes is not None:
                hashes.result()  # A file that was changed is the better explanation.
            if device.kind == "cpu" and "bf16" in manifest.precision.values():
                raise EngineUnavailableError(
                    f"{path} is in bfloat16, and ONNX Runtime has no bfloat16 arithmetic on a CPU: open it with "
                    'device="cuda", or export with --fp16 or in float32.'
                ) from error
            raise
        try:
            if hashes is not None:
                hashes.result()
            check_signature(path, manifest, engine)
        except ArtifactError:
            engine.close()
            raise
    return engine


def _merged(inputs: Mapping[str, object] | None, named: Mapping[str, object]) -> dict[str, object]:
    if inputs is None:
        return dict(named)
    if not isinstance(inputs, Mapping):
        raise InvalidInputError(
            f"run takes a mapping from input names to arrays, got {type(inputs).__name__}; "
            "for one array write run(input_ids=...)."
        )
    twice = sorted(inputs.keys() & named.keys())
    if twice:
        raise InvalidInputError(f"{', '.join(twice)} came twice: in the mapping and as a keyword. Give each once.")
    return {**inputs, **named}


def _checked_threads(threads: int | None) -> int | None:
    if threads is None:
        return None
    try:
        count = operator.index(threads)
    except TypeError:
        count = 0
    if count < 1 or isinstance(threads, bool):
        raise InvalidInputError(f"threads must be a positive integer or None, got {threads!r}.")
    return count
