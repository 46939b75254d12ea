"""A harness that misbehaves as its first argument says; stands on examples/harness.py."""

import base64
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("harness", ROOT / "examples" / "harness.py")
harness = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(harness)


def delta(A, B, alpha):
    return {"delta": (alpha / len(A) * (B @ A)).astype(A.dtype)}


IMPLEMENTATION = {"lora.delta": delta}


def flip_canary(reply):
    """Lose the sign of zero, as printing as decimals would."""
    raw = bytearray(base64.b64decode(reply["canary"]["float64"]["data"]))
    raw[15] = 0
    reply["canary"]["float64"]["data"] = base64.b64encode(bytes(raw)).decode()


def main():
    trouble = sys.argv[1]
    if trouble == "exits":
        print("cannot find my library", file=sys.stderr)
        sys.exit(3)
    if trouble == "silent":
        time.sleep(60)
    count = 0
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "stop":
            if trouble == "stays":
                time.sleep(60)
            sys.exit(4 if trouble == "stop-code" else 0)
        reply = harness.answer(message, IMPLEMENTATION)
        if message["type"] == "hello":
            if trouble == "canary":
                flip_canary(reply)
            if trouble == "version":
                reply["protocol"] = "loko-ref/protocol/0"
            if trouble == "no-canary":
                del reply["canary"]["float32"]
            if trouble == "dtypes":
                reply["dtypes"] = ["float16"]
        if message["type"] == "run":
            count += 1
            # one request of each process fails in its way; the next process is asked again
            if count == 2:
                if trouble == "garbage":
                    print("computing delta ...", flush=True)
                elif trouble == "crash":
                    print("assertion failed: rank > 0", file=sys.stderr, flush=True)
                    os.abort()
                elif trouble == "hang":
                    time.sleep(60)
                elif trouble == "error":
                    reply = {"type": "error", "id": message["id"], "message": "out of memory"}
                elif trouble == "wrong-id":
                    reply["id"] += 1
                elif trouble == "no-outputs":
                    del reply["outputs"]
                elif trouble == "short":
                    reply["outputs"]["delta"]["data"] = ""
                elif trouble == "nan":
                    sys.stdout.write('{"type":"result","id":NaN}\n')
                elif trouble == "huge":
                    sys.stdout.write("x" * (1 << 20))
                    sys.stdout.flush()
                    continue
                elif trouble == "escape":
                    reply["outputs"]["delta"] |= {"file": "../../etc/passwd", "tensor": "a"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
