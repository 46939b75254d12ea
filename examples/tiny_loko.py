"""LoKO in one sitting: a network with LoRA, learned by a Kalman filter, in NumPy alone.

    python examples/tiny_loko.py

A layer is y = (W + (alpha / r) B A) x + b with W, b frozen. The filter's state is theta, all A and
B in one vector, with one variance p for each entry. Each sample is one observation: the network is
linearised at theta, and the innovation y - yhat moves theta as far as p and the noise R say. With
classes the observation is the one-hot label, and R its covariance, J = diag(yhat) - yhat yhat'.

Shapes: theta, p (n,); z, yhat, e (C,); Z, H (C, n); J, S (C, C); K (n, C).
"""

import itertools

import numpy as np


def make_network(rng, widths, r, alpha):
    """Random frozen weights, fresh LoRA factors (B = 0): one dict for each layer."""
    return [
        {"W": rng.standard_normal((o, i)) / np.sqrt(i), "b": np.zeros(o),
         "A": rng.standard_normal((r, i)) / np.sqrt(i), "B": np.zeros((o, r)), "scale": alpha / r}
        for i, o in itertools.pairwise(widths)
    ]  # fmt: skip


def pack(layers):
    """theta: A and B of each layer in turn, row by row."""
    return np.concatenate([layer[name].ravel() for layer in layers for name in "AB"])


def unpack(layers, theta):
    """The layers with the factors of theta."""
    new = []
    for layer in layers:
        layer = dict(layer)
        for name in "AB":
            size = layer[name].size
            layer[name], theta = theta[:size].reshape(layer[name].shape), theta[size:]
        new.append(layer)
    return new


def jacobian(layers, x):
    """The outputs z and Z = dz / dtheta; tanh between the layers."""
    inputs = []
    for k, layer in enumerate(layers):
        inputs.append(x)
        x = layer["W"] @ x + layer["b"] + layer["scale"] * (layer["B"] @ (layer["A"] @ x))
        x = np.tanh(x) if k < len(layers) - 1 else x
    back, parts = np.eye(len(x)), []  # dz / d(output of the layer)
    for k in reversed(range(len(layers))):
        layer, x_in = layers[k], inputs[k]
        dB = layer["scale"] * back[:, :, None] * (layer["A"] @ x_in)  # (C, o, r)
        dA = layer["scale"] * (back @ layer["B"])[:, :, None] * x_in  # (C, r, i)
        parts = [dA.reshape(len(x), -1), dB.reshape(len(x), -1), *parts]
        back = back @ (layer["W"] + layer["scale"] * layer["B"] @ layer["A"])
        back = back * (1 - x_in**2) if k else back  # tanh' = 1 - tanh^2
    return x, np.concatenate(parts, axis=1)


def step(layers, theta, p, x, label):
    """One sample: theta and p after it, and what was predicted before it."""
    z, Z = jacobian(unpack(layers, theta), x)
    yhat = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    e = np.eye(len(z))[label] - yhat  # the innovation
    J = np.diag(yhat) - np.outer(yhat, yhat)  # R: the covariance of a one-hot y
    H = J @ Z  # dyhat / dtheta
    # K = p H' S^-1, S = H p H' + J; S is singular, since classes sum to 1: J is cancelled, K =
    # p Z' (I + J G)^-1 with G = Z p Z'
    G = (Z * p) @ Z.T
    K = np.linalg.solve((np.eye(len(z)) + J @ G).T, Z * p).T
    return theta + K @ e, p * (1 - np.einsum("nc,cn->n", K, H)), yhat


def run(layers, xs, labels, p0=0.05):
    """Learn from each sample once; the share predicted right before it was learned."""
    theta = pack(layers)
    p, right = np.full(theta.size, p0), 0
    for x, label in zip(xs, labels, strict=True):
        theta, p, yhat = step(layers, theta, p, x, label)
        right += yhat.argmax() == label
    return theta, p, right / len(xs)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((300, 8))
    labels = (xs @ rng.standard_normal((8, 3))).argmax(axis=1)
    network = make_network(rng, [8, 16, 3], r=2, alpha=4.0)
    theta, p, share = run(network, xs, labels)
    print(f"{theta.size} parameters, 300 samples, each seen once: {share:.0%} predicted right")
    print(f"the variances went from 0.05 to between {p.min():.1e} and {p.max():.2f}")
