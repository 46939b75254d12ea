"""A harness in Python: serves the IMPLEMENTATION of a file over loko-ref/protocol/1.

    loko-ref verify --cmd 'python examples/harness.py examples/my_loko.py'

Of use where the code under test must run in a process (or an interpreter) of its own. It shares no
code with loko_ref; 'loko-ref protocol' prints what it speaks.
"""

import base64
import importlib.util
import inspect
import json
import sys

import numpy as np

FORMATS = {"float64": "<f8", "float32": "<f4"}


def decode(tensor):
    if "dtype" not in tensor:  # a mapping of tensors
        return {name: decode(item) for name, item in tensor.items()}
    raw = base64.b64decode(tensor["data"])
    return np.frombuffer(raw, FORMATS[tensor["dtype"]]).reshape(tensor["shape"]).copy()


def encode(array):
    array = np.asarray(array)
    raw = array.astype(FORMATS[str(array.dtype)]).tobytes()
    data = base64.b64encode(raw).decode("ascii")
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}


def call(function, inputs, options):
    """Leave out what the function has no parameter for."""
    parameters = inspect.signature(function).parameters.values()
    everything = {**{name: decode(t) for name, t in inputs.items()}, **options}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function(**everything)
    names = {p.name for p in parameters}
    return function(**{name: value for name, value in everything.items() if name in names})


def answer(message, implementation):
    kind = message.get("type")
    if kind == "hello":
        return {
            "type": "hello",
            "protocol": "loko-ref/protocol/1",
            "operations": list(implementation),
            "dtypes": list(FORMATS),
            "canary": {name: encode(decode(t)) for name, t in message["canary"].items()},
        }
    if kind != "run":
        return {"type": "error", "id": None, "message": f"unknown type {kind!r}"}
    number = message["id"]
    if message["operation"] not in implementation:
        return {"type": "unsupported", "id": number, "reason": "no such operation"}
    try:
        function = implementation[message["operation"]]
        outputs = call(function, message["inputs"], message["options"])
    except NotImplementedError as error:
        return {"type": "unsupported", "id": number, "reason": str(error)}
    except Exception as error:
        return {"type": "error", "id": number, "message": f"{type(error).__name__}: {error}"}
    outputs = {name: encode(value) for name, value in outputs.items()}
    return {"type": "result", "id": number, "outputs": outputs}


def main():
    spec = importlib.util.spec_from_file_location("served", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    stdout, sys.stdout = sys.stdout, sys.stderr  # whatever it prints must not reach our stdout
    spec.loader.exec_module(module)
    for line in sys.stdin:
        try:
            message = json.loads(line)
            if message.get("type") == "stop":
                return
            reply = answer(message, module.IMPLEMENTATION)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reply = {"type": "error", "id": None, "message": f"{type(error).__name__}: {error}"}
        stdout.write(json.dumps(reply) + "\n")
        stdout.flush()


if __name__ == "__main__":
    main()
