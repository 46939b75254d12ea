"""A harness with one fault: python harness_of_faults.py FAULT TOKEN, of the standard library alone.

It says hello, and at the moment of its fault (hello, run, stop) does what the fault is: leaves
processes behind, floods a stream, answers what nobody can read. TOKEN stands in the command line or
the environment of every process that it starts, so that what survives is found.
"""

import base64
import json
import os
import signal
import struct
import subprocess
import sys
import time

from faulty_answers import ANSWERS, FILES, TEXTS, nested, result, tensor

QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
LONG = 300


def sleeper(**how):
    return subprocess.Popen(["sleep", str(LONG)], **how)


def session(**how):
    return sleeper(start_new_session=True, **how)


def hang():
    time.sleep(LONG)


def crash():
    os._exit(3)


def write(text):
    sys.stdout.write(text)
    sys.stdout.flush()


def in_fork(work):
    """Run in a child, which does not come back."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def daemon():
    """Fork, a session of its own, fork again: its parent is gone."""

    def first():
        os.setsid()
        in_fork(hang)

    os.waitpid(in_fork(first), 0)


def orphans():
    for _ in range(20):
        os.waitpid(in_fork(lambda: in_fork(hang)), 0)


def deaf():
    """To every signal that can be ignored, in a child too."""
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)
    in_fork(hang)
    hang()


def guardians():
    """Two that start a child again whenever it dies."""

    def guard():
        os.setsid()
        while True:
            os.waitpid(in_fork(hang), 0)

    in_fork(guard)
    in_fork(guard)
    hang()


def waker():
    """Wake a child whenever it is stopped."""
    child = sleeper()

    def wake():
        while True:
            os.kill(child.pid, signal.SIGCONT)

    in_fork(wake)
    in_fork(wake)
    hang()


def chain():
    """Each process starts the next and ends, for ever."""

    def link():
        os.setsid()
        while True:
            if os.fork():
                os._exit(0)

    in_fork(link)
    hang()


def burst():
    for _ in range(200):
        in_fork(hang)
    hang()


def endless():
    """Children without an end, each of them ends at once."""
    in_fork(hang)
    while True:
        in_fork(lambda: None)


def parent(number):
    def act():
        session()
        os.kill(os.getppid(), number)
        hang()

    return act


def stop_child():
    os.kill(session().pid, signal.SIGSTOP)
    crash()


def closes():
    session(**QUIET)
    os.closerange(0, 3)
    hang()


def no_environment():
    words = ["sh", "-c", f"sleep {LONG}; : {TOKEN}"]
    subprocess.Popen(words, env={"PATH": os.environ["PATH"]}, start_new_session=True, **QUIET)
    crash()


def then(*works):
    def act():
        for work in works:
            work()

    return act


def lines(count=10**7, text="junk" * 250 + "\n"):
    for _ in range(count):
        sys.stdout.write(text)


def error_flood():
    while True:
        sys.stderr.write("x" * 1000 + "\n")


def drip():
    while True:
        write(" ")
        time.sleep(0.01)


RUN = {
    "hang": hang,
    "hang-child": then(sleeper, hang),
    "hang-session": then(session, hang),
    "hang-stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang-exec": lambda: os.execvp("sleep", ["sleep", str(LONG)]),
    "crash-child": then(sleeper, crash),
    "crash-quiet": then(lambda: sleeper(**QUIET), crash),
    "crash-session": then(session, crash),
    "crash-stopped": stop_child,
    "crash-environment": no_environment,
    "daemon-hang": then(daemon, hang),
    "daemon-crash": then(daemon, crash),
    "daemon-goes-on": daemon,
    "orphans-hang": then(orphans, hang),
    "orphans-crash": then(orphans, crash),
    "deaf": deaf,
    "guardians": guardians,
    "waker": waker,
    "chain": chain,
    "burst": burst,
    "endless": endless,
    "kills-parent": parent(signal.SIGKILL),
    "stops-parent": parent(signal.SIGSTOP),
    "ends-parent": parent(signal.SIGTERM),
    "interrupts-parent": parent(signal.SIGINT),
    "kills-group": then(sleeper, lambda: os.killpg(0, signal.SIGKILL)),
    "closes": closes,
    "error-flood": error_flood,
    "flood": then(lines, hang),
    "flood-of-answers": lambda: lines(10**7, '{"type":"result","id":0,"outputs":{}}\n'),
    "flood-in-one-line": lambda: lines(10**7, "x" * 1000),
    "half-a-line": then(lambda: write('{"type":'), hang),
    "half-a-line-crash": then(lambda: write('{"type":'), crash),
    "drip": drip,
}
HELLO = {
    "hello-hang": hang,
    "hello-hang-child": then(session, hang),
    "hello-crash-child": then(session, crash),
    "hello-flood": lines,
    "hello-flood-in-one-line": lambda: lines(10**7, "x" * 1000),
    "hello-drip": drip,
    "hello-error-flood": error_flood,
}
STOP = {
    "stop-hang": hang,
    "stop-hang-child": then(session, hang),
    "stop-child": sleeper,
    "stop-session": then(session, daemon),
    "stop-crash": then(session, crash),
    "stop-flood": lines,
    "stop-flood-in-one-line": lambda: lines(10**7, "x" * 1000),
    "stop-error-flood": error_flood,
}
AFTER = {
    "after-flood": lines,
    "after-flood-in-one-line": lambda: lines(10**7, "x" * 1000),
    "after-twice": lambda: write('{"type": "unsupported", "id": 1}\n'),
    "after-half": lambda: write('{"type"'),
    "after-reads-no-more": hang,
}


def operations(fault):
    return {
        "hello-many-names": ["lora.delta", *(f"n{k}" for k in range(100_000))],
        "hello-long-name": ["lora.delta", "m" * 10**6],
        "hello-foreign-name": ["lora.delta", *TEXTS.values()],
        "hello-twice": ["lora.delta"] * 2,
        "hello-deep": json.loads(nested(300)),
        "hello-number": 7,
    }.get(fault, ["lora.delta"])


OFFERS = (
    "hello-many-names",
    "hello-long-name",
    "hello-foreign-name",
    "hello-twice",
    "hello-deep",
    "hello-number",
)
FAULTS = (*RUN, *HELLO, *STOP, *AFTER, *ANSWERS, *(f"file-{name}" for name in FILES), *OFFERS)


def answer_to(message, fault, folder):
    number = message["id"]
    if fault.startswith("file-") and fault.removeprefix("file-") in FILES:
        path = os.path.join(folder, "d.safetensors")
        FILES[fault.removeprefix("file-")](path)
        if fault == "file-announced":
            return result(number, delta=tensor(file="d.safetensors", tensor="d", shape=[2**26]))
        return result(number, delta=tensor(file="d.safetensors", tensor="d"))
    if fault.startswith("stderr-"):
        text = ANSWERS[fault](number)
        sys.stderr.buffer.write(text.encode("utf-8", "surrogatepass") + b"\xff\xfe\n")
        sys.stderr.flush()
        crash()
    if fault in ANSWERS:
        return ANSWERS[fault](number)
    tensors = {}
    for name, value in message["inputs"].items():
        data = base64.b64decode(value["data"])
        flat = struct.unpack(f"<{len(data) // 8}d", data)
        rows, columns = value["shape"]
        tensors[name] = [flat[k * columns : (k + 1) * columns] for k in range(rows)]
    A, B = tensors["A"], tensors["B"]
    scale = message["options"]["alpha"] / len(A)
    product = [
        scale * sum(b * a[column] for b, a in zip(row, A, strict=True))
        for row in B
        for column in range(len(A[0]))
    ]
    data = base64.b64encode(struct.pack(f"<{len(product)}d", *product)).decode()
    return result(number, delta=tensor(shape=[len(B), len(A[0])], data=data))


def send(answer):
    if isinstance(answer, dict):
        answer = json.dumps(answer)
    if isinstance(answer, str):
        answer = answer.encode("utf-8", "surrogatepass")
    sys.stdout.flush()
    sys.stdout.buffer.write(answer + b"\n")
    sys.stdout.flush()


def main(fault):
    folder = ""
    for line in sys.stdin:
        message = json.loads(line)
        kind = message["type"]
        if kind == "hello":
            folder = message["folder"]
            HELLO.get(fault, lambda: None)()
            canary = {"float64": message["canary"]["float64"]}
            hello = {"type": "hello", "protocol": message["protocol"], "dtypes": ["float64"]}
            files = fault.startswith("file-")
            send(hello | {"operations": operations(fault), "canary": canary, "files": files})
        elif kind == "stop":
            STOP.get(fault, lambda: None)()
            return
        elif kind == "run":
            RUN.get(fault, lambda: None)()
            if message["operation"] == "lora.delta":
                send(answer_to(message, fault, folder))
            else:
                send({"type": "unsupported", "id": message["id"]})
            AFTER.get(fault, lambda: None)()
        elif fault == "unknown-crash":
            then(session, crash)()
        else:
            send({"type": "error", "id": None, "message": "an unknown type"})


if __name__ == "__main__":
    FAULT, TOKEN = sys.argv[1:3]
    os.environ["LOKO_REF_FAULT"] = TOKEN
    main(FAULT)
