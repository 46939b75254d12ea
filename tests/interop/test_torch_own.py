"""A stranger's LoRA layer and network in torch, through `from_torch`: right, or named."""

import numpy as np
import pytest

from loko_ref.conformance.cases.registry import select
from loko_ref.conformance.diagnose.naming import name_mistakes
from loko_ref.conformance.engine import run
from loko_ref.conformance.implementations.frameworks import from_torch
from loko_ref.conformance.implementations.python import hold
from loko_ref.errors import InputError

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'interop')")
nn = torch.nn


class PeftLike(nn.Module):
    """The frozen linear inside, the factors as linears."""

    scale = staticmethod(lambda alpha, r: alpha / r)

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, r, bias=False)
        self.lora_B = nn.Linear(r, base.out_features, bias=False)
        self.scaling = self.scale(alpha, r)

    def forward(self, x):
        return self.base_layer(x) + self.scaling * self.lora_B(self.lora_A(x))


class ScaledByAlpha(PeftLike):
    scale = staticmethod(lambda alpha, r: alpha)


class Transposed(nn.Linear):
    """A linear itself; factors for x @ A @ B."""

    def __init__(self, base, r, alpha):
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.requires_grad_(False)
        self.down = nn.Parameter(torch.zeros(base.in_features, r))
        self.up = nn.Parameter(torch.zeros(r, base.out_features))
        self.scaling = alpha / r

    def forward(self, x):
        return super().forward(x) + (x @ self.down @ self.up) * self.scaling


def layer(kind):
    def build(one):
        base = nn.Linear(one["in"], one["out"], bias=one["bias"])
        return kind(base, one["lora"]["r"], one["lora"]["alpha"])

    return build


PEFT = {"W": "base_layer.weight", "b": "base_layer.bias"}
PEFT |= {"A": "lora_A.weight", "B": "lora_B.weight"}
TURNED = {"W": "weight", "b": "bias", "A": "down.T", "B": "up.T"}


class Net(nn.Module):
    """A stranger's whole network: an MLP with their layer."""

    def __init__(self, spec):
        super().__init__()
        if any(one["kind"] not in ("linear", "relu") for one in spec):
            raise NotImplementedError("an MLP with ReLU")
        self.body = nn.ModuleDict(
            {one["name"]: layer(PeftLike)(one) for one in spec if one["kind"] == "linear"}
        )

    def forward(self, x):
        for k, one in enumerate(self.body.values()):
            x = one(torch.relu(x) if k else x)
        return x


def checks(implementation, *globs):
    held = hold(implementation, "mine")
    return run(held, [case for glob in globs for case in select(glob)]), held


SOME = ("lora.delta/*", "model.forward/relu/*", "model.jacobian/block-lora-q")


@pytest.mark.parametrize(
    ("kind", "names"), [(PeftLike, PEFT), (Transposed, TURNED)], ids=["peft", "transposed"]
)
def test_a_right_layer_passes(kind, names):
    found, held = checks(from_torch(lora=layer(kind), names=names), *SOME)
    assert {c.status for c in found} == {"passed"}
    assert {c.case.operation.name for c in found} == {g.split("/")[0] for g in SOME}
    (note,) = held.notes
    assert "covered is your LoRA layer" in note
    assert "not covered: merging" in note


def test_a_wrong_scale_is_named():
    found, _ = checks(from_torch(lora=layer(ScaledByAlpha), names=PEFT), *SOME)
    wrong = [c for c in found if c.status == "failed"]
    assert {c.case.operation.name for c in wrong} == {g.split("/")[0] for g in SOME}
    assert {c.divergence.quantity for c in wrong} == {"delta", "z"}
    named = {fits[0].mutant.id for fits in name_mistakes(wrong).values()}
    assert named == {"SCALE-ALPHA"}


def optimizer_of(module, options):
    """Gradient-free: takes the covariance, leaves theta; enough to see where the state is."""
    own = [one for one in module.parameters() if one.requires_grad]
    return torch.optim.SGD(own, lr=0.0)


def test_the_state_goes_to_the_user_s_parameters():
    """Of a transposed factor too: p comes back as it was put."""

    def step(optimizer, module, x, y):
        for one in optimizer.param_groups[0]["params"]:
            assert optimizer.state[one]["p"].shape == one.shape

    taken = from_torch(optimizer_of, step, lora=layer(Transposed), names=TURNED)
    (case,) = select("loko.step/softmax/float64")
    out = taken["loko.step"](**case.inputs(), **case.options)
    for name in ("theta", "p"):
        np.testing.assert_array_equal(out[name], case.inputs()[name])


def test_a_step_that_moves_a_frozen_weight_is_a_finding():
    def step(optimizer, module, x, y):
        with torch.no_grad():
            next(iter(dict(module.named_parameters())[k] for k in ["0.base_layer.weight"])).add_(1)

    taken = from_torch(optimizer_of, step, lora=layer(PeftLike), names=PEFT)
    (case,) = select("loko.step/softmax/float64")
    with pytest.raises(ValueError, match=r"the step has changed 0\.W, which is frozen"):
        taken["loko.step"](**case.inputs(), **case.options)


def test_a_whole_network_of_the_user_s():
    names = {key: f"body.{{}}.{path}" for key, path in PEFT.items()}
    found, held = checks(from_torch(module=Net, names=names), "model.jacobian", "lora.delta")
    passed = {c.case.id for c in found if c.status == "passed"}
    assert {c.status for c in found} == {"passed", "unsupported"}
    assert {"model.jacobian/relu/float64", "lora.delta/tiny/float32"} <= passed
    assert "covered is your own network" in held.notes[0]


@pytest.mark.parametrize(
    ("kind", "names", "match"),
    [
        (PeftLike, PEFT | {"A": "lora_a.weight"}, r"names\['A'\].*the closest is 'lora_A.weight'"),
        (Transposed, TURNED | {"A": "down"}, r"of shape \(3, 1\).*write 'down\.T'"),
    ],
    ids=["missing", "turned"],
)
def test_names_that_do_not_fit_are_explained_at_once(kind, names, match):
    with pytest.raises(InputError, match=match):
        from_torch(lora=layer(kind), names=names)


def test_a_layer_that_is_not_filled_in_is_declined():
    def empty(one):
        raise NotImplementedError("not filled in")

    found, _ = checks(from_torch(lora=empty, names=PEFT), "lora.delta")
    assert {c.status for c in found} == {"unsupported"}


@pytest.mark.parametrize(
    "given",
    [{}, {"make": optimizer_of}, {"lora": layer(PeftLike), "module": Net}],
    ids=["nothing", "half", "both"],
)
def test_what_cannot_be_tested_is_refused(given):
    with pytest.raises(InputError, match="from_torch"):
        from_torch(**given)
