"""Observation models [OBS-1 to OBS-8], their Jacobians, and the contrast space."""

import exact
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as hs
from support import close, eps, norm, readonly, slack

from loko_ref import strategies as st
from loko_ref.arrays import contrast_basis
from loko_ref.errors import InputError
from loko_ref.kalman import diagonal, glm, simplex
from loko_ref.kalman import observation as obs


def J_of(yhat):
    """The block-diagonal Jacobian of softmax, formed."""
    batch, C = yhat.shape
    J = np.zeros((batch * C, batch * C))
    for b, y in enumerate(np.float64(yhat)):
        at = slice(b * C, (b + 1) * C)
        J[at, at] = np.diag(y) - np.outer(y, y)
    return J


@hs.composite
def outputs(draw, max_batch=3, min_C=2, max_C=4, n=3, margin=30.0, dtype=None):
    """z (batch, C), Z (m, n), one-hot y (batch, C)."""
    dtype = draw(st.dtypes()) if dtype is None else dtype
    batch, C = draw(hs.integers(1, max_batch)), draw(hs.integers(min_C, max_C))
    z = draw(st.arrays((batch, C), dtype=dtype, size=margin))
    Z = draw(st.arrays((batch * C, n), dtype=dtype))
    labels = draw(hs.lists(hs.integers(0, C - 1), min_size=batch, max_size=batch))
    return z, Z, readonly(np.eye(C, dtype=dtype)[labels]), labels


@given(outputs())
def test_gaussian(drawn):
    z, Z, _, _ = drawn
    y = readonly(z[::-1])
    seen = obs.observe("gaussian", z, Z, y)
    np.testing.assert_array_equal(seen.yhat, z.reshape(-1))
    np.testing.assert_array_equal(seen.e, (y - z).reshape(-1))
    np.testing.assert_array_equal(seen.H, Z)


@given(outputs(), hs.sampled_from(["softmax", "logits", "glm"]))
def test_softmax_family(drawn, kind):
    z, Z, y, _ = drawn
    batch, C = z.shape
    seen = obs.observe(kind, z, Z, y)
    s = np.exp(np.float64(z) - np.float64(z).max(axis=1, keepdims=True))
    yhat = s / s.sum(axis=1, keepdims=True)
    unit = eps(z)
    # exp is correct to 1 ulp, C terms are summed; the shift z - c is exact to |z| eps
    close(seen.yhat, yhat.reshape(-1), (C + 4 + 2 * np.abs(z).max()) * unit * yhat.reshape(-1))
    e, used = seen.e.reshape(batch, C), seen.yhat.reshape(batch, C)
    close(e, y - used, 2 * C * unit)
    # 1'e = 0 to rounding of e itself, however small e is: nothing of it was lost in 1 - yhat
    close(e.sum(axis=1), np.zeros(batch), C * unit * np.abs(e).max(axis=1))
    others = np.arange(C) != used.argmax(axis=1)[:, None]
    np.testing.assert_array_equal(e[others], (y - used)[others])
    if kind == "logits":
        np.testing.assert_array_equal(seen.H, Z)
        return
    close(seen.H, J_of(used) @ Z, 4 * (C + 2) * unit * np.abs(Z).max())
    # 1'H = 0 to rounding of the terms of H itself, yhat_j |Z_j - Z_likeliest|
    sums = seen.H.reshape(batch, C, -1).sum(axis=1)
    Zb = Z.reshape(batch, C, -1)
    spread = np.abs(Zb - Zb[np.arange(batch), used.argmax(axis=1)][:, None])
    size = (used[:, :, None] * spread).sum(axis=1)
    close(sums, np.zeros_like(sums), 4 * (C + 2) * unit * size)


