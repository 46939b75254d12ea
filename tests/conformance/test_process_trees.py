"""Whatever a command does, its check ends in time, its processes end, memory is bounded, and the
report is whole.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import harness_of_faults as harness
import numpy as np
import pytest
from command import loko_ref
from processes import command_line as command_line_of
from processes import with_token
from rich.console import Console
from sampling import sample

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.engine import Check, judge
from loko_ref.conformance.implementations import supervisor
from loko_ref.conformance.implementations.command import Command
from loko_ref.conformance.judge.answer import Answer, Finding
from loko_ref.conformance.reports import document as report
from loko_ref.conformance.reports import junit, page, terminal
from loko_ref.conformance.user_inputs import user_case
from loko_ref.errors import InputError

HERE = Path(__file__).parent
TIMEOUT = 0.7
START = 20.0
"""Seconds for a hello that comes, on a machine that does something else."""
LATE = 1.0
"""Seconds that a check may take beyond its time-out."""
LOAD = 4.0
"""Seconds more on a machine that does something else; a hang takes minutes."""
MEMORY = 200 * 2**20

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
CASE = select("lora.delta/tiny/float64")[0]

PASSES = {"daemon-goes-on", *harness.STOP, *harness.AFTER}
DECLINES = {f"reason-{name}" for name in harness.TEXTS}
REFUSED = {"hello-error-flood", "hello-foreign-name", *harness.HELLO, *harness.OFFERS}
"""Hellos with which no check begins."""
CROWDS = [*harness.RUN, *harness.HELLO, *harness.STOP, *harness.AFTER]
MESSAGES = [f for f in harness.FAULTS if f not in CROWDS]


def command_line(fault, token):
    return shlex.join([sys.executable, str(HERE / "harness_of_faults.py"), fault, token])


def survivors(token):
    """Command lines of what has the token."""
    return [command_line_of(pid) for pid in with_token(token)]


@dataclass
class Ran:
    """What became of a fault: checks, or why there were none."""

    checks: list[Check]
    refused: str
    seconds: list[float]
    notes: tuple[str, ...] = ()
    left: tuple = ()


def run(fault, checks=2):
    """Two checks of a command with a fault, and its end; the time of each of these."""
    token = uuid.uuid4().hex
    marks = [time.monotonic()]
    done, refused, notes, left = [], "", (), []
    try:
        start = TIMEOUT if fault in harness.HELLO else START
        with Command(command_line(fault, token), 2**40, start) as command:
            command.stop_timeout = TIMEOUT
            for _ in range(checks):
                marks.append(time.monotonic())
                done.append(judge(CASE, command.run(CASE, TIMEOUT)))
                if command._child is None:
                    left += survivors(token)
            marks.append(time.monotonic())
        notes = command.notes
    except InputError as error:
        refused = str(error)
    marks.append(time.monotonic())
    left += survivors(token)
    seconds = [b - a for a, b in pairwise(marks)]
    return Ran(done, refused, seconds, notes, tuple(left))


def verdict(fault, ran):
    """Assert what holds of every fault."""
    checked = ran.seconds if fault in harness.HELLO else ran.seconds[1:]
    assert max(checked, default=0) < TIMEOUT + LATE + LOAD, (fault, ran.seconds)
    assert ran.left == (), fault
    if fault in REFUSED:
        assert ran.refused.startswith("--cmd: got"), fault
        assert ran.refused.isprintable(), fault
        assert len(ran.refused) < 3000, fault
        return
    assert ran.refused == "", fault
    for check in ran.checks:
        status = "failed" if fault not in PASSES | DECLINES else check.status
        assert check.status == status, fault
        text = check.reason or (check.finding and check.finding.message) or ""
        assert text.isprintable(), fault
        assert len(text) < 2500, fault


@linux
def test_every_fault_of_processes_ends_in_time_and_nothing_survives():
    """All beside each other, so that the waiting overlaps; of each kind some by default."""
    faults = sample(CROWDS, 16, name=str)
    with ThreadPoolExecutor(4) as pool:
        ran = dict(zip(faults, pool.map(run, faults), strict=True))
    for fault, one in ran.items():
        verdict(fault, one)
        for check in one.checks:
            if fault in harness.RUN and fault not in PASSES:
                timeout = fault.startswith(("hang", "stops", "daemon-hang", "orphans-hang"))
                assert check.finding.kind == "timeout" or not timeout, (fault, check.finding)


@linux
@pytest.mark.sampled(12)
@pytest.mark.parametrize("fault", MESSAGES)
def test_every_message_is_a_finding_in_bounded_memory(fault):
    # Linux counts the peak anew when told to
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    verdict(fault, run(fault))
    assert memory("VmHWM") - before < MEMORY


def memory(what):
    """Bytes that this process has (VmRSS), or had at most (VmHWM)."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s*(\d+) kB", text)[1]) * 1024


