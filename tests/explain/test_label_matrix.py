"""Label x code x test x known mistake: no hole, and nothing claimed that is not so."""

from pathlib import Path

from command import loko_ref

from loko_ref.conformance.mistakes.registry import all_mutants
from loko_ref.explain.derivations import derivations
from loko_ref.explain.label_matrix import _REASONS, formulas, matrix
from loko_ref.textbook import FORMULA_TABLE

ROOT = Path(__file__).resolve().parents[2]


def test_the_matrix_has_no_hole():
    rows = matrix()
    assert [row.label for row in rows] == list(derivations())
    for row in rows:
        assert row.code, row.label
        assert row.tests, row.label
        assert bool(row.mistakes) != bool(row.reason), row.label
        assert all((ROOT / path).exists() for path in row.code + row.tests), row


def test_every_formula_that_a_mistake_changes_has_a_label():
    changed = {name for one in all_mutants() for name in one.changes(one.example)}
    mapped = {name for names in formulas().values() for name in names}
    assert changed == mapped
    assert mapped <= set(FORMULA_TABLE)
    of_precision = {one.id for one in all_mutants() if one.roundoff}
    named = {key for row in matrix() for key in row.mistakes}
    assert named | of_precision == {one.id for one in all_mutants()}


def test_every_reason_is_used():
    without = {row.label for row in matrix() if row.reason}
    families = {label.split("-")[0] for label in without}
    assert set(_REASONS) <= without | families


def test_the_command_prints_it():
    done = loko_ref("explain", "labels", "--matrix", columns=80)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    at = lines.index("KAL-1    State-space model and time update")
    assert lines[at + 1].startswith("         code      loko_ref/")
    assert lines[-1].startswith(f"{len(derivations())} labels; known mistakes of ")
