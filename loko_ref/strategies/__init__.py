"""Hypothesis strategies for inputs of LoKO and LTE implementations.

Used by the property tests of this package, and usable in those of other projects::

    from hypothesis import given, settings
    from loko_ref import strategies as st

    @settings(deadline=None)
    @given(st.diagonal_problems(max_n=8, cond=1e8))
    def test_variances_shrink(problem):
        new = my_update(**problem.arguments())
        assert ((0 < new["p"]) & (new["p"] <= problem.p)).all()

Hypothesis has a deadline of 200 ms per example by default, which a loaded machine may exceed: tests
of numerical code should set ``@settings(deadline=None)``, or load a profile that does, as
``examples/property_test_my_filter.py``.

Shapes: theta, p (n,); P (n, n); H, Z (m, n); e (m,); R (m, m); yhat (batch, C), m = batch * C.

Conventions of all strategies:

* an array's entries are quarters of small whole numbers (exact in float32; they shrink to 0 and
  include degenerate cases: zeros, equal rows), or Gaussian;
* conditioning is bounded: an argument ``cond`` bounds the ratio of the largest to the smallest
  eigenvalue (or variance), up to rounding;
* if ``dtype`` is None it is drawn, float64 or float32; ``cond`` is lowered to what the dtype can
  represent (:func:`cond_limit`);
* every array drawn is read-only: an implementation that writes to its inputs raises at once.
"""

from loko_ref.errors import MissingExtraError

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise MissingExtraError("loko_ref.strategies", "hypothesis", "test") from error

from loko_ref.strategies.heads import LteRun, lte_runs
from loko_ref.strategies.matrices import (
    arrays,
    cond_limit,
    dtypes,
    innovations,
    probabilities,
    spd_matrices,
    variances,
)
from loko_ref.strategies.networks import factors, models
from loko_ref.strategies.problems import (
    DenseProblem,
    DiagonalProblem,
    GlmProblem,
    ObservationProblem,
    PrecisionProblem,
    dense_problems,
    diagonal_problems,
    glm_problems,
    observation_problems,
    precision_problems,
)
from loko_ref.strategies.steps import StepProblem, batches, configs, states, step_problems
from loko_ref.strategies.transformers import transformer_specs, transformers

__all__ = [
    "DenseProblem",
    "DiagonalProblem",
    "GlmProblem",
    "LteRun",
    "ObservationProblem",
    "PrecisionProblem",
    "StepProblem",
    "arrays",
    "batches",
    "cond_limit",
    "configs",
    "dense_problems",
    "diagonal_problems",
    "dtypes",
    "factors",
    "glm_problems",
    "innovations",
    "lte_runs",
    "models",
    "observation_problems",
    "precision_problems",
    "probabilities",
    "spd_matrices",
    "states",
    "step_problems",
    "transformer_specs",
    "transformers",
    "variances",
]


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
