"""One cold start of the reference: transformers and torch, from an ordinary checkpoint folder.

Usage: python transformers_torch.py CHECKPOINT THREADS IDS  (IDS: comma-separated token ids of one row)
"""

from __future__ import annotations

import sys

import torch
from protocol import report
from transformers.models.deprecated.ernie_m import ErnieMForSequenceClassification

folder, threads, ids = sys.argv[1], int(sys.argv[2]), [int(token) for token in sys.argv[3].split(",")]
torch.set_num_threads(threads)
model = ErnieMForSequenceClassification.from_pretrained(folder).eval()
with torch.no_grad():
    logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64)).logits
report(logits.numpy(), f"torch {torch.__version__}")
