"""Kalman updates in exact rational arithmetic: every float is a rational number, so is each result.

An oracle without rounding that shares no code with the package; for small cases.
"""

from fractions import Fraction

import numpy as np


def exact(a):
    """An object array of Fractions, equal to the floats."""
    a = np.asarray(a)
    return np.array([Fraction(float(v)) for v in a.reshape(-1)], dtype=object).reshape(a.shape)


def floats(a):
    """To float64, each entry rounded once."""
    return np.array([float(v) for v in a.reshape(-1)]).reshape(a.shape)


def eye(n):
    return np.array([[Fraction(int(i == j)) for j in range(n)] for i in range(n)], dtype=object)


def solve(A, b):
    """A^-1 b by Gauss-Jordan elimination, any nonzero pivot."""
    A, b = A.copy(), (b if b.ndim == 2 else b[:, None]).copy()
    n = A.shape[0]
    for j in range(n):
        pivot = next(i for i in range(j, n) if A[i, j] != 0)
        if pivot != j:
            A[[j, pivot]], b[[j, pivot]] = A[[pivot, j]], b[[pivot, j]]
        A[j], b[j] = A[j] / A[j, j], b[j] / A[j, j]
        for i in range(n):
            if i != j and A[i, j] != 0:
                b[i] = b[i] - A[i, j] * b[j]
                A[i] = A[i] - A[i, j] * A[j]
    return b


def dense(theta, P, H, e, R):
    """S, K, theta, P of the textbook update, as float64."""
    theta, P, H, e, R = map(exact, (theta, P, H, e, R))
    S = H.dot(P).dot(H.T) + R
    K = solve(S, H.dot(P)).T
    return {
        "S": floats(S),
        "K": floats(K),
        "theta": floats(theta + K.dot(e)),
        "P": floats(P - K.dot(H).dot(P)),
    }


def diagonal(theta, p, H, e, R):
    """S, K, theta and both p+ ("decoupled", "variational"), as float64."""
    theta, p, H, e, R = map(exact, (theta, p, H, e, R))
    S = (H * p).dot(H.T) + R
    K = solve(S, H * p).T
    information = (H * solve(R, H)).sum(axis=0)  # diag(H' R^-1 H)
    return {
        "S": floats(S),
        "K": floats(K),
        "theta": floats(theta + K.dot(e)),
        "decoupled": floats(p * (1 - (K * H.T).sum(axis=1))),
        "variational": floats(1 / (1 / p + information)),
    }


def glm(theta, p, Z, e, yhat):
    """theta and both p+ of the glm filter, by differences against a likeliest class.

    An invertible change of the outputs changes nothing, so any basis of the contrasts will do;
    the differences to the likeliest class are rational. A probability of 0 is taken as 2^-200:
    the gain tends to a limit there that is not 0. The largest probability of a row is 1 - (the
    sum of the others), exactly, and its entry of e minus the sum of the others.
    """
    theta, p, Z, e, yhat = map(exact, (theta, p, Z, e, yhat))
    batch, C = yhat.shape
    J = np.full((batch * C, batch * C), Fraction(0), dtype=object)
    rows = []
    for b in range(batch):
        y, at = yhat[b].copy(), slice(b * C, (b + 1) * C)
        top = int(np.argmax([float(v) for v in y]))
        for j in range(C):
            y[j] = y[j] or Fraction(1, 2**200)
        y[top] = 1 - sum(y[j] for j in range(C) if j != top)
        J[at, at] = np.diag(y) - np.outer(y, y)
        e[b * C + top] = -sum(e[b * C + j] for j in range(C) if j != top)
        for j in range(C):
            if j != top:
                d = np.full(batch * C, Fraction(0), dtype=object)
                d[b * C + j], d[b * C + top] = Fraction(1), Fraction(-1)
                rows.append(d)
    D = np.array(rows)
    H = D.dot(J).dot(Z)
    R = D.dot(J).dot(D.T)
    new = diagonal_rational(theta, p, H, D.dot(e), R)
    return {key: floats(value) for key, value in new.items()}


def diagonal_rational(theta, p, H, e, R):
    """theta and both p+ as Fractions."""
    K = solve((H * p).dot(H.T) + R, H * p).T
    information = (H * solve(R, H)).sum(axis=0)
    return {
        "theta": theta + K.dot(e),
        "decoupled": p * (1 - (K * H.T).sum(axis=1)),
        "variational": 1 / (1 / p + information),
    }


def covariance(yhat):
    """J (m, m), block diagonal, of class probabilities: a one-hot y's covariance, as Fractions."""
    batch, C = np.shape(yhat)
    J = np.full((batch * C, batch * C), Fraction(0), dtype=object)
    for b, y in enumerate(exact(yhat)):
        at = slice(b * C, (b + 1) * C)
        J[at, at] = np.diag(y) - np.outer(y, y)
    return J
