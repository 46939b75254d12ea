"""The protocol: harnesses in four languages pass; every misbehaviour is a finding, none a hang."""

import base64
import json
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import loko_ref
from sampling import SEED, count

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.engine import run, summarise
from loko_ref.conformance.implementations import protocol
from loko_ref.conformance.implementations.command import Command
from loko_ref.conformance.implementations.protocol import ProtocolError
from loko_ref.conformance.implementations.specification import SPECIFICATION
from loko_ref.conformance.user_inputs import user_case
from loko_ref.errors import InputError
from loko_ref.interop.tensors import read_tensors, write_tensors
from loko_ref.network.layers.activation import ACTIVATIONS

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"


def python(*arguments):
    return shlex.join([sys.executable, *map(str, arguments)])


def flat(pattern):
    """Cases without nested layers, which a harness may decline."""
    kinds = {"linear", *ACTIVATIONS}
    return [
        c
        for c in select(pattern)
        if {layer["kind"] for layer in c.options.get("spec") or ()} <= kinds
    ]


def trouble(name):
    return python(HERE / "harness_of_trouble.py", name)


def cli(*arguments):
    return loko_ref(*arguments)


def test_specification_is_printed():
    result = cli("protocol")
    assert result.returncode == 0
    assert result.stdout == SPECIFICATION
    for word in ("hello", "canary", "run", "stop", "little-endian", "base64", "unsupported"):
        assert word in result.stdout
    text = " ".join(result.stdout.split())
    for answered in (
        "All inputs of a run have one dtype, and the outputs must have it too",
        "left out, not null",
        "Every option is sent, those at their default too",
        "the next follows your answer",
        "For an operation that you do not support, answer unsupported",
    ):
        assert answered in text
    assert max(map(len, result.stdout.splitlines())) <= 100
    for dtype, bits in (("float64", "0x7ff8000000000000"), ("float32", "0x7fc00000")):
        nan = protocol.canary(dtype)[-1:]
        assert hex(int(nan.view(f"u{nan.itemsize}")[0])) == bits
        assert bits in text


def test_python_harness():
    with Command(python(EXAMPLES / "harness.py", EXAMPLES / "my_loko.py")) as command:
        checks = run(command, select("kalman.*") + select("loko.step/glm/*") + flat("model.*"))
    assert {c.status for c in checks} == {"passed"}


def build(language, folder):
    """Compile a harness; skip where there is no compiler."""
    out = folder / f"harness_{language}"
    commands = {
        "cpp": ["g++", "-std=c++17", "-O1", "-o", str(out), str(EXAMPLES / "harness.cpp")],
        "rs": ["rustc", "--edition", "2021", "-o", str(out), str(EXAMPLES / "harness.rs")],
    }
    if shutil.which(commands[language][0]) is None:
        pytest.skip(f"{commands[language][0]} is not installed")
    done = subprocess.run(commands[language], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return str(out)


@pytest.mark.larger
@pytest.mark.sampled(1)
@pytest.mark.parametrize("language", ["cpp", "rs"])
def test_compiled_harness(language, tmp_path):
    path = build(language, tmp_path)
    with Command(shlex.quote(path)) as command:
        checks = run(command, [c for name in command.operations for c in select(name)])
    assert {c.case.operation.name.split(".")[0] for c in checks} >= {"kalman", "noise", "lora"}
    assert {c.status for c in checks if not c.case.newer(command.catalogue)} == {"passed"}
    result = cli("protocol", "--cmd", shlex.quote(path))
    assert result.returncode == 0, result.stdout
    assert "FAILED" not in result.stdout


def test_javascript_harness():
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    path = shlex.join(["node", str(EXAMPLES / "harness.js")])
    with Command(path) as command:
        offered = [c for name in command.operations for c in flat(name)]
        checks = run(command, offered)
    assert any(c.case.operation.name == "loko.step" for c in checks)
    assert {c.status for c in checks if not c.case.newer(command.catalogue)} == {"passed"}
    result = cli("protocol", "--cmd", path)
    assert result.returncode == 0, result.stdout
    assert "FAILED" not in result.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exits", "exited with code 3; stderr: cannot find my library"),
        (
            "canary",
            "canary.float64: element 1 (-0.0) was sent as bits 0x8000000000000000 and returned "
            "as 0x0",
        ),
        ("version", "protocol 'loko-ref/protocol/0', not 'loko-ref/protocol/1'"),
        ("no-canary", "hello: no canary of dtype float32"),
        ("dtypes", "hello: dtypes ['float16']; known are float64, float32"),
    ],
)
def test_no_start(name, message):
    with pytest.raises(InputError) as error:
        Command(trouble(name))
    assert message in str(error.value)
    assert "Likely cause: not built, not executable" in str(error.value)


