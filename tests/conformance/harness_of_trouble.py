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


def by_file(reply, folder, trouble):
    """Answer by a file that is wrong in one way."""
    delta = harness.decode(reply["outputs"]["delta"])
    path = Path(folder) / "mine.safetensors"
    announced = {"dtype": "float64", "shape": list(delta.shape), "file": path.name, "tensor": "d"}
    if trouble == "dtype":
        delta = delta.astype("float32")
    if trouble == "shape":
        delta = delta.T
    harness.write_file(path, {"d": delta})
    raw = path.read_bytes()
    if trouble == "missing":
        path.unlink()
    elif trouble == "truncated":
        path.write_bytes(raw[:-8])
    elif trouble == "longer":
        path.write_bytes(raw + b"\0" * 8)
    elif trouble == "empty":
        path.write_bytes(b"")
    elif trouble == "head":
        path.write_bytes(b"\xff" * 7 + raw[7:])
    elif trouble == "no-json":
        path.write_bytes(raw.replace(b"{", b"[", 1))
    elif trouble == "name":
        announced["tensor"] = "delta"
    elif trouble == "absolute":
        announced["file"] = str(path)
    elif trouble == "parent":
        announced["file"] = f"../{Path(folder).name}/mine.safetensors"
    elif trouble == "link":
        path.rename(path.with_suffix(".elsewhere"))
        path.symlink_to(path.with_suffix(".elsewhere"))
    elif trouble == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif trouble == "folder":
        path.unlink()
        path.mkdir()
    elif trouble == "pickle":
        path.write_bytes(b"\x80\x04" + raw)
    reply["outputs"]["delta"] = announced


def main():
    trouble = sys.argv[1]
    folder = None
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
        if message["type"] == "hello":
            folder = message["folder"]
        reply = harness.answer(message, IMPLEMENTATION, folder)
        if message["type"] == "hello":
            if trouble == "no-files":
                reply["files"] = False
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
                    print("cannot open the log", file=sys.stderr, flush=True)
                    print("computing delta ...", flush=True)
                elif trouble in ("dies", "chatters"):
                    lines = ["panicked at rank.rs:7", *(f"frame {k}" for k in range(300)), "bye"]
                    text = "\n".join(lines if trouble == "dies" else ["x" * 5000, "y" * 5000])
                    print(text, file=sys.stderr, flush=True)
                    sys.exit(101)
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
                elif trouble.startswith("file-") or trouble == "no-files":
                    by_file(reply, folder, trouble.removeprefix("file-"))
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