@linux
def test_a_request_that_is_not_read_is_a_time_out():
    """One of 640 kB, which no pipe holds."""
    large = user_case("lora.delta", {"A": np.ones((2, 30_000)), "B": np.ones((2, 2))}, alpha=3.0)
    token = uuid.uuid4().hex
    with Command(command_line("after-reads-no-more", token), 2**40, START) as command:
        command.stop_timeout = TIMEOUT
        assert judge(CASE, command.run(CASE, START)).status == "passed"
        start = time.monotonic()
        assert command.run(large, TIMEOUT).finding.kind == "timeout"
        assert time.monotonic() - start < TIMEOUT + LATE + LOAD
    assert survivors(token) == []


def every_output(target, checks, notes=()):
    """The report in its four forms, as the command writes them."""
    stream = StringIO()
    console = Console(file=stream, width=200, emoji=False)
    terminal.print_report(console, target, checks, notes)
    document = json.loads(json.dumps(report.as_json(target, checks, notes), allow_nan=False))
    xml = ElementTree.fromstring(junit.as_xml(target, checks, {}, {}))
    return stream.getvalue(), document, xml, page.as_html(target, checks, notes)


@pytest.mark.parametrize("name", harness.TEXTS)
def test_hostile_texts_stand_in_every_output_and_break_none(name):
    """A message, a reason and stderr, escaped where they do not print, the same in all."""
    text = harness.TEXTS[name]
    checks = [
        judge(CASE, Answer(finding=Finding(kind="raised", message=f"begin {text}"))),
        judge(CASE, Answer(declined=f"begin {text}")),
    ]
    shown = checks[0].finding.message
    assert shown.startswith("begin ")
    assert checks[1].reason == shown
    printed, document, xml, html = every_output("t", checks, [shown])
    assert printed.count(shown) == 3  # the failure, the note, what is unsupported
    assert "FAILED" in printed.splitlines()[-2]  # then what to type next
    assert document["checks"][0]["finding"]["message"] == shown
    assert document["checks"][1]["reason"] == shown
    assert {node.get("message") for node in xml.iter() if node.get("message")} == {shown}
    assert "<script>alert" not in html
    for form in (printed, html):
        assert all(c.isprintable() or c == "\n" for c in form)


@linux
def test_the_command_reports_whole_and_leaves_nothing(tmp_path):
    """End to end, in all outputs, on a terminal of ASCII."""
    token = uuid.uuid4().hex
    files = {name: tmp_path / f"r.{name}" for name in ("json", "html", "junit")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "loko_ref", "verify", "--only", "lora.delta/t*/float64"),
            *("--timeout", "2", "--cmd", command_line("error-surrogate", token)),
            *(word for name, path in files.items() for word in (f"--{name}", str(path))),
        ],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert b"FAILED: 1 of 1; 0 passed, 0 unsupported" in done.stdout
    expected = r"reported an error: \ud800 and \udfff"
    document = json.loads(files["json"].read_text())
    assert document["checks"][0]["finding"]["message"] == expected
    assert expected.encode() in done.stdout
    assert expected in files["html"].read_text()
    assert ElementTree.parse(files["junit"]).find(".//failure").get("message") == expected
    assert survivors(token) == []