def test_a_silent_command_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("loko_ref.conformance.implementations.command.START_TIMEOUT", 0.5)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"did not answer hello within 0\.5 s"):
        Command(trouble("silent"))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("command", ["", "no-such-command-at-all", "'unclosed"])
def test_no_command(command):
    with pytest.raises(InputError, match="--cmd"):
        Command(command)


MISBEHAVIOUR = {
    "garbage": (
        "protocol",
        "a line on stdout that is no JSON",
        "'computing delta ...'; stderr: cannot open the log",
    ),
    "dies": (
        "crashed",
        "exited with code 101; stderr begins: panicked at rank.rs:7 | frame 0 | frame 1 | frame 2; "
        "stderr ends: frame 297 | frame 298 | frame 299 | bye",
        "",
    ),
    "chatters": ("crashed", "code 101; stderr begins: xxx", "xxx; stderr ends: yyy"),
    "crash": ("crashed", "was killed by SIGABRT; stderr: assertion failed: rank > 0", ""),
    "hang": ("timeout", "did not answer within 1 s", ""),
    "error": ("raised", "reported an error: out of memory", ""),
    "wrong-id": ("protocol", "an answer to request 3 in place of 2", ""),
    "no-outputs": ("protocol", "an answer that is not result, unsupported or error", ""),
    "short": ("protocol", "delta: 0 bytes for shape [2, 3], not 48", ""),
    "nan": ("protocol", "NaN is no JSON number", ""),
    "huge": ("protocol", "a line of more than 65536 bytes", ""),
    "escape": ("protocol", "file '../../etc/passwd' is no plain name in the folder of hello", ""),
    "no-files": ("protocol", "file 'mine.safetensors' is no plain name in the folder of hello", ""),
    "file-absolute": ("protocol", "mine.safetensors' is no plain name in the folder of hello", ""),
    "file-parent": ("protocol", "mine.safetensors' is no plain name in the folder of hello", ""),
    "file-missing": ("protocol", "file 'mine.safetensors' is not in the folder of hello", ""),
    "file-folder": ("protocol", "file 'mine.safetensors' is no regular file", ""),
    "file-pipe": ("protocol", "file 'mine.safetensors' is no regular file", ""),
    "file-link": ("protocol", "file 'mine.safetensors' is a link", ""),
    "file-truncated": ("protocol", "from 0 up to 40", "a truncated file"),
    "file-longer": ("protocol", "got 56 bytes of data; required 48", ""),
    "file-empty": ("protocol", "got 0 bytes; required at least 8", ""),
    "file-head": ("protocol", "a head of ", "a truncated or foreign file"),
    "file-no-json": ("protocol", "head: got no JSON", "required a JSON value"),
    "file-pickle": ("protocol", "got a pickled file", ""),
    "file-name": ("protocol", "'mine.safetensors' holds no tensor 'delta'", ""),
    "file-dtype": ("protocol", "the file holds float32(2, 3), not as announced", ""),
    "file-shape": ("protocol", "the file holds float64(3, 2), not as announced", ""),
}


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_misbehaviour_is_one_finding_and_the_rest_goes_on(name, monkeypatch):
    monkeypatch.setattr(protocol, "LINE_LIMIT", 65536)
    kind, message, more = MISBEHAVIOUR[name]
    cases = [c for c in select("lora.delta", "float64") if c.recipe.name in ("tiny", "random")]
    with Command(trouble(name)) as command:
        checks = []
        for case, timeout in ((cases[1], 30.0), (cases[0], 1.0), (cases[1], 30.0)):
            checks += run(command, [case], timeout=timeout)  # the last one waits for a new start
    assert [c.status for c in checks] == ["passed", "failed", "passed"]
    assert checks[1].finding.kind == kind
    assert message in checks[1].finding.message
    assert more in checks[1].finding.message
    assert len(checks[1].finding.message) < 1500


def test_a_tensor_by_file_that_is_right_passes():
    """The harness of trouble itself, where its trouble is none."""
    cases = [c for c in select("lora.delta", "float64") if c.recipe.name in ("tiny", "random")]
    with Command(trouble("file-none")) as command:
        checks = run(command, [cases[0], cases[1], cases[0]])
    assert [c.status for c in checks] == ["passed"] * 3


@pytest.fixture
def tensors_read(monkeypatch):
    """Name of the file of each tensor that came by one."""
    names = []

    def spy(path):
        names.append(path.name)
        return read_tensors(path)

    monkeypatch.setattr(protocol, "read_tensors", spy)
    return names


