#!/usr/bin/env bash
# KServe 0.21.0 answers INTERNAL over gRPC if a request has binary inputs and the model's output is a numpy array.
#
# InferResponse.to_grpc tests `infer_output.data and isinstance(infer_output.data, list)`; the truth value of an array
# with several elements is an error. Outputs whose data were set with set_data_from_numpy before are not affected.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check kserve==0.21.0
"$folder/venv/bin/python" - <<'PY'
import numpy as np
from kserve import InferOutput, InferResponse

for binary in (False, True):
    array = np.zeros((2, 3), np.float32)
    response = InferResponse("1", "model", [InferOutput("out", [2, 3], "FP32", array)], use_binary_outputs=binary)
    try:
        response.to_grpc()
    except ValueError as error:
        print(f"use_binary_outputs={binary}: {error}")
    else:
        print(f"use_binary_outputs={binary}: answered")
PY
