"""Answer golden vectors where loko_ref is not installed, with NumPy alone; then judge the answers.

    loko-ref vectors export vectors --only 'kalman.time_update'
    python examples/answer_vectors.py vectors answers.npz
    loko-ref vectors judge vectors answers.npz

A file of vectors has the inputs of one case as safetensors: eight bytes with the length of a JSON
head (name -> dtype, shape, bytes from and to), the head, the data. The manifest has the options.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np

DTYPES = {"F64": "<f8", "F32": "<f4"}


def tensors(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    head, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    head.pop("__metadata__", None)
    return {
        name: np.frombuffer(body[slice(*e["data_offsets"])], DTYPES[e["dtype"]]).reshape(e["shape"])
        for name, e in head.items()
    }


def time_update(lam, q, p=None, P=None):
    if P is None:
        return {"p_pred": (p / lam + q).astype(p.dtype)}
    return {"P_pred": (P / lam + q * np.eye(len(P))).astype(P.dtype)}


OPERATIONS = {"kalman.time_update": time_update}

folder, place = Path(sys.argv[1]), sys.argv[2]
answers = {}
for case in json.loads((folder / "manifest.json").read_text())["cases"]:
    if case["operation"] in OPERATIONS:
        given = tensors(folder / case["file"])
        inputs = {name[3:]: a for name, a in given.items() if name.startswith("in.")}
        outputs = OPERATIONS[case["operation"]](**inputs, **case["options"])
        answers |= {f"{case['id']}/{name}": a for name, a in outputs.items()}
np.savez(place, **answers)
print(f"answered {len(answers)} outputs; judge them: loko-ref vectors judge {folder} {place}")