def test_python_harness_by_file(tensors_read):
    """Every input and every output by a safetensors file, both dtypes, mappings too."""
    with Command(python(EXAMPLES / "harness.py", EXAMPLES / "my_loko.py"), large=0) as command:
        assert command.files
        cases = select("lora.*") + select("kalman.diagonal_update/random*")
        cases += select("loko.step/glm/*") + select("model.forward/linear/*")
        checks = run(command, cases)
        assert list(command.folder.iterdir()) == []
    assert {c.status for c in checks} == {"passed"}
    assert len(tensors_read) == sum(len(c.outputs) for c in checks)


def test_only_large_tensors_go_by_file(tensors_read):
    """Small inputs as text, the product of 600 x 600 (2.88 MB) by file."""
    arrays = {"A": np.ones((2, 600)) / 3, "B": np.ones((600, 2)) / 7}
    case = user_case("lora.delta", arrays, alpha=3.0)
    with Command(python(EXAMPLES / "harness.py", EXAMPLES / "my_loko.py")) as command:
        (check,) = run(command, [case])
    assert check.status == "passed"
    assert tensors_read == ["answer-1.safetensors"]


def test_a_harness_that_reads_no_files_is_sent_none():
    with Command(trouble("no-files"), large=0) as command:
        assert not command.files
        (check,) = run(command, select("lora.delta/tiny/float64"))
    assert check.status == "passed"


def test_cli_by_file():
    harness = python(EXAMPLES / "harness.py", EXAMPLES / "my_loko.py")
    result = cli("verify", "--cmd", harness, "--only", "lora.*", "--large", "0")
    assert result.returncode == 0, result.stdout + result.stderr
    result = cli("protocol", "--cmd", harness)
    assert result.returncode == 0, result.stdout
    assert "ok     tensors by file: kalman.dense_update/tiny/float64 is answered" in result.stdout
    for wrong in (("verify", EXAMPLES / "my_loko.py", "--large", "0"), ("verify", "--large", "-1")):
        result = cli(*wrong)
        assert result.returncode == 2
        assert "--large: got" in result.stderr


def test_what_it_does_not_offer_is_unsupported():
    with Command(trouble("none")) as command:
        checks = run(command, select("kalman.time_update"))
    assert {c.status for c in checks} == {"unsupported"}
    assert summarise(checks).exit_code == 2


def test_stop():
    for name, code in (("none", 0), ("stop-code", 4)):
        assert Command(trouble(name)).close() == code
    result = cli("protocol", "--cmd", trouble("stop-code"))
    assert result.returncode == 1
    assert "FAILED stop: exit code 4" in result.stdout


def test_a_command_that_stays_is_killed(monkeypatch):
    monkeypatch.setattr("loko_ref.conformance.implementations.command.STOP_TIMEOUT", 0.5)
    command = Command(trouble("stays"))
    child = command._child
    assert command.close() is None
    assert child.supervisor.poll() is not None


def test_cli_verify_cmd(tmp_path):
    out = tmp_path / "r.json"
    result = cli("verify", "--cmd", trouble("garbage"), "--only", "lora.*", "--json", out)
    assert result.returncode == 1
    assert "computing delta ..." in result.stdout
    document = json.loads(out.read_text())
    failed = [c for c in document["checks"] if c["status"] == "failed"]
    assert {c["finding"]["kind"] for c in failed} == {"protocol"}
    result = cli("verify", "x.py", "--cmd", "y")
    assert result.returncode == 2
    assert "both TARGET and --cmd" in result.stderr


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_tensors_round_trip_bit_for_bit(dtype):
    rng = np.random.default_rng(1)
    for shape in ((), (0,), (3,), (2, 0, 4), (2, 3), (1, 2, 3, 4)):
        a = rng.standard_normal(shape).astype(dtype)
        b = protocol.decode(json.loads(json.dumps(protocol.encode(a))), "a")
        assert (b.shape, b.dtype, b.tobytes()) == (a.shape, a.dtype, a.tobytes())
    c = protocol.canary(dtype)
    assert protocol.decode(protocol.encode(c), "c").tobytes() == c.tobytes()
    assert 0 < c[2] < np.finfo(dtype).tiny


