"""What a faulty harness answers, by the name of the fault; of the standard library alone."""

import base64
import json
import os
import struct

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
