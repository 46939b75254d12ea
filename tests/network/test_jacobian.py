"""Z = dz/dtheta of the whole stack: complex step, inner products, stacking [LAY-9, LAY-10]."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as hs
from support import close, eps, norm

from loko_ref import strategies as st
from loko_ref.network import model
from loko_ref.network.jacobian import gradient, jacobian
from loko_ref.network.model import Model, pack

h = 1e-30
STACKS = st.models(dtype="float64") | st.models(dtype="float64", train_all=True)


def along(net, x, v):
    """Dz/dtheta v by a complex step: the weights themselves become complex."""
    weights, at = dict(net.weights), 0
    for name in net.trainable:
        w = weights[name]
        weights[name] = w + 1j * h * v[at : at + w.size].reshape(w.shape)
        at += w.size
    stand_in = object.__new__(Model)  # past the checks, which know real weights only
    for key, value in (("spec", net.spec), ("weights", weights), ("trainable", net.trainable)):
        object.__setattr__(stand_in, key, value)
    return model.forward(stand_in, x.astype(complex))[0].imag / h


@given(STACKS, hs.data())
def test_by_complex_step(net, data):
    """Every column to 1e-12 of the largest entry of Z."""
    x = data.draw(st.batches(net)).x
    z, Z = jacobian(net, x)
    assert Z.shape == (z.size, net.n)
    columns = [along(net, x, e).reshape(-1) for e in np.eye(net.n)]
    truth = np.stack(columns, axis=1)
    close(Z, truth, 1e-12 * (np.abs(truth).max() + eps(Z)))


@given(st.models() | st.models(train_all=True), hs.data())
def test_gradient_is_one_cotangent_of_the_jacobian(net, data):
    """Gradient = Z' dz; and <dz, Z v> = <Z' dz, v>: the same sums in another order."""
    x = data.draw(st.batches(net)).x
    z, Z = jacobian(net, x)
    dz = data.draw(st.arrays(z.shape, dtype=str(net.dtype)))
    g = gradient(net, x, dz)
    assert g.dtype == Z.dtype == net.dtype
    depth = len(net.spec)
    # a product of `depth` layers; its size without cancellation bounds the rounding
    size = 1.0
    for name, W in net.weights.items():
        size *= (2 + norm(W)) if name.endswith((".W", ".A", ".B")) else 1 + norm(W) / 4
    unit = 16 * depth * Z.size * eps(Z) * size * (1 + norm(x)) * (1 + norm(dz))
    close(g, np.float64(Z).T @ np.float64(dz.reshape(-1)), unit)


@given(STACKS, hs.data())
def test_samples_are_stacked_and_do_not_meet(net, data):
    """Row b C + j is output j of sample b, as that sample gives it alone.  [LAY-10]."""
    x = data.draw(st.batches(net, size=3)).x
    z, Z = jacobian(net, x)
    C = z.shape[1]
    for b in range(3):
        z_b, Z_b = jacobian(net, x[[b]])
        np.testing.assert_allclose(z[[b]], z_b, rtol=1e-12, atol=1e-12)
        close(Z[b * C : (b + 1) * C], Z_b, 1e-12 * (1 + np.abs(Z).max()))


@given(st.models(dtype="float64"), hs.data())
def test_order_of_columns_is_the_packing_order(net, data):
    """Move one packed parameter: z moves along that column (central difference)."""
    x = data.draw(st.batches(net)).x
    _, Z = jacobian(net, x)
    j = data.draw(hs.integers(0, net.n - 1))
    v = np.zeros(net.n)
    v[j] = 1.0
    close(Z[:, j], along(net, x, v).reshape(-1), 1e-12 * (1 + np.abs(Z).max()))
    moved = model.unpack(net, pack(net) + v)
    names = {k for k in net.weights if not np.array_equal(net.weights[k], moved.weights[k])}
    assert len(names) == 1
