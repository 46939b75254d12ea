"""A harness in Python: serves the IMPLEMENTATION of a file over loko-ref/protocol/1.

    loko-ref verify --cmd 'python examples/harness.py examples/my_loko.py'

Of use where the code under test must run in a process (or an interpreter) of its own. It shares no
code with loko_ref; 'loko-ref protocol' prints what it speaks. Large tensors go by file, in both
directions: a safetensors file is eight bytes (the length of the head), the head (JSON: name ->
dtype, shape, place of its data), the data. `--large 0` sends all by file.
"""

import base64
import importlib.util
import inspect
import json
import os
import struct
import sys

import numpy as np

FORMATS = {"float64": "<f8", "float32": "<f4"}
NAMES = {"F64": "float64", "F32": "float32"}
LARGE = 2**20  # bytes from which an output is passed by file; all are if an input was


def read_file(path):
    """Tensors of a safetensors file by name; what it needs here is float64 and float32."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        head, data = json.loads(file.read(length)), file.read()
    tensors = {}
    for name, entry in head.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            flat = np.frombuffer(data[start:stop], FORMATS[NAMES[entry["dtype"]]])
            tensors[name] = flat.reshape(entry["shape"]).copy()
    return tensors


def write_file(path, tensors):
    head, chunks, at = {}, [], 0
    for name, array in tensors.items():
        raw = array.astype(FORMATS[str(array.dtype)]).tobytes()
        dtype = next(k for k, v in NAMES.items() if v == str(array.dtype))
        head[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [at, at + len(raw)],
        }
        chunks.append(raw)
        at += len(raw)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(chunks))


class Files:
    """The folder of one request, and its files of tensors, each read once."""

    def __init__(self, folder):
        self.folder, self.read = folder, {}

    def tensor(self, name, tensor):
        if name not in self.read:
            self.read[name] = read_file(os.path.join(self.folder, name))
        return self.read[name][tensor]


def decode(tensor, files=None):
    if "dtype" not in tensor:  # a mapping of tensors
        return {name: decode(item, files) for name, item in tensor.items()}
    if "file" in tensor:
        return files.tensor(tensor["file"], tensor["tensor"])
    raw = base64.b64decode(tensor["data"])
    return np.frombuffer(raw, FORMATS[tensor["dtype"]]).reshape(tensor["shape"]).copy()


def encode(array):
    array = np.asarray(array)
    raw = array.astype(FORMATS[str(array.dtype)]).tobytes()
    data = base64.b64encode(raw).decode("ascii")
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}


def encode_all(outputs, files, number):
    """Each output as text, or all large ones in one file."""
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    least = 0 if files.read else LARGE
    large = {name: a for name, a in arrays.items() if files.folder and a.nbytes >= least}
    if not large:
        return {name: encode(a) for name, a in arrays.items()}
    name = f"answer-{number}.safetensors"
    write_file(os.path.join(files.folder, name), large)
    return {
        key: {"dtype": str(a.dtype), "shape": list(a.shape), "file": name, "tensor": key}
        if key in large
        else encode(a)
        for key, a in arrays.items()
    }


def call(function, inputs, options):
    """Leave out what the function has no parameter for."""
    parameters = inspect.signature(function).parameters.values()
    everything = {**inputs, **options}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function(**everything)
    names = {p.name for p in parameters}
    return function(**{name: value for name, value in everything.items() if name in names})


def answer(message, implementation, folder=None, catalogue="operations/1", options=None):
    kind = message.get("type")
    if kind == "hello":
        return {
            "type": "hello",
            "protocol": "loko-ref/protocol/1",
            "operations": list(implementation),
            "dtypes": list(FORMATS),
            "canary": {name: encode(decode(t)) for name, t in message["canary"].items()},
            "files": True,
            "catalogue": catalogue,  # the version that the functions were written for
            "options": options or {},  # of which they have one value
        }
    if kind != "run":
        return {"type": "error", "id": None, "message": f"unknown type {kind!r}"}
    number = message["id"]
    if message["operation"] not in implementation:
        return {"type": "unsupported", "id": number, "reason": "no such operation"}
    files = Files(folder)
    try:
        function = implementation[message["operation"]]
        inputs = {name: decode(t, files) for name, t in message["inputs"].items()}
        outputs = call(function, inputs, message["options"])
        return {"type": "result", "id": number, "outputs": encode_all(outputs, files, number)}
    except NotImplementedError as error:
        return {"type": "unsupported", "id": number, "reason": str(error)}
    except Exception as error:
        return {"type": "error", "id": number, "message": f"{type(error).__name__}: {error}"}


def main():
    spec = importlib.util.spec_from_file_location("served", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    stdout, sys.stdout = sys.stdout, sys.stderr  # whatever it prints must not reach our stdout
    spec.loader.exec_module(module)
    folder = None
    for line in sys.stdin:
        try:
            message = json.loads(line)
            if message.get("type") == "stop":
                return
            if message.get("type") == "hello":
                folder = message.get("folder")
            catalogue = getattr(module, "CATALOGUE", "operations/1")
            options = getattr(module, "OPTIONS", None)
            reply = answer(message, module.IMPLEMENTATION, folder, catalogue, options)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reply = {"type": "error", "id": None, "message": f"{type(error).__name__}: {error}"}
        stdout.write(json.dumps(reply) + "\n")
        stdout.flush()


if __name__ == "__main__":
    main()
