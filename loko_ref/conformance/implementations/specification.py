"""The specification of ``loko-ref/protocol/1``, for authors of a harness."""

from loko_ref.conformance.catalogue.registry import CATALOGUE
from loko_ref.conformance.implementations.protocol import LINE_LIMIT, PROTOCOL

SPECIFICATION = f"""\
{PROTOCOL}: how loko-ref verifies an implementation in any language

loko-ref starts your command once and exchanges messages with it over stdin and stdout, one JSON
object per line (UTF-8, ended by \\n). Write nothing else to stdout; stderr is free, and its first
and last lines are shown if you fail.
Flush after each line. Requests are sent one at a time: the next follows your answer.

TENSOR  {{"dtype": "float64" | "float32", "shape": [2, 3], "data": "<base64>"}}
        data: the elements row-major, little-endian, base64 with padding. A scalar's shape is [].
        Or, for a large one: {{"dtype", "shape", "file": "name.safetensors", "tensor": "name"}},
        a file in the folder that hello names (F64 or F32, as dtype). Only if you declare
        "files": true are you sent such, and may you answer with one, under a plain file name of
        your choice. Files are deleted when a request has been answered.

1. hello. You are sent
   {{"type": "hello", "protocol": "{PROTOCOL}", "catalogue": "{CATALOGUE}",
    "canary": {{"float64": TENSOR, "float32": TENSOR}}, "folder": "/tmp/..."}}
   and answer
   {{"type": "hello", "protocol": "{PROTOCOL}", "operations": ["lora.delta", ...],
    "dtypes": ["float64"], "canary": {{"float64": TENSOR}}, "files": false,
    "catalogue": "{CATALOGUE}", "options": {{"observation": "softmax"}},
    "precision": {{"Z": "bfloat16"}}}}
   where operations and dtypes are those you support, and canary has, for each of these dtypes, the
   tensor you were sent, decoded to numbers and encoded again. It holds 0.1, -0.0, a subnormal,
   infinity, -infinity and a quiet NaN (0x7ff8000000000000, 0x7fc00000), and must be returned bit
   for bit. No run sends infinities or NaN. catalogue is the version that you were written for
   ("operations/1" if left out): you are sent no input and no option that came later.
   options, which may be left out, has what you have one value of: you are sent those cases alone.
   precision, which may be left out, has what you compute more coarsely than the inputs' dtype: one
   format ("bfloat16", "float16", "tf32", "float32") or one for each such quantity. What it excuses
   is reported as imprecise.

2. run, any number of times. You are sent
   {{"type": "run", "id": 7, "operation": "lora.delta", "inputs": {{"A": TENSOR, "B": TENSOR}},
    "options": {{"alpha": 3.0}}}}
   'loko-ref operations' describes every operation. All inputs of a run have one dtype, and the
   outputs must have it too; you may compute in another (float64, rounded at the end, is accepted
   for float32). An input that is a mapping ("weights") is an object of tensors: it has no "dtype".
   An input that does not apply to the options is left out, not null. Every option is sent, those at
   their default too; 1 and 1.0 are the same number. You answer one of
   {{"type": "result", "id": 7, "outputs": {{"delta": TENSOR}}}}     any subset of the outputs
   {{"type": "unsupported", "id": 7, "reason": "..."}}              you decline this case
   {{"type": "error", "id": 7, "message": "..."}}                   you fail on it

   For an operation that you do not support, answer unsupported.

3. stop. You are sent {{"type": "stop"}} and exit with code 0.

To a line that you cannot read, or of an unknown type, answer {{"type": "error", "id": null,
"message": "..."}} and go on. Answer each request with one line, of at most {LINE_LIMIT} bytes.

--timeout limits, in seconds, your start up to the answer to hello, and each request; the exit after
stop has the same limit, but at most 5 s. A request fails if it takes longer, if you crash, or if a
line is not a message. Your process and every process that it started are then killed, as after
stop. You are started again, with a new hello, within the time of the next request.
'loko-ref protocol --cmd COMMAND' checks everything except the numbers.
"""
"""What ``loko-ref protocol`` prints."""
