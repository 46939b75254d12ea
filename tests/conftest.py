"""What every test shares: Hypothesis profiles, warnings as errors, read-only inputs.

``ci`` (the default) is deterministic and modest; ``LOKO_REF_LONG=1`` draws many more examples.
"""

import os
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

LONG = os.environ.get("LOKO_REF_LONG") == "1"

COMMON = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "print_blob": True,
    "phases": [Phase.explicit, Phase.generate, Phase.target, Phase.shrink],  # none that traces
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("ci", max_examples=30, **COMMON)
settings.register_profile("long", max_examples=300, **COMMON)
settings.load_profile("long" if LONG else "ci")


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    """A warning of NumPy's (overflow, division by zero) is a failure, also inside Hypothesis."""
    with warnings.catch_warnings(), np.errstate(over="warn", divide="warn", invalid="warn"):
        warnings.simplefilter("error")
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(2410_11551)


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return request.param
