#!/usr/bin/env bash
# Ray Data 2.60.0: a column of lists of strings does not survive an identity map_batches with batch_format="numpy".
#
# pyarrow and pandas batches keep it as a list of strings. With numpy batches, which are the default, it is written to
# parquet as pickled Python objects; read_parquet of the same Ray then refuses the file that Ray wrote.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  "ray[data]==2.60.0" numpy==2.4.6 pandas==2.3.3 pyarrow==26.0.1
"$folder/venv/bin/python" - "$folder" <<'PY' 2>"$folder/log" | tee "$folder/out"
import logging
import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import pyarrow as pa
import pyarrow.parquet as pq
import ray

ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, logging_level=logging.ERROR)
start = f"{sys.argv[1]}/in.parquet"
pq.write_table(pa.table({"id": [1, 2], "labels": [["a", "b"], ["c"]]}), start)
for kind in ("pyarrow", "pandas", "numpy"):
    written = f"{sys.argv[1]}/{kind}"
    ray.data.read_parquet(start).map_batches(lambda batch: batch, batch_format=kind).write_parquet(written)
    stored = pq.read_table(written).schema.field("labels").type
    try:
        rows = ray.data.read_parquet(written).take_all()
        print(kind, stored, [list(row["labels"]) for row in rows])
    except ray.exceptions.RayTaskError as error:
        refused = "columns stored as 'ray.data.arrow_pickled_object'" in str(error)
        print(kind, "pickled objects" if "arrow_pickled_object" in str(stored) else stored, f"refused: {refused}")
PY
diff "$folder/out" - <<'SEEN'
pyarrow list<element: string> [['a', 'b'], ['c']]
pandas list<element: string> [['a', 'b'], ['c']]
numpy pickled objects refused: True
SEEN
echo "as seen: numpy batches turn lists of strings into pickled objects"
