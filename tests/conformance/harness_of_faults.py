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

TEXTS = {
    "surrogate": "\ud800 and \udfff",
    "control": "".join(map(chr, range(32))) + "\x7f\x85\x9b31m",
    "ansi": "\x1b[31mred\x1b[2J\x1b]0;title\x07",
    "markup": "[/bold] [red] [link=x] \\[bold] [/] \\",
    "right-to-left": "\u202eevil\u2066 \u200f",
    "emoji": ":bug: :warning: \U0001f41b",
    "html": "<script>alert(1)</script> &amp; ]]> {{ 7 * 7 }}",
    "long": "m" * 100_000,
    "long-wide": "\U0001f41b" * 100_000,
    "nul": "\0" * 10 + "end",
    "lines": "a\r\nb\u2028c\vd\n" * 1000,
}


def tensor(**change):
    data = base64.b64encode(struct.pack("<6d", *range(6))).decode()
    return {"dtype": "float64", "shape": [2, 3], "data": data} | change


def result(number, **outputs):
    return {"type": "result", "id": number, "outputs": outputs}


def nested(depth, inner="1"):
    return "[" * depth + inner + "]" * depth


def raw(number, text):
    """A result with something else in it."""
    return f'{{"type": "result", "id": {number}, "outputs": {text}}}'


def deltas(changes):
    return {
        f"tensor-{name}": lambda n, change=change: result(n, delta=tensor(**change))
        for name, change in changes.items()
    }


ANSWERS = {
    **{
        f"error-{name}": lambda n, text=text: {"type": "error", "id": n, "message": text}
        for name, text in TEXTS.items()
    },
    **{
        f"reason-{name}": lambda n, text=text: {"type": "unsupported", "id": n, "reason": text}
        for name, text in TEXTS.items()
    },
    **{
        f"type-{name}": lambda n, text=text: {"type": text, "id": n} for name, text in TEXTS.items()
    },
    **{
        f"id-{name}": lambda n, text=text: {"type": "result", "id": text}
        for name, text in TEXTS.items()
    },
    **{
        f"output-{name}": lambda n, text=text: result(n, **{text: tensor()})
        for name, text in TEXTS.items()
    },
    **{f"stderr-{name}": lambda n, text=text: text for name, text in TEXTS.items()},
    **{
        f"file-name-{name}": lambda n, text=text: result(n, delta=tensor(file=text, tensor="d"))
        for name, text in TEXTS.items()
    },
    "deep": lambda n: "[" * 10**7,
    "deep-within-the-marks": lambda n: "[" * 150_000,
    "deep-below-the-limit": lambda n: raw(n, nested(300)),
    "deep-in-a-type": lambda n: f'{{"type": {nested(300)}}}',
    "deep-in-an-id": lambda n: f'{{"type": "result", "id": {nested(300)}}}',
    "deep-in-a-reason": lambda n: f'{{"type":"unsupported","id":{n},"reason":{nested(300)}}}',
    "deep-in-a-message": lambda n: f'{{"type":"error","id":{n},"message":{nested(300)}}}',
    "deep-in-a-dtype": lambda n: raw(n, f'{{"delta": {{"dtype": {nested(300)}, "shape": []}}}}'),
    "deep-in-a-shape": lambda n: raw(
        n, f'{{"delta": {{"dtype": "float64", "shape": {nested(300)}}}}}'
    ),
    "many-lists": lambda n: raw(n, "[" + "[]," * 5_000_000 + "[]]"),
    "many-objects": lambda n: raw(n, "[" + "{}," * 5_000_000 + "{}]"),
    "many-numbers": lambda n: raw(n, "[" + "1," * 7_000_000 + "1]"),
    "many-keys": lambda n: raw(n, "{" + ",".join(f'"k{k}":0' for k in range(10**6)) + "}"),
    "many-keys-allowed": lambda n: raw(n, "{" + ",".join(f'"k{k}":0' for k in range(10**5)) + "}"),
    "wide-text": lambda n: {"type": "error", "id": n, "message": "\U0001f41b" * 4_000_000},
    "wide-by-one": lambda n: (
        f'{{"type":"error","id":{n},"message":"{"m" * 15_000_000}\U0001f41b"}}'
    ),
    "escaped-text": lambda n: f'{{"type":"error","id":{n},"message":"{chr(92) + "n"}"}}'.replace(
        "\\n", "\\n" * 8_000_000
    ),
    "spaces": lambda n: " " * 15_000_000,
    "digits": lambda n: f'{{"type": "result", "id": {"9" * 6000}}}',
    "digits-allowed": lambda n: f'{{"type": "result", "id": {"9" * 4000}}}',
    "digits-in-a-shape": lambda n: result(n, delta=tensor(shape=[10**4000])),
    "infinite-number": lambda n: '{"type": "result", "id": 1e999}',
    "true-id": lambda n: raw("true", "{}"),
    "no-number": lambda n: '{"type": "result", "id": NaN}',
    "key-twice": lambda n: f'{{"type": "result", "id": {n}, "id": {n}, "outputs": {{}}}}',
    "no-object": lambda n: "[1, 2]",
    "no-outputs": lambda n: result(n),
    "outputs-of-none": lambda n: {"type": "result", "id": n, "outputs": None},
    "empty-line": lambda n: "",
    "not-utf-8": lambda n: b"\xff\xfe\x00{}",
    "output-of-a-million-letters": lambda n: result(n, **{"m" * 10**6: tensor()}),
    "outputs-of-many-names": lambda n: result(n, **{f"m{k}": None for k in range(1000)}),
    **deltas(
        {
            "empty-shape": {"shape": [0, 2**30, 2**30, 2**30], "data": ""},
            "empty": {"shape": [0], "data": ""},
            "large": {"shape": [2**30, 2**30, 2**30], "data": ""},
            "too-large": {"shape": [2**40], "data": ""},
            "negative": {"shape": [-2, -3]},
            "boolean": {"shape": [True, 6]},
            "fraction": {"shape": [2.0, 3.0]},
            "text": {"shape": "23"},
            "no-shape": {"shape": None},
            "axes": {"shape": [1] * 64},
            "many-axes": {"shape": [1] * 100_000},
            "dtype": {"dtype": "object"},
            "short": {"data": ""},
            "no-base64": {"data": "\ud800!"},
            "long": {"data": "A" * 15_000_000},
            "file-and-no-tensor": {"file": "x.safetensors"},
            "file-absolute": {"file": "/etc/passwd", "tensor": "d"},
            "file-parent": {"file": "../x", "tensor": "d"},
            "file-dots": {"file": "..", "tensor": "d"},
            "file-dot": {"file": ".", "tensor": "d"},
            "file-empty": {"file": "", "tensor": "d"},
            "file-number": {"file": 7, "tensor": "d"},
        }
    ),
}


