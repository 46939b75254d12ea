"""LoKO learns digits that were turned by 90 degrees, one image at a time.

    python examples/online_digits.py [STEPS]

What ``loko-ref train`` does, as an explicit loop: a base network trained on upright digits,
LoRA on every linear, then one Kalman step for each turned image, which is first predicted.
"""

import sys

from loko_ref import loko
from loko_ref.experiments.config import RunConfig
from loko_ref.experiments.stream import prepare, stream_batch
from loko_ref.network.model import forward, unpack


def main(steps: int = 600) -> float:
    task = prepare(RunConfig(optimizer="loko", data="digits", shift="rotate90", seed=0))
    config = loko.LokoConfig(model=task.model, observation="glm", p0=0.05)
    state = loko.init(config)
    right = 0
    for k in range(steps):
        batch = stream_batch(task, k)
        state, record = loko.step(state, batch, config)
        right += int(record.z.argmax() == batch.y[0])  # z is the output before the step
        if (k + 1) % 100 == 0:
            print(f"{k + 1:4d} images: {right / (k + 1):.3f} right before they were learned")
    z, _ = forward(unpack(task.model, state.theta), task.dataset.test.x)
    accuracy = float((z.argmax(axis=1) == task.dataset.test.y).mean())
    print(f"test accuracy on {len(z)} turned images never streamed: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
