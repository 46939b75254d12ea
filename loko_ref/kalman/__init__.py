"""Kalman filtering, stated for arrays alone: this room knows no model.

``dense`` and ``diagonal`` hold the measurement updates, ``time`` the time update, ``observation``
the observation models, ``glm`` one of them without its likeliest class, ``noise`` the estimators of
R.
"""

from loko_ref.kalman import dense, diagonal, glm, noise, observation, time

__all__ = ["dense", "diagonal", "glm", "noise", "observation", "time"]


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
