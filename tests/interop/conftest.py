"""Other packages warn about themselves; only NumPy's floating-point warnings stay errors here."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        yield
