#!/usr/bin/env bash
# KServe 0.21.0: with one worker, the default, ModelServer(event_loop="uvloop") still runs asyncio's own event loop,
# although uvloop is installed; so does the option's default, "auto".
#
# The server runs in asyncio.run(), whose loop exists before uvicorn could read the option.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  kserve==0.21.0 uvicorn==0.54.0 uvloop==0.23.0 fastapi==0.165.0
cat >"$folder/server.py" <<'PY'
import asyncio
import sys

import kserve

event_loop, port = sys.argv[1], int(sys.argv[2])
sys.argv = sys.argv[:1]


class Model(kserve.Model):
    async def predict(self, payload, headers=None):
        return {"predictions": [type(asyncio.get_running_loop()).__module__.partition(".")[0]]}


if __name__ == "__main__":
    model = Model("loop")
    model.load()
    kserve.ModelServer(http_port=port, enable_grpc=False, event_loop=event_loop).start([model])
PY
"$folder/venv/bin/python" - "$folder" <<'PY' | tee "$folder/out"
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request

folder = sys.argv[1]
for event_loop in ("auto", "asyncio", "uvloop"):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with open(f"{folder}/log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, f"{folder}/server.py", event_loop, str(port)], stdout=log, stderr=log
        )
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/models/loop:predict",
        json.dumps({"instances": [1]}).encode(),
        {"content-type": "application/json"},
    )
    for _ in range(120):
        try:
            print(event_loop, "runs", json.load(urllib.request.urlopen(request, timeout=10))["predictions"][0])
            break
        except OSError:
            time.sleep(1)
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
PY
diff "$folder/out" - <<'SEEN'
auto runs asyncio
asyncio runs asyncio
uvloop runs asyncio
SEEN
echo "as seen: the option event_loop has no effect with one worker"
