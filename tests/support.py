"""Helpers of the tests: trees of arrays, read-only inputs, and derived tolerances.

A tolerance here is always (machine epsilon) x (conditioning) x (operation count) x (size).
"""

from dataclasses import fields, is_dataclass
from types import SimpleNamespace

import numpy as np

from loko_ref.network.model import Model


def readonly(a):
    """A read-only copy: a function that writes to it raises on the spot."""
    a = np.array(a)
    a.flags.writeable = False
    return a


def tree_map(f, tree, is_leaf):
    """Apply f to the leaves of nested mappings, sequences and dataclasses; the rest passes."""
    if is_leaf(tree):
        return f(tree)
    if isinstance(tree, dict):
        return {k: tree_map(f, v, is_leaf) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(tree_map(f, v, is_leaf) for v in tree)
    if isinstance(tree, Model):
        weights = {k: tree_map(f, v, is_leaf) for k, v in tree.weights.items()}
        return Model(spec=tree.spec, weights=weights, trainable=tree.trainable)
    if is_dataclass(tree) and not isinstance(tree, type):
        new = {x.name: tree_map(f, getattr(tree, x.name), is_leaf) for x in fields(tree)}
        return type(tree)(**new)
    return tree


def leaves(tree, is_leaf, path=""):
    """(path, leaf) for every leaf of a tree."""
    if is_leaf(tree):
        return [(path, tree)]
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    elif is_dataclass(tree) and not isinstance(tree, type):
        items = [(x.name, getattr(tree, x.name)) for x in fields(tree)]
    else:
        return []
    return [pair for k, v in items for pair in leaves(v, is_leaf, f"{path}.{k}" if path else k)]


def is_array(x):
    return isinstance(x, np.ndarray | np.generic)


def norm(A):
    """Spectral norm of a matrix, Euclidean norm of a vector, in float64; 0 where it is empty."""
    A = np.asarray(A, dtype=float)
    return float(np.linalg.norm(A, 2)) if A.size else 0.0


def slack(H, R, prior, factor=1.0):
    """Relative error of one measurement update, with the sizes that its outputs are relative to.

    S = H P H' + R is formed with relative error at most (n + 2) m u (the entries' absolute values
    sum to at most trace S <= m |S|), and a Cholesky solve adds at most about 3 m^2 u: together
    within 8 m (n + m) eps, amplified by cond(S) <= kappa = |S| / lambda_min(R).

    Returns
    -------
    namespace
        rel: 8 m (n + m) eps kappa * factor; kappa;
        gain: bound on |K| by |P H'| / lambda_min(R), so on |error of K| / rel;
        gains (n,): the same, row by row, for a diagonal prior.
    """
    H, R, prior = (np.asarray(a, dtype=float) for a in (H, R, prior))
    P = np.diag(prior) if prior.ndim == 1 else prior
    m, n = H.shape
    least = float(np.linalg.eigvalsh(R)[0])
    kappa = norm(H @ P @ H.T + R) / least
    return SimpleNamespace(
        kappa=kappa,
        rel=8 * m * (n + m) * kappa * factor,  # times eps, by `eps`
        gain=norm(P @ H.T) / least,
        gains=np.linalg.norm(P @ H.T, axis=1) / least,
    )


def eps(a):
    return float(np.finfo(np.asarray(a).dtype).eps)


def close(got, expected, tolerance, what=""):
    """Assert |got - expected| <= tolerance elementwise, and say by how many times it is missed."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, (what, got.shape, expected.shape)
    if not got.size:
        return
    off = np.abs(got - expected) - tolerance
    worst = np.unravel_index(np.argmax(off), off.shape)
    assert (off <= 0).all(), (
        f"{what}{tuple(map(int, worst))}: got {got[worst]!r}, expected {expected[worst]!r}, "
        f"tolerance {np.broadcast_to(tolerance, off.shape)[worst]:.3g}"
    )
