"""A plan answers as the graph beside it does: every head, any lengths, many threads, parts and buckets."""

from __future__ import annotations

import numpy as np
import pytest

from erniem_rt import Session
from erniem_rt.manifest import HEADS

from .support import assert_same, expected


@pytest.mark.parametrize("head", HEADS)
def test_every_head(machine, heads, plan_of, head):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, (3, 2, 9) if head == "mc" else (3, 9))
    mask = rng.integers(0, 2, ids.shape)
    with Session(plan_of(heads[head].path)) as session:
        assert_same(session.run(input_ids=ids, attention_mask=mask), expected(heads[head].path, ids, mask))
    assert machine.trt.executions
