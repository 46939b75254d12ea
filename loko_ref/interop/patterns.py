r"""Regular expressions out of a file, matched as PEFT matches them, in bounded time.

Python's engine backtracks: ``(a+)+$`` takes for ever on a long name, and cannot be stopped in its
own process. A pattern that is more than a name (letters, digits, dots, escapes) is therefore
matched in a process of its own, which is ended after ``SECONDS``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from loko_ref.errors import InputError
from loko_ref.interop.fields import short

SECONDS = 10.0
"""Time for all patterns of one file: thousands of times what an honest one needs."""

_PLAIN = re.compile(r"[\w.\\-]*")
"""Patterns without a repeat, a choice or a group: they cannot backtrack."""

_FAULTY = (re.error, RecursionError, OverflowError)
"""What compiling a faulty pattern raises; the last where it asks for too many repeats."""

_CHILD = """
import json, re, sys
jobs, names = json.load(sys.stdin)
for full, text in jobs:
    try:
        find = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        answer = str(error)
    else:
        find = find.fullmatch if full else find.match
        answer = {n: m.groupdict().get("idx") for n in names if (m := find(n))}
    print(json.dumps(answer), flush=True)
"""


@dataclass(frozen=True)
class Expression:
    """One pattern and how it is matched."""

    where: str  # file and field, for errors
    pattern: str  # as the file has it
    text: str  # the expression that PEFT makes of it
    full: bool = False  # whether the whole name must match; else its beginning

    def faulty(self, why: object) -> InputError:
        """Build the error for a pattern that is no regular expression."""
        got = f"{short(self.pattern)} ({why})"
        return InputError(self.where, got, "a regular expression", "a bracket left open")


def search(expressions: Sequence[Expression], names: Sequence[str]) -> list[dict[str, str | None]]:
    """Match every expression against every name.

    Returns
    -------
    list of dict
        For each expression, the names that it matches, each with what its group ``idx`` holds.

    Raises
    ------
    InputError
        If a pattern is no regular expression, or takes longer than all of them may.
    """
    answers: list[dict[str, str | None]] = [{} for _ in expressions]
    far = []
    for j, one in enumerate(expressions):
        if not _PLAIN.fullmatch(one.pattern):
            far.append(j)
            continue
        try:
            compiled = re.compile(one.text)
        except _FAULTY as error:
            raise one.faulty(error) from None
        find = compiled.fullmatch if one.full else compiled.match
        answers[j] = {n: m.groupdict().get("idx") for n in names if (m := find(n))}
    if far:
        for j, answer in zip(far, _in_a_process([expressions[j] for j in far], names), strict=True):
            answers[j] = answer
    return answers


def _in_a_process(
    expressions: Sequence[Expression], names: Sequence[str]
) -> list[dict[str, str | None]]:
    jobs = json.dumps([[(one.full, one.text) for one in expressions], list(names)])
    command = [sys.executable, "-I", "-W", "ignore", "-c", _CHILD]
    try:
        done = subprocess.run(
            command, input=jobs.encode(), stdout=subprocess.PIPE, timeout=SECONDS, check=True
        )
    except subprocess.TimeoutExpired as late:
        one = expressions[(late.stdout or b"").count(b"\n")]
        raise InputError(
            one.where,
            short(one.pattern),
            f"a pattern that is matched against {len(names)} names within {SECONDS:g} s",
            "a repeat within a repeat, which backtracks without end",
        ) from None
    found = []
    for one, line in zip(expressions, done.stdout.splitlines(), strict=True):
        answer = json.loads(line)
        if isinstance(answer, str):
            raise one.faulty(answer)
        found.append(answer)
    return found
