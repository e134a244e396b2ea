"""Builds the gate's inputs: random ids in every shape and with every kind of padding, and real text."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erniem_rt.manifest import HEADS, Manifest
from erniem_rt.tokenizer import Tokenizer

_CHOICES = 3

# Ten languages in eight scripts; the pairs serve as question and context, premise and hypothesis, prompt and text.
TEXTS = (
    ("Who wrote the letter?", "Maria wrote the letter on 12 May 2003, in Lisbon."),
    ("Wo liegt das Museum?", "Das größte Museum der Stadt liegt seit 1891 am Fluss."),
    ("Quel est le prix ?", "L’entrée coûte 14,50 € ; elle est gratuite le dimanche."),
    ("Кто основал завод?", "Завод основал инженер Пётр Лебедев в Самаре."),
    ("公司在哪里？", "这家公司成立于1998年，总部设在上海，有2500名员工。"),
    ("会議はいつですか。", "会議は三月十四日の午後に東京で行われます。"),
    ("회의는 언제입니까?", "회의는 3월 14일 서울에서 열립니다."),
    ("من كتب الرسالة؟", "كتبت ليلى الرسالة في القاهرة عام ١٩٩٥."),
    ("पुस्तक किसने लिखी?", "यह पुस्तक मीरा शर्मा ने दिल्ली में लिखी।"),
    ("ใครเป็นผู้ก่อตั้งบริษัท", "บริษัทนี้ก่อตั้งโดยสมชายที่กรุงเทพฯ"),
)


@dataclass(frozen=True)
class Case:
    """One batch.

    ``feeds`` are the caller's inputs; without ``attention_mask``, both sides derive it from the padding id.
    ``attend`` is the effective mask, bool, with the axes of the ids.
    """

    name: str
    feeds: Mapping[str, NDArray[Any]]
    attend: NDArray[np.bool_]


def build_cases(manifest: Manifest, tokenizer_dir: Path | None = None, seed: int = 0) -> list[Case]:
    """Return the gate's batches for an artifact, with real text if there is a tokenizer."""
    builder = _Builder(manifest, np.random.default_rng(seed))
    longest = manifest.limits.max_length
    lengths = [min(length, longest) for length in (1, 37, 5, 18, 2, 29, 11)]
    cases = [
        builder.case("one token", [1]),
        builder.case("odd length, one row", [min(13, longest)]),
        builder.case("equal lengths", [min(17, longest)] * 4),
        builder.case("padding on the right", lengths),
        builder.case("padding on the left", lengths, side="left"),
        builder.case("padding in between", lengths, side="scattered"),
        builder.case("no mask given", lengths, give_mask=False),
        builder.case("a row of padding only", [lengths[1], 0, lengths[3]]),
        builder.case("the longest row", [longest]),
        builder.case("the longest and a short row", [longest, min(9, longest)]),
    ]
    if tokenizer_dir is not None and not builder.takes_embeddings:
        cases += builder.text_cases(Tokenizer.from_dir(tokenizer_dir, verify=False))
    return cases


class _Builder:
    def __init__(self, manifest: Manifest, rng: np.random.Generator) -> None:
        self.manifest = manifest
        self.rng = rng
        self.specs = {spec.name: spec for spec in manifest.inputs}
        self.takes_embeddings = "inputs_embeds" in self.specs
        self.has_choices = "choices" in HEADS[manifest.head].axes

    def case(self, name: str, lengths: Sequence[int], *, side: str = "right", give_mask: bool = True) -> Case:
        """Return a batch of random ids whose rows attend to ``lengths`` tokens."""
        width = max([*lengths, 1])
        if self.has_choices:  # each length becomes one question; its choices are a little shorter
            lengths = [max(length - choice, min(length, 1)) for length in lengths for choice in range(_CHOICES)]
        attend = np.zeros((len(lengths), width), dtype=bool)
        for row, length in zip(attend, lengths, strict=True):
            row[self._positions(length, width, side)] = True
        limits = self.manifest.limits
        ids = self.rng.integers(0, limits.vocab_size - 1, attend.shape)
        ids[0, 0], ids[0, -1] = 0, limits.vocab_size - 2  # always cover both ends of the vocabulary
        ids += ids >= limits.pad_token_id  # skip the padding id
        if not give_mask:
            ids[~attend] = limits.pad_token_id
        return self._assembled(name, ids, attend, give_mask)

    def text_cases(self, tokenizer: Tokenizer) -> list[Case]:
        """Return real text, single and in pairs; an empty list if the special tokens alone fill the row."""
        if self.manifest.limits.max_length <= tokenizer.num_special_tokens_to_add(pair=True):
            return []
        pairs = [pair for pair in TEXTS for _ in range(_CHOICES)] if self.has_choices else list(TEXTS)
        firsts, seconds = zip(*pairs, strict=True)
        encode = functools.partial(
            tokenizer.batch, truncation="longest_first", max_length=self.manifest.limits.max_length
        )
        batches = {"real text": encode(seconds), "real text, pairs": encode(firsts, seconds)}
        return [
            self._assembled(name, batch.input_ids, batch.attention_mask.astype(bool), give_mask=True)
            for name, batch in batches.items()
        ]

    def _positions(self, length: int, width: int, side: str) -> NDArray[np.int64]:
        if side == "scattered":
            return np.sort(self.rng.permutation(width)[:length])
        start = width - length if side == "left" else 0
        return np.arange(start, start + length)

    def _assembled(self, name: str, ids: NDArray[np.int64], attend: NDArray[np.bool_], give_mask: bool) -> Case:
        feeds: dict[str, NDArray[Any]] = {}
        if self.takes_embeddings:
            hidden = int(self.specs["inputs_embeds"].shape[-1])
            feeds["inputs_embeds"] = self.rng.standard_normal((*ids.shape, hidden), dtype=np.float32)
            attend = attend if give_mask else np.ones_like(attend)
        else:
            feeds["input_ids"] = ids
        if give_mask:
            feeds["attention_mask"] = attend.astype(np.int64)
        if "position_ids" in self.specs:
            feeds["position_ids"] = self.rng.integers(0, self.manifest.limits.max_length, ids.shape)
        if self.has_choices:
            feeds = {key: array.reshape(-1, _CHOICES, *array.shape[1:]) for key, array in feeds.items()}
            attend = attend.reshape(-1, _CHOICES, attend.shape[-1])
        if "head_mask" in self.specs:
            shape = tuple(int(size) for size in self.specs["head_mask"].shape)
            feeds["head_mask"] = self.rng.choice(np.array([0.0, 0.5, 1.0], dtype=np.float32), shape)
        return Case(name, feeds, attend)
