"""Answer the texts of parquet files on Ray, and write parquet files: the same rows, with columns of answers.

Usage: RAY_USAGE_STATS_ENABLED=0 python examples/ray_parquet.py MODEL INPUT OUTPUT

MODEL, INPUT and OUTPUT are paths that all nodes of the cluster can read; INPUT is a file or a folder. Without a
cluster (RAY_ADDRESS), Ray starts one on this machine. Leave two CPUs of a cluster to reading, writing and skipping
rows: if the actors take all, the job never starts. A worker that dies is started again, and answers its rows again.
With --id, a job that was stopped continues where it was: run the same command again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import pyarrow.parquet
import ray

from erniem_rt.ray import Predictor


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="an exported folder")
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--task")
    parser.add_argument("--columns", type=json.loads, metavar="JSON", help='like \'{"text": "body"}\'')
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON", help='like \'{"top_k": "best"}\'')
    parser.add_argument("--id", metavar="COLUMN", help="a column of unique values, to continue a stopped job")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="CPUs, and so threads, of each actor")
    parser.add_argument("--rows", type=int, default=256, help="rows of a batch")
    given = parser.parse_args(arguments)

    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
    else:  # the tasks that read and write need a CPU beside the actors', and so does the one that skips rows
        cpus = given.actors * given.cpus + (2 if given.id else 1)
        ray.init(num_cpus=cpus, object_store_memory=200 << 20, log_to_driver=False)
    if given.id:
        ray.data.DataContext.get_current().checkpoint_config = ray.data.checkpoint.CheckpointConfig(
            id_column=given.id,
            checkpoint_path=str(given.output.absolute().with_name(f"{given.output.name}.checkpoint")),
            delete_checkpoint_on_success=False,
        )
    model = {"model": str(given.model.absolute()), "task": given.task, "columns": given.columns, **given.options}
    dataset = ray.data.read_parquet(str(given.input.absolute()))
    # An actor takes a block at a time, and Ray makes one block of several small files.
    dataset = dataset.repartition(target_num_rows_per_block=given.rows).map_batches(
        Predictor,
        fn_constructor_kwargs=model,
        batch_format="pyarrow",
        batch_size=given.rows,
        num_cpus=given.cpus,
        compute=ray.data.ActorPoolStrategy(size=given.actors),
    )
    mode = ray.data.SaveMode.APPEND if given.id else ray.data.SaveMode.ERROR
    dataset.write_parquet(str(given.output.absolute()), mode=mode)
    written = pyarrow.parquet.read_table(given.output, columns=["error"])
    print(f"{written.num_rows} rows, {written.num_rows - written['error'].null_count} with an error")
    return 0


if __name__ == "__main__":
    sys.exit(main())
