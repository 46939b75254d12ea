"""Ball arithmetic (Arb, through python-flint): each number comes with a proven enclosure.

``ballarray`` holds the arrays, ``namespace`` what stands in for NumPy, ``linalg`` the certified
factorisations and solves, ``enclose`` the precision that doubles until an enclosure is tight, and
correct rounding.

python-flint (extra ``certify``) is imported when the first ball is made, not before.
"""

from loko_ref.arrays.balls.ballarray import (
    BallArray,
    balls,
    bits,
    inflate,
    is_balls,
    midpoint,
    precision,
    to_host,
    widened,
)
from loko_ref.arrays.balls.enclose import Enclosed, Rounded, enclose, radius, rounded
from loko_ref.arrays.balls.linalg import (
    cho_solve,
    cholesky,
    contrast_basis,
    eigvalsh,
    root,
    solve,
    solve_triangular,
)
from loko_ref.arrays.balls.namespace import erf, erfc, peak, positive, xp

__all__ = [
    "BallArray",
    "Enclosed",
    "Rounded",
    "balls",
    "bits",
    "cho_solve",
    "cholesky",
    "contrast_basis",
    "eigvalsh",
    "enclose",
    "erf",
    "erfc",
    "inflate",
    "is_balls",
    "midpoint",
    "peak",
    "positive",
    "precision",
    "radius",
    "root",
    "rounded",
    "solve",
    "solve_triangular",
    "to_host",
    "widened",
    "xp",
]
