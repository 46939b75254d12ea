"""Kalman filtering, stated for arrays alone: this package has no model.

``dense``, ``diagonal`` and ``lowrank`` hold the measurement updates, the last of a precision,
``implicit`` the implicit step, ``time`` the time update, ``observation``
the observation models, ``simplex`` the contrasts of classes that sum to 1, ``glm`` an observation
without its reference class, ``noise`` the estimators of R.

A function checks its arguments; its ``_unchecked`` form is the computation alone.
"""

from loko_ref.kalman import dense, diagonal, glm, noise, observation, simplex, time

__all__ = ["dense", "diagonal", "glm", "noise", "observation", "simplex", "time"]


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
