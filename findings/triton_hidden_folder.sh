#!/usr/bin/env bash
# Triton Inference Server 2.51.0: a hidden folder in the model repository, such as the .git of a clone or what a tool
# left beside the models, counts as a model. With the default options the server then does not start: it loads the other
# models, says "at least one version must be available" for the hidden one, and exits with 1. A hidden file is ignored.
#
# So prepare a model outside the repository, and move it in when it is complete.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nvidia-pytriton==0.7.0
packages=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir "$folder/models" "$folder/backends"
starts() {
  local ports code=0
  ports=$("$folder/venv/bin/python" - <<'PY'
import socket

held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(f"--{name}-port={one.getsockname()[1]}" for name, one in zip(("http", "grpc", "metrics"), held)))
PY
  )
  # Port numbers are words of their own.
  # shellcheck disable=SC2086
  LD_LIBRARY_PATH="$packages/nvidia_pytriton.libs" timeout --signal=TERM 20 \
    "$packages/pytriton/tritonserver/bin/tritonserver" --model-repository "$folder/models" \
    --backend-directory "$folder/backends" $ports >"$folder/log" 2>&1 || code=$?
  # 124: it ran until timeout ended it.
  if [ "$code" = 124 ]; then echo "$1: starts"; else echo "$1: exits with $code"; fi
  grep -o 'at least one version must be available' "$folder/log" | head -n 1 || true
}
{
  starts 'no folder'
  touch "$folder/models/.hidden-file"
  starts 'a hidden file'
  mkdir "$folder/models/.git"
  starts 'a hidden folder'
} | tee "$folder/out"
grep --quiet 'server_version *| 2.51.0' "$folder/log"
diff - "$folder/out" <<'TXT'
no folder: starts
a hidden file: starts
a hidden folder: exits with 1
at least one version must be available
TXT
