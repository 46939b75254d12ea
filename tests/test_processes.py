"""The tests' own helper ends whole trees; every process that a test starts has a time-out."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import MARK, end_tree, new_mark, with_token

ROOT = Path(__file__).parents[1]
WAITS = {"run", "check_call", "check_output", "call", "communicate", "wait"}


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_helper_ends_a_tree_whose_parents_have_gone():
    """A shell that leaves a session of its own behind, stops itself, and a child that waits."""
    mark = new_mark()
    code = "setsid sleep 300 & (sleep 300 &) ; sleep 300 & kill -STOP $$"
    with subprocess.Popen(["sh", "-c", code], env=os.environ | {MARK: mark}) as shell:
        until = time.monotonic() + 20
        while len(with_token(mark)) < 4:
            assert time.monotonic() < until
            time.sleep(0.01)
        end_tree(shell.pid, mark)
    assert with_token(mark) == []


def without_time_out(tree):
    """Lines of calls that wait for a process and have no time-out."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        of = node.func.value
        module = isinstance(of, ast.Name) and of.id == "subprocess"
        named = {keyword.arg for keyword in node.keywords}
        waits = node.func.attr in ("communicate", "wait") and not (
            node.args or "barrier" in ast.dump(of)
        )
        if node.func.attr in WAITS and (module or waits) and not named & {"timeout", None}:
            yield node.lineno


def test_what_has_no_time_out_is_seen():
    for code in ("subprocess.run([])", "child.wait()", "child.communicate()", "subprocess.call(x)"):
        assert list(without_time_out(ast.parse(code))) == [1]
    for code in ("subprocess.run([], timeout=3)", "child.wait(timeout=3)", "barrier.wait()"):
        assert list(without_time_out(ast.parse(code))) == []


@pytest.mark.parametrize("folder", ["loko_ref", "tests", "examples"])
def test_every_wait_for_a_process_has_a_time_out(folder):
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in [path.read_text(encoding="utf-8")]
        if "subprocess" in text or ".wait(" in text or ".communicate(" in text
        for line in without_time_out(ast.parse(text))
    ]
    assert found == []