def head(entries, length=None):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def entry(**change):
    return {"d": {"dtype": "F64", "shape": [2, 3], "data_offsets": [0, 48]} | change}


def sparse(path, size, start=b""):
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(size)


def lone(path, content):
    with open(path, "wb") as file:
        file.write(content)


FILES = {
    "fifo": os.mkfifo,
    "folder": os.mkdir,
    "link": lambda path: os.symlink("/dev/zero", path),
    "link-to-a-file": lambda path: os.symlink(__file__, path),
    "link-to-itself": lambda path: os.symlink(path, path),
    "none": lambda path: None,
    "empty": lambda path: lone(path, b""),
    "sparse": lambda path: sparse(path, 2**40),
    "sparse-tensor": lambda path: sparse(
        path, 2**40, head(entry(shape=[2**36], data_offsets=[0, 2**39]))
    ),
    "sparse-head": lambda path: sparse(path, 2**24, struct.pack("<Q", 2**24 - 8)),
    "lying-head": lambda path: lone(path, head(entry(), 2**63)),
    "long-head": lambda path: lone(path, head(entry(), 2**20)),
    "deep-head": lambda path: lone(path, struct.pack("<Q", 10**6) + b"[" * 10**6),
    "many-in-the-head": lambda path: lone(
        path, struct.pack("<Q", 10**6) + (b'{"d":[' + b"{}," * 10**6)[: 10**6]
    ),
    "empty-shape": lambda path: lone(
        path, head(entry(shape=[0, 2**30, 2**30, 2**30], data_offsets=[0, 0]))
    ),
    "no-data": lambda path: lone(path, head(entry())),
    "surrogate": lambda path: lone(path, head({"\ud800": 7})),
    "control": lambda path: lone(path, head({"\x1b[31m": 7})),
    "announced": lambda path: sparse(
        path, 2**29 + 84, head(entry(shape=[2**26], data_offsets=[0, 2**29]))
    ),
    "folder-gone": lambda path: os.rmdir(os.path.dirname(path)),
}
"""What lies where the answer says that a tensor does; the harness says that it reads files."""


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
