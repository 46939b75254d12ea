"""``loko-ref explain LABEL``, ``labels`` and ``lte``: in the terminal, offline, at 80 columns."""

import re

import pytest
from command import loko_ref

from loko_ref.explain.derivations import derivations
from loko_ref.explain.merging import MERGES, merges


def test_a_label_prints_its_statement_and_derivation():
    done = loko_ref("explain", "kal-2", columns=80)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert text.startswith("[KAL-2] Innovation covariance and gain")
    for line in ("    S = H P Hᵀ + R,", "    K = P Hᵀ S⁻¹,", "    P₊ = P - K H P."):
        assert f"    {line}\n" in text
    places = [text.index(f"\n{part}\n") for part in ("Statement", "Assumptions", "Derivation")]
    assert places == sorted(places)


@pytest.mark.sampled(0.1)
@pytest.mark.parametrize("label", derivations())
def test_every_label_prints_at_80_columns(label):
    """Tables and code alone may be wider."""
    done = loko_ref("explain", label, columns=80)
    assert done.returncode == 0
    text = derivations()[label].text
    if "\n|" not in text and "```" not in text:
        assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\n\n\n" not in done.stdout


def test_the_labels_are_listed():
    done = loko_ref("explain", "labels")
    listed = re.findall(r"^([A-Z]+-\d+) +(\S.*)$", done.stdout, re.M)
    assert listed == [(label, one.title) for label, one in derivations().items()]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["KAL-22"], "the closest is KAL-2"),
        (["lables"], "the closest is 'labels'"),
        (["KAL-2", "--data", "iris"], "an option of a run on data"),
        (["lte", "--steps", "2"], "no --steps with 'lte'"),
        (["--matrix"], "required 'labels' before it"),
    ],
)
def test_what_cannot_be_explained(words, text):
    done = loko_ref("explain", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr


def test_a_merge_is_walked():
    found = list(merges())
    assert len(found) == MERGES
    for merge in found:
        compared = [q.residual for q in merge.quantities if q.residual is not None]
        assert len(compared) == 2
        assert max(compared) < 1e-14
        values = merge.quantities[-1].value[0]
        assert values[1] > 0.1
        assert values[2] < 1e-14
        assert all(label in derivations() for q in merge.quantities for label in q.labels)
    done = loko_ref("explain", "lte", columns=80)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Effects of this merge") == MERGES
    assert "W + mean(delta - delta')   [LTE-5]" in done.stdout
