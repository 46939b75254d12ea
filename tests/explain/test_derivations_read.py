"""The derivations by label, from the checkout and from a wheel, as plain text."""

import re
import tomllib
from pathlib import Path

import pytest

from loko_ref.errors import InputError
from loko_ref.explain.derivations import derivation, derivations
from loko_ref.explain.plain_math import plain, plain_text
from loko_ref.files import shipped as place

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = {"arg", "cosh", "det", "exp", "log", "max", "min", "sinh", "tanh"}  # keep their names


def test_every_label_of_the_index_has_its_parts():
    index = (ROOT / "derivations" / "README.md").read_text(encoding="utf-8")
    assert list(derivations()) == re.findall(r"^\| ([A-Z]+-\d+) \|", index, re.MULTILINE)
    assert derivation("kal-2").statement.startswith("For the linearised observation")
    assert "Take $d - K e$" in derivation("KAL-2").parts["Derivation"]


def test_no_tex_is_left_in_the_plain_text():
    for label, one in derivations().items():
        words = {
            w for m in re.findall(r"\$+([^$]+)\$", one.text) for w in re.findall(r"\\(\w+)", m)
        }
        unknown = {w for w in words if w.isalpha() and plain(f"\\{w} x") == f"{w} x"}
        assert unknown <= FUNCTIONS, label
        code = re.sub(r"`[^`]*`", "", plain_text(one.text))
        assert not re.search(r"[\\$]|\*\*", code), label


@pytest.mark.parametrize(
    ("tex", "text"),
    [
        (r"K = P H^\top S^{-1}", "K = P Hᵀ S⁻¹"),
        (r"\frac{u}{\delta} \sqrt{a + b}", "u/δ √(a + b)"),
        (r"W^{(k-1)}_{cc}", "W^(k-1)_cc"),
        (r"\bar R \sim \mathcal N(0, 1)", "R̄ ~ N(0, 1)"),
        (r"a_1, \dots, a_n", "a₁, ..., aₙ"),
        (r"\begin{bmatrix} a & b \\ c & d \end{bmatrix}", "[ a, b; c, d ]"),
    ],
)
def test_tex_as_plain_text(tex, text):
    assert plain(tex) == text


def test_an_unknown_label_names_the_closest():
    with pytest.raises(InputError, match=r"'KAL-22'.*the closest is KAL-2"):
        derivation("KAL-22")


def test_the_wheel_s_copy_comes_first(tmp_path, monkeypatch):
    """pyproject.toml copies what `shipped` looks for."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    for source, target in build["build"]["targets"]["wheel"]["force-include"].items():
        assert (ROOT / source).exists()
        assert target == f"loko_ref/shipped/{source}"
    assert place.shipped("derivations") == ROOT / "derivations"
    package = tmp_path / "loko_ref"
    (package / "shipped" / "derivations").mkdir(parents=True)
    monkeypatch.setattr(place.loko_ref, "__file__", str(package / "__init__.py"))
    assert place.shipped("derivations") == package / "shipped" / "derivations"
