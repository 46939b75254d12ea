"""Every public strategy over its whole space of options: each draws, and what it draws is valid."""

import inspect
import itertools
import random

import pytest
import sampling
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as hs

from loko_ref import loko, lte
from loko_ref import strategies as st
from loko_ref.errors import NumericalError
from loko_ref.kalman import dense, diagonal, noise
from loko_ref.kalman.observation import OBSERVATIONS
from loko_ref.loko import COVARIANCES
from loko_ref.lte.config import CHOICES
from loko_ref.network import lora
from loko_ref.network.layers.activation import ACTIVATIONS
from loko_ref.strategies.heads import STEPS
from loko_ref.strategies.steps import DENSE_FORMS, SEQUENTIAL

PAIRS = sampling.count(4, 60)

FEW = settings(
    max_examples=sampling.count(1, 10),
    phases=[Phase.generate],
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
DTYPE = (None, "float64", "float32")

LOKO = {
    "observation": OBSERVATIONS,
    "noise": noise.ESTIMATORS,
    "timing": noise.TIMINGS,
    "beta": (0.0, 0.5),
    "r0": (0.1, 10.0),
    "p0": (0.01, 1.0),
    "covariance": (None, *COVARIANCES),
    "diagonal": diagonal.DIAGONALS,
    "form": dense.FORMS,
    "lam": (1.0, 0.9),
    "q": (0.0, 1e-2),
    "center": (False, True),
}
LTE = {
    **CHOICES,
    "heads": (1, 3),
    "merge_every": (1, 4),
    "seed": (0, 2**64 - 1),
    "optimizer": (
        *STEPS[::2],
        lte.Loko(),
        lte.Loko(observation="gaussian"),
        lte.Loko(observation="softmax"),
    ),
}
TRANSFORMER = {
    "kinds": [(k,) for k in ("features", "text", "image")],
    "max_layers": (1, 2),
    "max_width": (1, 4),
    "min_outputs": (1, 3),
    "eps": (1e-3, 1e-12),
}
PROBLEM = {"dtype": DTYPE, "cond": (1.0, 1e8)}

WHOLE = {"whole": (False, True)}

OPTIONS = {
    "arrays": {
        "shape": (0, 3, (2, 3)), "dtype": DTYPE[1:], "size": (0.5, 4.0), **WHOLE,
    },
    "innovations": {"m": (1, 3), "dtype": DTYPE[1:], "size": (0.5, 4.0)},
    "dtypes": {},
    "variances": {
        "n": (1, 4), "cond": (1.0, 1e8), "scale": ((1e-3, 10.0),), "dtype": DTYPE[1:], **WHOLE,
    },
    "spd_matrices": {
        "m": (1, 3),
        "cond": (1.0, 1e8),
        "scale": ((1e-2, 10.0),),
        "dtype": DTYPE[1:],
        "diagonal": (False, True),
        **WHOLE,
    },
    "probabilities": {
        "batch": (1, 2),
        "C": (1, 2, 4),
        "margin": (0.0, 40.0),
        "dtype": DTYPE[1:],
    },
    "factors": {"max_width": (1, 6), "bias": (None, False, True), "dtype": DTYPE},
    "models": {
        "max_width": (1, 5),
        "max_depth": (1, 3),
        "activations": [(a,) for a in ACTIVATIONS],
        "min_outputs": (1, 3),
        "train_all": (False, True),
        "dtype": DTYPE,
        **WHOLE,
    },
    "diagonal_problems": {
        **PROBLEM, "max_n": (1, 6), "max_m": (1, 4), "diagonal_noise": (False, True), **WHOLE,
    },
    "dense_problems": {
        **PROBLEM, "max_n": (1, 5), "max_m": (1, 4), "diagonal_noise": (False, True), **WHOLE,
    },
    "precision_problems": {
        **PROBLEM, "blocks": (False, True), "max_n": (1, 5), "max_m": (1, 3), "max_L": (0, 3),
        **WHOLE,
    },
    "glm_problems": {
        **PROBLEM, "max_n": (1, 5), "max_batch": (1, 2), "max_C": (2, 4), "margin": (0.0, 40.0),
    },
    "observation_problems": {
        "observation": OBSERVATIONS, "max_n": (1, 4), "max_batch": (1, 2), "max_C": (2, 4),
        "margin": (0.0, 40.0), "dtype": DTYPE, **WHOLE,
    },
    "configs": {"dense_form": (None, *DENSE_FORMS), **LOKO},
    "states": {"batch": (1, 2), "cond": (1.0, 1e6)},
    "batches": {"observation": OBSERVATIONS, "size": (None, 1, 2), "max_size": (1, 3)},
    "step_problems": {
        "networks": (None, st.transformers(max_layers=1)),
        "max_size": (1, 2),
        "cond": (1.0, 1e4),
        **LOKO,
    },
    "lte_runs": {
        "max_heads": (1, 3), "max_steps": (1, 4), "max_chunk": (1, 2), "max_width": (1, 3),
        "max_depth": (1, 2), "dtype": DTYPE, **LTE,
    },
    "transformer_specs": TRANSFORMER,
    "transformers": {"size": (0.5, 1.0), "dtype": DTYPE, **TRANSFORMER},
}  # fmt: skip
"""Strategy -> option -> values."""

NEEDED = {"arrays": {"shape": 2}, "innovations": {"m": 2}, "variances": {"n": 2}}
NEEDED |= {"spd_matrices": {"m": 2}, "probabilities": {"batch": 1, "C": 2}}

NETS = {C: hs.shared(st.models(min_outputs=C, max_width=3), key=C) for C in (2,)}


def test_no_strategy_and_no_option_is_left_out():
    public = {
        name
        for name in st.__all__
        if inspect.isfunction(getattr(st, name)) and name != "cond_limit"
    }
    assert public == set(OPTIONS)
    for name, options in OPTIONS.items():
        parameters = inspect.signature(getattr(st, name)).parameters
        named = {
            p.name for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
        assert named - {"draw", "model", "config"} <= set(options), name


def singles_and_pairs(name):
    """Each value of each option alone, and a sample of pairs."""
    values = [(key, value) for key, some in OPTIONS[name].items() for value in some]
    found = [{}] + [{key: value} for key, value in values]
    pairs = [dict(two) for two in itertools.combinations(values, 2) if two[0][0] != two[1][0]]
    return found + random.Random(f"{name} {sampling.SEED}").sample(pairs, min(len(pairs), PAIRS))


def strategy(name, options):
    """The strategy, with what it needs beside its options."""
    options = NEEDED.get(name, {}) | options
    net = NETS[2]
    if name in ("configs", "batches"):
        return net.flatmap(lambda model: getattr(st, name)(model, **options))
    if name == "states":
        return net.flatmap(st.configs).flatmap(lambda config: st.states(config, **options))
    return getattr(st, name)(**options)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_draws_over_every_option(name):
    for options in singles_and_pairs(name):
        if not goes_together(options):
            continue

        @FEW
        @given(strategy(name, options))
        def draws(drawn):
            if name == "step_problems":
                try:
                    loko.step(drawn.state, drawn.batch, drawn.config)
                except NumericalError:  # an honest end of a hard problem
                    return

        try:
            draws()
        except Exception as error:
            raise AssertionError(f"{name}(**{options})") from error


def goes_together(options):
    """Whether two choices are a combination that LoKO, or LTE, has."""
    triples = noise.combinations()
    names = ("observation", "noise", "timing")
    wanted = {k: options[k] for k in names if k in options}
    if options.get("center"):
        wanted.setdefault("observation", "logits")
    if wanted and "kinds" not in options:
        fits = [t for t in triples if all(t[names.index(k)] == v for k, v in wanted.items())]
        if options.get("form") == "sequential":
            fits = [t for t in fits if t[:2] in SEQUENTIAL]
        if not fits or (options.get("center") and wanted["observation"] != "logits"):
            return False
    if options.get("form") == "sequential" and (options.get("beta") or options.get("center")):
        return not options.get("center")
    diagonal_alone = (
        options.get("covariance") == "diagonal" or options.get("diagonal") == "variational"
    )
    if options.get("form", "joseph") != "joseph" and diagonal_alone:
        return False
    if options.get("covariance") == "dense" and options.get("diagonal") == "variational":
        return False
    optimizer = options.get("optimizer")
    if isinstance(optimizer, lte.Loko) and "loss" in options:
        return (optimizer.observation == "gaussian") == (options["loss"] == "mse")
    if options.get("filter_merge", "keep") != "keep":
        if options.get("optimizer_state") == "reset" or options.get("mode") == "mhlora":
            return False
        if optimizer is not None and not isinstance(optimizer, lte.Loko):
            return False
    if options.get("mode") == "mhlora":
        usual = {"realisation": "shared", "reset": "none", "optimizer_state": "keep"}
        usual |= {"reduction": "all"}
        return all(options.get(k, v) == v for k, v in usual.items())
    return True


def test_the_factor_laws_are_all_drawn():
    assert set(CHOICES["init"]) == set(lora.INITS)


def test_a_fixed_diagonal_covariance_is_drawn():
    """It used to raise: the form that a dense update takes was set for the diagonal too."""

    @FEW
    @given(st.step_problems(covariance="diagonal"))
    def diagonal_step(problem):
        assert problem.config.form == "joseph"

    @FEW
    @given(st.step_problems(covariance="dense"))
    def dense_step(problem):
        assert problem.config.form == "textbook"

    diagonal_step()
    dense_step()
