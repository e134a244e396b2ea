"""One cold start of ours: erniem_rt from an exported folder.

Usage: python erniem_rt_session.py ARTIFACT THREADS IDS [--no-verify]
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
from protocol import report

import erniem_rt

artifact, threads, ids = sys.argv[1], int(sys.argv[2]), [int(token) for token in sys.argv[3].split(",")]
with erniem_rt.Session(artifact, threads=threads, verify="--no-verify" not in sys.argv) as session:
    logits = session.run(input_ids=np.array([ids]))["logits"]
    report(logits, f"erniem-rt {erniem_rt.__version__}, onnxruntime {onnxruntime.__version__}")