@given(outputs(dtype="float64", margin=4.0))
def test_softmax_h_is_the_jacobian_by_complex_step(drawn):
    """d softmax(z + t Z v) / dt = H v: Im softmax(z + i h Z v) / h, exact to rounding."""
    z, Z, y, _ = drawn
    H = obs.observe("softmax", z, Z, y).H
    for j in range(Z.shape[1]):
        z_c = z + 1e-30j * Z[:, j].reshape(z.shape)
        s = np.exp(z_c - z.max(axis=1, keepdims=True))
        slope = (s / s.sum(axis=1, keepdims=True)).imag.reshape(-1) / 1e-30
        np.testing.assert_allclose(H[:, j], slope, rtol=1e-12, atol=1e-13 * (1 + norm(Z)))


@given(outputs(dtype="float64", margin=4.0))
def test_logits_gradient_is_the_cross_entropys(drawn):
    """Z'e = -gradient of the cross-entropy; `center` changes H and not Z'e."""
    z, Z, y, _ = drawn
    seen = obs.observe("logits", z, Z, y)
    step = 1e-30
    for j in range(Z.shape[1]):
        z_c = z + 1j * step * Z[:, j].reshape(z.shape)
        c = z.max(axis=1, keepdims=True)
        loss = -(y * (z_c - c - np.log(np.exp(z_c - c).sum(axis=1, keepdims=True)))).sum()
        scale = norm(Z[:, j]) * norm(seen.e)
        assert abs(seen.H[:, j] @ seen.e + loss.imag / step) <= 64 * eps(z) * (1 + scale)
    centred = obs.observe("logits", z, Z, y, center=True)
    C = z.shape[1]
    block = np.kron(np.eye(z.shape[0]), np.eye(C) - 1 / C)
    close(centred.H, block @ Z, 4 * C * eps(Z) * (1 + np.abs(Z).max()))
    close(centred.H.T @ centred.e, Z.T @ seen.e, 64 * eps(Z) * (1 + norm(Z)))


@given(st.probabilities(2, 3, margin=60.0), st.arrays((6, 2)))
def test_products_with_j_and_its_root(yhat, M):
    """J M without forming J.  [OBS-2]."""
    M = M.astype(yhat.dtype)
    unit = 4 * 5 * eps(yhat) * (1 + np.abs(M).max())
    close(obs.jacobian_product(np, yhat, M), J_of(yhat) @ M, unit)
    J = obs.jacobian_product(np, yhat, np.eye(6, dtype=yhat.dtype))
    np.testing.assert_allclose(J, J.T, atol=2 * eps(yhat))


@given(st.probabilities(2, 3, margin=60.0), st.arrays((6, 2)))
def test_without_the_likeliest_class(yhat, M):
    """Z loses nothing but its classes' common part, J is Jo in other coordinates, and L L' = Jo."""
    M = M.astype(yhat.dtype)
    unit = 4 * 5 * eps(yhat) * (1 + np.abs(M).max())
    at = [
        (3 * b + c, 3 * b + (c + k) % 3) for b, c in enumerate(yhat.argmax(axis=1)) for k in (1, 2)
    ]
    top, others = np.transpose(at)
    E = np.eye(6, dtype=yhat.dtype)[others]  # leaves the likeliest class out
    D = E - np.eye(6, dtype=yhat.dtype)[top]  # takes it from the others
    np.testing.assert_array_equal(glm.without_reference(np, yhat, M), E @ M)
    np.testing.assert_array_equal(glm.without_reference(np, yhat, M[:, 0]), E @ M[:, 0])
    Mo = glm.against_reference(np, yhat, M)
    np.testing.assert_array_equal(Mo, D @ M)
    Jo = E @ J_of(yhat) @ E.T
    close(D.T @ Jo @ D, J_of(yhat), 4 * eps(yhat))
    Lt = glm.whiten(np, yhat, np.eye(4, dtype=yhat.dtype))
    close(Lt.T @ Lt, Jo, 16 * eps(yhat))
    close(glm.whiten(np, yhat, Mo), Lt @ Mo, 2 * unit)


