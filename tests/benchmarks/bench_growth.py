"""How one step's cost grows with n, the trainables, and with T, the tokens, at fixed widths.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_growth.py --svg derivations/growth.svg

Post-norm encoders as in ``loko-ref bench tf_small`` (128 wide, 4 heads, ff 512, 10 outputs), LoRA
on q and v, float64, softmax, by the readable and by the fast route. Three ways to grow: the number
of blocks (1 to 16; r = 8, T = 64), the rank (4 to 128; 4 blocks, T = 64), T (32 to 1024; 4 blocks,
r = 8). Counted is the process's own processor time, so that other work on the machine matters
less; the best of some steps.

Fitted to the relative error, with no negative coefficient, are ``a + b n`` and ``a + b T + c T^2``;
``b / c`` is the T from which the scores, T x T a head, cost more than all that is linear in T.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import scipy.optimize

from loko_ref import loko
from loko_ref.fast import prepare
from loko_ref.network.architectures import encoder_spec
from loko_ref.network.model import init_model

BLOCKS = (1, 2, 4, 8, 16)
RANKS = (4, 8, 16, 32, 64, 128)
TOKENS = (32, 64, 128, 256, 512, 1024)
ROUTES = ("readable", "fast")
FITS = 0.15
"""A curve that is farther off at some point is not drawn, and no crossing is read from it."""

COLOURS = {"readable": "#d55e00", "fast": "#0072b2"}


def seconds(
    route: str, blocks: int, r: int, T: int, least: int, enough: float
) -> tuple[int, float]:
    """n, and the processor time of the best of at least `least` steps and `enough` seconds."""
    spec = encoder_spec(
        layers=blocks, width=128, heads=4, ff=512, outputs=10, lora={"r": r, "alpha": 2.0 * r}
    )
    rng = np.random.default_rng(0)
    model = init_model(rng, spec)
    config = loko.LokoConfig(model=model, observation="softmax", r0=0.3, p0=1e-3)
    state = loko.init(config)
    batch = loko.Batch(x=rng.standard_normal((1, T, 128)), y=np.array([3]))
    if route == "fast":
        stepper = prepare(config)
        step = lambda: stepper.step(state, batch)  # noqa: E731
    else:
        step = lambda: loko.step(state, batch, config)  # noqa: E731
    step()
    best, begun, taken = math.inf, time.process_time(), 0
    while taken < least or time.process_time() - begun < enough:
        start = time.process_time()
        step()
        best = min(best, time.process_time() - start)
        taken += 1
    return model.n, best


def fit(x: np.ndarray, y: np.ndarray, powers: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Coefficients >= 0 of the powers of x, and the largest relative error."""
    columns = np.stack([x**p / y for p in powers], axis=1)  # relative errors
    scale = columns.max(axis=0)
    found, _ = scipy.optimize.nnls(columns / scale, np.ones(len(x)))
    found = found / scale
    return found, float(np.abs(columns @ found - 1).max())


def measure(least: int, enough: float, longest: int) -> dict[str, dict[str, dict]]:
    """Both routes over the three axes, with the fits."""
    report: dict[str, dict[str, dict]] = {}
    tokens = [T for T in TOKENS if longest >= T]
    for route in ROUTES:
        report[route] = {}
        for axis, cases in (
            ("blocks", [(k, 8, 64) for k in BLOCKS]),
            ("rank", [(4, r, 64) for r in RANKS]),
            ("T", [(4, 8, T) for T in tokens]),
        ):
            found = [seconds(route, *case, least, enough) for case in cases]
            n, y = (np.array(column, float) for column in zip(*found, strict=True))
            x = np.array(tokens, float) if axis == "T" else n
            coefficients, off = fit(x, y, (0, 1, 2) if axis == "T" else (0, 1))
            report[route][axis] = {
                "x": [int(k) for k in x],
                "cpu_ms": [round(1e3 * t, 3) for t in y],
                "fit_ms": [float(f"{1e3 * c:.4g}") for c in coefficients],
                "fit_off": round(off, 3),
                "exponents": [round(float(e), 2) for e in np.diff(np.log(y)) / np.diff(np.log(x))],
            }
        _, b, c = report[route]["T"]["fit_ms"]
        fits = report[route]["T"]["fit_off"] <= FITS and c > 0
        report[route]["T"]["square_dominates_from"] = round(b / c) if fits else None
        print(json.dumps({"route": route, **report[route]}), flush=True)
    return report


def draw(report: dict[str, dict[str, dict]], path: Path) -> None:
    """Two panels, log by log: measured points and the fitted curves."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {"font.size": 10, "svg.hashsalt": "loko-ref", "svg.fonttype": "none"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(12, 4.2), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        labels = {
            "blocks": "n, by more blocks (r = 8, T = 64)",
            "rank": "n, by a larger rank (4 blocks, T = 64)",
            "T": "T, tokens (4 blocks, r = 8); dotted: the fit without T^2",
        }
        for axes, (axis, label) in zip(panels, labels.items(), strict=True):
            for route, both in report.items():
                some, colour = both[axis], COLOURS[route]
                axes.loglog(some["x"], some["cpu_ms"], "o", color=colour, label=route)
                if some["fit_off"] > FITS:
                    axes.loglog(some["x"], some["cpu_ms"], "--", color=colour, linewidth=0.6)
                    continue
                x = np.geomspace(some["x"][0], some["x"][-1], 200)
                terms = [c * x**p for p, c in enumerate(some["fit_ms"])]
                axes.loglog(x, sum(terms), "-", color=colour, linewidth=1)
                if axis == "T":
                    axes.loglog(x, terms[0] + terms[1], ":", color=colour, linewidth=1)
            axes.set_xlabel(label)
            axes.set_xticks(some["x"], [f"{k:,}" for k in some["x"]])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("processor time of a step, ms")
        panels[0].legend()
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--least", type=int, default=3, help="steps a case")
    parser.add_argument("--seconds", type=float, default=1.0, help="a case")
    parser.add_argument("--longest", type=int, default=TOKENS[-1], help="largest T")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    report = measure(asked.least, asked.seconds, asked.longest)
    if asked.svg:
        draw(report, asked.svg)
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
