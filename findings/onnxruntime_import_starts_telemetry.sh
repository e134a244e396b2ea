#!/usr/bin/env bash
# Importing onnxruntime 1.31.1 on Linux starts a thread and writes two files into the user's cache folder.
#
# 1.27.0 does neither. The thread and the files belong to its telemetry, and ORT_DISABLE_TELEMETRY=1, set before the
# import, leaves both out. A process that has imported the package is no longer single-threaded, before any session
# exists: it matters to whoever forks workers after the import, or runs with a read-only or shared home folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
unset XDG_CACHE_HOME ORT_DISABLE_TELEMETRY
look() { # look PYTHON: threads that the import adds, and files that it leaves in an empty home folder
  rm -rf "$folder/home" && mkdir "$folder/home"
  HOME="$folder/home" "$1" - <<'PY'
import os
from pathlib import Path

import numpy  # noqa: F401  (its own threads do not count)

before = len(os.listdir("/proc/self/task"))
import onnxruntime

threads = len(os.listdir("/proc/self/task")) - before
files = sorted(path.name for path in Path.home().rglob("*") if path.is_file())
print(onnxruntime.__version__, threads, *files)
PY
}
for version in 1.27.0 1.31.1; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==$version" numpy==2.4.6
done
old=$(look "$folder/1.27.0/bin/python")
new=$(look "$folder/1.31.1/bin/python")
off=$(ORT_DISABLE_TELEMETRY=1 look "$folder/1.31.1/bin/python")
printf 'version, threads added, files written\n%s\n%s\n%s (ORT_DISABLE_TELEMETRY=1)\n' "$old" "$new" "$off"
[ "$old" = "1.27.0 0" ]
[[ "$new" == "1.31.1 1 deviceid onnxruntime.db"* ]]
[ "$off" = "1.31.1 0" ]