def test_large_tensors_go_by_file(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "LARGE", 64)
    big, small = np.arange(100.0), np.arange(3.0)
    inputs = {"A": big, "weights": {"0.W": big + 1, "0.b": small}}
    message = json.loads(json.dumps(protocol.request(4, "x", inputs, {}, tmp_path)))
    assert "file" in message["inputs"]["A"]
    assert "data" in message["inputs"]["weights"]["0.b"]
    for value, sent in (
        (message["inputs"]["A"], big),
        (message["inputs"]["weights"]["0.W"], big + 1),
    ):
        assert protocol.decode(value, "a", tmp_path).tobytes() == sent.tobytes()
        with pytest.raises(ProtocolError, match="no plain name"):
            protocol.decode(value, "a")
    (tmp_path / "link").symlink_to(tmp_path / "run-4.safetensors")
    with pytest.raises(ProtocolError, match="is a link"):
        protocol.decode(message["inputs"]["A"] | {"file": "link"}, "a", tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b'{"type":1}',
        b'{"type":"a","type":"b"}',
        b"[" * 200_000,
        b'{"type":"x","n":' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b"Infinity",
        b'"',
    ],
)
def test_malformed_lines(line):
    with pytest.raises(ProtocolError, match="a line on stdout that is no"):
        protocol.parse(line)


def test_fuzz(tmp_path):
    """Messages changed at random: read or refused with one sentence, never another error."""
    rng = random.Random(f"messages {SEED}")
    tensor = protocol.encode(np.arange(6.0).reshape(2, 3))
    seeds = [
        json.dumps(protocol.hello("/tmp")).encode(),
        json.dumps({"type": "result", "id": 1, "outputs": {"delta": tensor}}).encode(),
        json.dumps(
            {
                "type": "hello",
                "protocol": protocol.PROTOCOL,
                "operations": [],
                "dtypes": ["float64"],
                "canary": {"float64": protocol.encode(protocol.canary("float64"))},
            }
        ).encode(),
    ]
    words = [b"null", b"1e999", b"-1", b"[]", b"{}", b'"', b"\\u0000", b"NaN", b"true", b"\xff"]
    for _ in range(count(1_000, 10_000)):
        line = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 5)):
            at = rng.randrange(len(line))
            how = rng.random()
            if how < 0.4:
                line[at] = rng.randrange(256)
            elif how < 0.7:
                line[at : at + rng.randint(0, 8)] = rng.choice(words)
            else:
                del line[at : at + rng.randint(1, 30)]
        try:
            message = protocol.parse(bytes(line))
            protocol.check_hello(message, tmp_path)
        except ProtocolError:
            pass
        try:
            outputs = protocol.parse(bytes(line)).get("outputs")
            if isinstance(outputs, dict):
                for value in outputs.values():
                    protocol.decode(value, "x", tmp_path)
        except ProtocolError:
            pass


def test_fuzz_files(tmp_path):
    """Answer files changed at random: the tensor that was announced, or one sentence."""
    rng, path = random.Random(f"files {SEED}"), tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(4.0)})
    good = path.read_bytes()
    told = {"dtype": "float64", "shape": [2, 3], "file": path.name, "tensor": "a"}
    words = [b"null", b"1e999", b"-1", b"[]", b"{}", b'"', b"99999999999", b"NaN", b"\xff", b"F32"]
    read, said = 0, []
    for _ in range(count(500, 10_000)):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(raw))
            how = rng.random()
            if how < 0.5:
                raw[at] = rng.randrange(256)
            elif how < 0.8:
                raw[at : at + rng.randint(0, 6)] = rng.choice(words)
            else:
                del raw[at : at + rng.randint(1, 30)]
        path.write_bytes(bytes(raw))
        try:
            array = protocol.decode(told, "x", tmp_path)
        except ProtocolError as error:
            said.append(str(error))
        else:
            read += 1
            assert (array.shape, array.dtype) == ((2, 3), np.float64)
    assert read > 0  # a change of the data alone
    assert max(map(len, said)) < 400
    assert not any("\n" in text for text in said)


def test_hostile_tensors(tmp_path):
    data = base64.b64encode(b"\0" * 8).decode()
    good = {"dtype": "float64", "shape": [1], "data": data}
    for change in (
        {"shape": [2**31]},
        {"shape": [-1]},
        {"shape": [True]},
        {"shape": [1] * 9},
        {"shape": [0, 2**30, 2**30, 2**30], "data": ""},
        {"shape": 1},
        {"shape": [1.0]},
        {"dtype": "object"},
        {"dtype": ["float64"]},
        {"data": "!!!!"},
        {"data": 5},
        {"data": None},
        {"file": 3, "tensor": "a"},
        {"file": "/etc/passwd", "tensor": "a"},
        {"file": "..", "tensor": "a"},
        {"file": "a\0b", "tensor": "a"},
        {"file": "absent", "tensor": "a"},
    ):
        with pytest.raises(ProtocolError):
            protocol.decode({**good, **change}, "x", tmp_path)