@pytest.mark.parametrize("C", range(1, 12))
def test_contrast_basis(C, dtype):
    Q = contrast_basis(C, np.zeros(1, dtype))
    assert Q.shape == (C - 1, C)
    assert Q.dtype == dtype
    unit = 2 * C * np.finfo(dtype).eps
    close(Q @ Q.T, np.eye(C - 1), unit)
    close(Q.sum(axis=1), np.zeros(C - 1), unit)


@given(st.arrays((6, 2)), hs.sampled_from([2, 3, 6]))
def test_contrasts_there_and_back(M, C):
    Q = contrast_basis(C, M)
    there = simplex.to_contrast(Q, M)
    assert there.shape == (6 // C * (C - 1), 2)
    close(
        simplex.from_contrast(Q, there), obs.project(M, C), 8 * C * eps(M) * (1 + np.abs(M).max())
    )
    flat = simplex.to_contrast(Q, M[:, 0])
    assert flat.ndim == 1
    np.testing.assert_allclose(flat, there[:, 0], atol=8 * C * eps(M) * (1 + np.abs(M).max()))


@hs.composite
def on_simplex(draw, ones=True):
    """A problem in class coordinates with 1'H = 0, 1'e = 0; R 1 prop. to 1, or general."""
    batch, C, n = draw(hs.integers(1, 2)), draw(hs.integers(2, 4)), draw(hs.integers(1, 4))
    m = batch * C
    H = obs.project(draw(st.arrays((m, n))), C)
    e = obs.project(draw(st.arrays(m)), C)
    if ones:  # r I + contrasts
        c = obs.project(draw(st.arrays((m, 2))), C)
        R = draw(hs.floats(0.1, 2.0)) * np.eye(m) + c @ c.T
    else:
        R = draw(st.spd_matrices(m, cond=1e3))
    p = draw(st.variances(n, cond=1e3))
    theta = draw(st.arrays(n))
    return {"theta": theta, "p": p, "H": H, "e": e, "R": (R + R.T) / 2}, C


def reduced(a, C, R):
    """The update on the contrasts, its gain back in class coordinates."""
    Q = contrast_basis(C, R)
    R_c = simplex.to_contrast(Q, simplex.to_contrast(Q, R).T)
    H, e = simplex.to_contrast(Q, a["H"]), simplex.to_contrast(Q, a["e"])
    new = diagonal.update(a["theta"], a["p"], H, e, (R_c + R_c.T) / 2)
    return new, simplex.from_contrast(Q, new.K.T).T


@given(on_simplex())
def test_contrast_space_equals_class_coordinates(drawn):
    """While R is invertible and R 1 prop. to 1 the all-ones direction carries nothing.  [OBS-5]."""
    a, C = drawn
    plain = diagonal.update(**a)
    new, K = reduced(a, C, a["R"])
    sl = slack(a["H"], a["R"], a["p"])
    rel = 2 * sl.rel * eps(a["p"])
    # H and R are rounded once more in going to the contrasts, relatively to their largest entries
    extra = 8 * C * eps(a["p"]) * (sl.kappa + 1)
    close(new.p, plain.p, (rel + extra) * a["p"], "p")
    close(K, plain.K, ((rel + extra) * (sl.gains + eps(K)))[:, None], "K")
    sums = K.reshape(K.shape[0], -1, C).sum(axis=2)
    close(sums, np.zeros_like(sums), ((rel + extra) * (sl.gains + eps(K)))[:, None])


@given(on_simplex(ones=False))
def test_general_noise_is_conditioned_on_the_simplex(drawn):
    """R_cc - R_c1 R_11^-1 R_1c on the contrasts equals the plain update with R itself.  [OBS-8]."""
    a, C = drawn
    plain = diagonal.update(**a)
    conditioned = simplex.condition_on_simplex(a["R"], C)
    m = a["R"].shape[0]
    sl = slack(a["H"], a["R"], a["p"])
    cond = np.linalg.cond(a["R"])
    unit = 8 * m * C * eps(a["R"]) * norm(a["R"]) * cond
    ones = np.kron(np.eye(m // C), np.ones((C, 1)))
    close(conditioned @ ones, np.zeros_like(ones), unit)  # its all-ones part is 0
    # against the precision's contrast block: (Q R^-1 Q')^-1
    Q = np.kron(np.eye(m // C), np.asarray(contrast_basis(C, a["R"])))
    truth = np.linalg.inv(Q @ np.linalg.inv(a["R"]) @ Q.T)
    close(Q @ conditioned @ Q.T, truth, unit)
    new, K = reduced(a, C, conditioned)
    rel = 2 * sl.rel * eps(a["p"]) * (1 + cond)
    close(new.p, plain.p, rel * a["p"], "p")
    shift = rel * (sl.gains + eps(K))
    close(new.theta, plain.theta, shift * (1 + norm(a["e"])) + 4 * eps(K) * abs(a["theta"]))
    # the plain gain's part along the ones meets no innovation: compare on the contrasts
    close(K, obs.project(plain.K.T, C).T, shift[:, None], "K")


def test_an_r_that_couples_the_ones_is_refused():
    simplex.check_ones(np.diag([1.0, 1.0]), 2)
    with pytest.raises(InputError, match=r"R 1 proportional to 1.*condition_on_simplex"):
        simplex.check_ones(np.diag([1.0, 2.0]), 2)


def test_saturation():
    """J ~ 0 on a confidently wrong prediction: `softmax` stands still, `glm` moves.  [OBS-7]."""
    z, Z, y = np.array([[30.0, 0.0]]), np.array([[1.0], [-1.0]]), np.array([[0.0, 1.0]])
    theta, p = np.zeros(1), np.ones(1)
    soft = obs.observe("softmax", z, Z, y)
    still = diagonal.update(theta, p, soft.H, soft.e, np.eye(2))
    assert abs(still.theta).max() < 1e-12
    moved = diagonal.glm_update(theta, p, Z, soft.e, soft.yhat.reshape(1, 2))
    # J -> 0: K e -> p Z'e = -2
    np.testing.assert_allclose(moved.theta, [-2.0], rtol=1e-11)


@given(hs.data(), st.dtypes())
def test_one_hot(data, dtype):
    C = data.draw(hs.integers(1, 5))
    labels = np.array(data.draw(hs.lists(hs.integers(0, C - 1), min_size=1, max_size=4)))
    hot = obs.one_hot(readonly(labels), C, np.zeros(1, dtype))
    assert hot.dtype == dtype
    np.testing.assert_array_equal(hot, np.eye(C)[labels])


def test_soft_labels_are_distributions_too():
    """Label smoothing: rows that sum to 1."""
    z, Z = np.zeros((1, 2)), np.eye(2)
    seen = obs.observe("glm", z, Z, np.array([[0.25, 0.75]]))
    np.testing.assert_array_equal(seen.e, [-0.25, 0.25])


def test_exact_glm_reference_agrees_with_the_pseudo_inverse():
    """The rational oracle itself, against H p H' + J pseudo-inverted at a mild yhat."""
    rng = np.random.default_rng(3)
    yhat, p = np.array([[0.2, 0.5, 0.3]]), np.array([0.5, 1.0])
    Z, theta = rng.standard_normal((3, 2)), np.zeros(2)
    e = np.array([1.0, 0, 0]) - yhat[0]
    J = J_of(yhat)
    H = J @ Z
    K = (H * p).T @ np.linalg.pinv((H * p) @ H.T + J)
    truth = exact.glm(theta, p, Z, e, yhat)
    np.testing.assert_allclose(truth["theta"], K @ e, rtol=1e-12)
    np.testing.assert_allclose(truth["decoupled"], p * (1 - np.diagonal(K @ H)), rtol=1e-12)
