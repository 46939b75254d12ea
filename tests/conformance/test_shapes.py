"""Outputs of another shape: the mistake behind it is named, or the order of the numbers said."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.engine import judge, run
from loko_ref.conformance.implementations.python import Implementation, load
from loko_ref.conformance.judge.answer import check
from loko_ref.conformance.judge.tolerance import expected
from loko_ref.conformance.reports import document, page
from loko_ref.conformance.reports.terminal import print_report

EINSUM = load(str(Path(__file__).with_name("einsum_loko.py")))
RIGHT = EINSUM.functions
CODE = RIGHT["loko.step"].__globals__  # the functions that another filter is put together from
KINDS = ("gaussian", "softmax", "logits", "glm")
BATCHES = (
    *(f"observation.{kind}/stacked" for kind in KINDS),
    *(f"loko.step/glm-{rest}" for rest in ("stacked", "bias", "dense", "variational")),
    *(f"loko.step/{name}" for name in ("gaussian-stacked", "softmax-stacked", "logits-centred")),
    *(f"loko.run/{name}" for name in ("gaussian", "glm-stacked")),
)


class Averaging:
    """A filter that makes one sample of a batch, in code of its own."""

    def __init__(self, *, repeat=False, first=False, divided=False, yhat=False, sample=""):
        self.repeat, self.first, self.divided = repeat, first, divided
        self.yhat, self.sample = yhat, sample

    def mean(self, a, batch):
        mean = sum(np.split(a, batch)) / a.dtype.type(batch)
        return np.concatenate([mean] * batch) if self.repeat else mean

    def noise(self, R, C, first=False):
        if self.repeat or len(R) == C:
            return R
        of_samples = [R[k : k + C, k : k + C] for k in range(0, len(R), C)]
        mean = sum(of_samples[1:], start=of_samples[0]) / R.dtype.type(len(of_samples))
        if self.divided:
            mean = mean / R.dtype.type(len(of_samples))
        return of_samples[0] if first else mean

    def observe(self, kind, z, Z, y, center):
        batch, C = y.shape
        if self.sample == "logits":
            z, Z, y = (self.mean(a, batch) for a in (z, Z, y))
        yhat, e, H = CODE["observe"](kind, z, Z, y, center)
        R = self.noise(CODE["blocks"](yhat), C) if kind == "glm" else None
        if self.sample == "logits":
            return yhat[0], e, H, R
        e, H = self.mean(e, batch), self.mean(H, batch)
        if not self.yhat:
            return yhat.ravel(), e, H, R
        yhat = self.mean(yhat, batch)
        if self.sample and kind in ("softmax", "glm"):
            J = CODE["blocks"](yhat)
            return yhat[0], e, J @ self.mean(Z, batch), J if kind == "glm" else None
        return yhat[0], e, H, R

    def observation(self, kind):
        def function(*, z, Z, y, center=False):
            out = dict(
                zip(("yhat", "e", "H", "R"), self.observe(kind, z, Z, y, center), strict=True)
            )
            return {name: a for name, a in out.items() if a is not None}

        return function

    def step(self, *, x, y, theta, weights, spec, p=None, P=None, R=None, **o):
        if o["timing"] == "after":
            raise NotImplementedError
        kind, big, (batch, C) = o["observation"], "p" if P is None else "P", y.shape
        given = {"p": p} if P is None else {"P": P}
        if batch == 1:
            given |= {} if R is None else {"R": R}
            return RIGHT["loko.step"](
                x=x, y=y, theta=theta, weights=weights, spec=spec, **given, **o
            )
        prior = given[big] / o["lam"]
        prior = prior + (o["q"] if P is None else o["q"] * np.eye(len(P), dtype=P.dtype))
        z, Z = CODE["network"](spec, weights | CODE["split"](spec, theta), x)
        yhat, e, H, J = self.observe(kind, z, Z, y, o["center"])
        HpH = H @ CODE["wide"](prior) @ H.T
        if kind == "glm":
            used = J
        else:
            cut = self.noise(R, C, self.first)
            used = RIGHT["noise.update"](R=cut, e=e, HpH=HpH, noise=o["noise"], beta=o["beta"])["R"]
        Q = np.eye(len(e), dtype=z.dtype)
        if kind in ("softmax", "glm"):
            Q = CODE["contrasts"](len(e) // C, C, z.dtype)
        _, Kc = CODE["gain"](prior, Q @ H, Q @ used @ Q.T)
        if P is None and o["diagonal"] == "variational":
            new = CODE["variational"](prior, Q @ H, Q @ used @ Q.T)
        else:
            new = CODE["posterior"](prior, Kc, Q @ H, Q @ used @ Q.T)
        out = {f"{big}_pred": prior, "z": z, "Z": Z, "yhat": yhat, "e": e, "H": H}
        out |= {"R_used": used, "S": HpH + used, "K": Kc @ Q, "theta": theta + Kc @ (Q @ e)}
        return out | {big: new} | ({} if kind == "glm" else {"R": used})

    def run(self, *, x, y, theta, p=None, P=None, R=None, **rest):
        rows = []
        for xs, ys in zip(x, y, strict=True):
            rows.append(self.step(x=xs, y=ys, theta=theta, p=p, P=P, R=R, **rest))
            theta, p, P, R = (rows[-1].get(k) for k in ("theta", "p", "P", "R"))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def functions(self):
        made = {f"observation.{kind}": self.observation(kind) for kind in KINDS}
        return made | {"loko.step": self.step, "loko.run": self.run}


AVERAGED = {
    "BATCH-AVERAGED": {},
    "BATCH-AVERAGED-R-FIRST": {"first": True},
    "BATCH-AVERAGED-R-MEAN": {"divided": True},
    "BATCH-AVERAGED-YHAT": {"yhat": True},
    "BATCH-AVERAGED-J": {"yhat": True, "sample": "yhat"},
    "BATCH-AVERAGED-LOGITS": {"sample": "logits"},
    "BATCH-REPEATED": {"repeat": True},
}


def leading(checks):
    return Counter(fits[0].mutant.id if fits else None for fits in name_mistakes(checks).values())


@pytest.mark.sampled(0.2)
@pytest.mark.parametrize("key", AVERAGED)
def test_a_batch_averaged_in_other_code_is_named(key):
    target = Implementation(target=key, functions=Averaging(**AVERAGED[key]).functions())
    checks = run(target, [c for name in BATCHES for c in select(f"{name}/*")])
    assert leading(checks) == {key: 24}
    assert {c.status for c in checks if "variational" in c.case.id} == {"passed"}  # of one sample
    shaped = [c for c in checks if c.finding is not None]
    assert len(shaped) == (0 if key == "BATCH-REPEATED" else 20)  # a run is off in z before


def test_it_is_named_where_theta_and_p_alone_come_back():
    step = Averaging().step

    def update(**keywords):
        out = step(**keywords)
        return {name: out[name] for name in ("theta", "p", "P") if name in out}

    target = Implementation(target="few", functions={"loko.step": update})
    names = [name for name in BATCHES if name.startswith("loko.step")]
    assert leading(run(target, [c for n in names for c in select(f"{n}/*")])) == {
        "BATCH-AVERAGED": 12
    }


def test_another_shape_of_other_numbers_has_no_name():
    """As an average has the shapes of, but with one number off; and shapes that no mistake has."""
    step = Averaging().step

    def off(**keywords):
        out = step(**keywords)
        out["S"] = out["S"] * np.asarray(1.001, out["S"].dtype)
        return out

    def cut(**keywords):
        out = RIGHT["loko.step"](**keywords)
        return out | {"K": out["K"][:, :-1]}

    for function in (off, cut):
        target = Implementation(target="off", functions={"loko.step": function})
        checks = run(target, select("loko.step/glm-stacked/*"))
        assert [c.finding.kind for c in checks] == ["shape", "shape"]
        assert leading(checks) == {None: 2}


def test_the_report_names_it():
    target = Implementation(target="mine", functions={"loko.step": Averaging().step})
    checks = run(target, select("loko.step/glm-stacked/float64"))
    named = name_mistakes(checks)
    (one,) = document.as_json("mine", checks, (), named)["checks"]
    assert one["finding"] == {"kind": "shape", "message": "e has shape (3,), not (9,)"}
    assert one["mistakes"][0]["name"] == "samples averaged in place of stacked"
    text = io.StringIO()
    print_report(Console(file=text, width=200), "mine", checks, (), named)
    assert "it reproduces 1 of 1 wrong results" in text.getvalue()
    assert "No known mistake" not in text.getvalue()
    assert "BATCH-AVERAGED" in page.as_html("mine", checks, (), named)


def blocks(R, C):
    return np.stack([R[k : k + C, k : k + C] for k in range(0, len(R), C)])


# output, what is made of it for a batch of 3 samples, 3 classes, n = 34; what is said
ARRANGED = {
    "transposed": ("K", lambda K: K.T, "its transpose agrees with the expected K"),
    "not stacked": (
        "Z",
        lambda Z: Z.reshape(3, 3, -1),
        "reshaped to (9, 34) it agrees with the expected Z",
    ),
    "by class": (
        "Z",
        lambda Z: Z.reshape(3, 3, -1).swapaxes(0, 1),
        "with its axes in the order (1, 0, 2) and reshaped to (9, 34) it agrees with the expected "
        "Z",
    ),
    "a column": ("e", lambda e: e[:, None], "reshaped to (9,) it agrees with the expected e"),
    "dense": ("p", np.diag, "its diagonal agrees with the expected p"),
    "per sample": (
        "R_used",
        lambda R: blocks(R, 3),
        "as the blocks on a diagonal its samples agree with the expected R_used",
    ),
    "a factor": (
        "theta",
        lambda t: t.reshape(2, -1),
        "reshaped to (34,) it agrees with the expected theta",
    ),
}


@pytest.mark.parametrize("name", ARRANGED)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_right_numbers_in_another_order_are_said_to_be_right(name, dtype):
    quantity, made, said = ARRANGED[name]
    (case,) = select(f"loko.step/glm-stacked/{dtype}")
    right = {k: a.astype(dtype) for k, a in expected(case).items()}
    moved = made(right[quantity])
    answer = check(right | {quantity: moved}, case)
    shape = right[quantity].shape
    start = f"{quantity} has shape {moved.shape}, not {shape}; {said}"
    assert answer.finding.message == start
    assert answer.returned == {}  # there is no mistake to look for
    assert name_mistakes([judge(case, answer)]) == {}
    wrong = moved * np.asarray(1.001, dtype)
    answer = check(right | {quantity: wrong}, case)
    assert answer.finding.message == f"{quantity} has shape {moved.shape}, not {shape}"


def test_a_run_s_steps_are_kept_apart():
    (case,) = select("loko.run/glm-stacked/float64")
    right = dict(expected(case))
    answer = check(right | {"K": right["K"].swapaxes(1, 2)}, case)
    shape = right["K"].shape
    assert answer.finding.message == (
        f"K has shape {(shape[0], shape[2], shape[1])}, not {shape}; "
        "with its axes in the order (0, 2, 1) it agrees with the expected K"
    )
    answer = check(right | {"p": np.stack([np.diag(p) for p in right["p"]])}, case)
    assert answer.finding.message.endswith("; its diagonal agrees with the expected p")
