"""The judge of hostile inputs reports every kind of end, and leaves nothing running."""

import os
import time

import numpy as np
import pytest
from hostile import needs_linux, run

from loko_ref.errors import InputError

pytestmark = needs_linux


def refuse():
    raise InputError("x", 1, "2", "a test")


def grow():
    return np.ones(2**28)  # 2 GB


def leave():
    print("a last word")
    raise SystemExit(2)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: 1, "accepted"),
        (refuse, "refused"),
        (leave, "exit"),
        (lambda: [][0], "traceback"),
        (grow, "memory"),
        (lambda: os._exit(3), "crash"),
    ],
)
def test_every_end_is_told_apart(call, kind):
    assert run(call, seconds=60).kind == kind


def test_a_hang_ends_in_time():
    begin = time.monotonic()
    assert run(lambda: time.sleep(60), seconds=0.3).kind == "hang"
    assert time.monotonic() - begin < 30


def test_what_was_printed_and_the_exit_code_come_back():
    end = run(leave, seconds=60)
    assert end.value == 2
    assert end.printed == "a last word\n"
