"""The names of what can be chosen: for the command line, which loads no torch, and for what carries them out."""

from __future__ import annotations

__all__ = ["CPUS", "EMBEDDINGS", "ENGINES", "HALF_TARGETS", "HALVES", "TARGETS"]

# Half types by the option that asks for them.
HALVES = {"fp16": "float16", "bf16": "bfloat16"}

# How to store the word embeddings. bf16 comes with --bf16 only: at the same size, fp16 holds them more closely.
EMBEDDINGS = ("fp32", "fp16", "int8")

# any: the canonical graph, standard operators only. onnxruntime: with its own operators, for its CPU provider.
# onnxruntime-cuda: for its CUDA provider, all shapes those of the batch; -packed: no work for padding instead.
TARGETS = ("any", "onnxruntime", "onnxruntime-cuda", "onnxruntime-cuda-packed")

# Those that compute in half precision too.
HALF_TARGETS = ("any", "onnxruntime-cuda", "onnxruntime-cuda-packed")

# What an int8 artifact may be made for; auto: the CPU that exports it.
CPUS = ("auto", "avx2", "vnni")

# What builds a TensorRT plan; auto: what is installed and can build here, if anything.
ENGINES = ("auto", "none", "tensorrt", "tensorrt-rtx")