@linux
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("fault", "wrong", "stop"),
    [
        ("stop-hang-child", [], "FAILED stop: killed after 3 s"),
        ("stop-session", [], "ok     stop: exit code 0"),
        ("stop-crash", [], "FAILED stop: exit code 3"),
        (
            "stop-flood",
            ["one line per answer: another followed the last one: 'junk"],
            "FAILED stop: killed",
        ),
        ("crash-session", ["an unknown operation is answered"], "ok     stop: exit code 0"),
        ("unknown-crash", ["an unknown type is answered"], "ok     stop: exit code 0"),
    ],
)
def test_the_check_of_the_protocol_says_how_it_ends(fault, wrong, stop):
    """It is started again for its stop, where it has failed before."""
    token = uuid.uuid4().hex
    done = loko_ref("protocol", "--timeout", "3", "--cmd", command_line(fault, token))
    lines = done.stdout.splitlines()
    assert sum(line.startswith(stop) for line in lines) == 1, done
    failed = [line for line in lines if line.startswith("FAILED") and " stop:" not in line]
    assert len(failed) == len(wrong)
    assert all(f"FAILED {text}" in line for text, line in zip(wrong, failed, strict=True))
    assert done.returncode == (1 if wrong or stop.startswith("FAILED") else 0)
    assert survivors(token) == []


OWN_END = """
import signal, sys
sys.path[:0] = sys.argv[2:]
import test_process_trees as t
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs behind
with t.Command(t.command_line("hang-session", sys.argv[1]), 2**40, 20) as command:
    print("begun", flush=True)
    command.run(t.CASE, 100)
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_our_own_end_ends_the_command(number):
    """Killed, or interrupted: nothing of the command stays, and nothing is waited for."""
    token = uuid.uuid4().hex
    child = subprocess.Popen(
        [sys.executable, "-c", OWN_END, token, str(HERE), str(HERE.parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert child.stdout.readline() == b"begun\n"
        until = time.monotonic() + 60
        while len(survivors(token)) < 4:  # this one, the supervisor, the command, its child
            assert time.monotonic() < until
            time.sleep(0.02)
        start = time.monotonic()
        child.send_signal(number)
        child.wait(timeout=20)
        while left := survivors(token):
            assert time.monotonic() - start < 1 + LOAD, left
            time.sleep(0.02)
    finally:
        child.kill()
        child.communicate(timeout=20)


def test_no_descriptor_and_no_child_of_anyone_else_is_taken():
    """Neither a descriptor is left open, nor another's exit code taken."""
    with subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(7)"]) as other:
        time.sleep(0.2)  # it has ended, and nobody has asked
        token = uuid.uuid4().hex
        before = len(os.listdir("/dev/fd"))
        for fault in ("daemon-crash", "stop-child", "hello-crash-child"):
            run(fault, checks=1)
        assert len(os.listdir("/dev/fd")) == before
        assert other.wait(timeout=10) == 7
    assert survivors(token) == [] if sys.platform == "linux" else True


@pytest.mark.parametrize(
    "command", ["/", __file__, "no-such-command", "python\0x", "python \ud800", "x" * 5000]
)
def test_what_cannot_be_started_is_told(command):
    with pytest.raises(InputError, match="--cmd: got") as error:
        Command(command, timeout=5)
    str(error.value).encode()  # can be printed


@linux
def test_a_kernel_without_lists_of_children(monkeypatch):
    """The table of all processes gives the same descendants."""
    code = "sleep 60 & sh -c 'sleep 60 & wait' & wait"
    with subprocess.Popen(["sh", "-c", code], start_new_session=True) as shell:
        try:
            until = time.monotonic() + 20
            while len(found := supervisor._descendants(shell.pid)) < 3:
                assert time.monotonic() < until
                time.sleep(0.01)
            monkeypatch.setattr(os.path, "exists", lambda path: False)
            assert set(supervisor._descendants(shell.pid)) == set(found)
            assert len(found) == 3
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
