"""Scaffolds: each runs at once and declines everything; filled in it passes, or fails by name."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from command import loko_ref

from loko_ref.cli.scaffolds import LANGUAGES, STATED, scaffold
from loko_ref.conformance.catalogue.registry import OPERATIONS

PYTHON = ("numpy", "torch", "jax")
RIGHT = {
    "jax": (
        """    raise NotImplementedError("not filled in")
    # Z = jax""",
        """    if p is None:
        raise NotImplementedError("dense")
    return {"p_pred": p / options["lam"] + options["q"]}
    # Z = jax""",
    ),
    "numpy": (
        '    # return {"delta": ...}\n    raise NotImplementedError("not filled in")',
        '    return {"delta": np.asarray(alpha / A.shape[0], A.dtype) * (B @ A)}',
    ),
    "js": (
        "    // return { delta }",
        "    return { delta: scaled(alpha / A.shape[0], product(B, A)) }",
    ),
    "cpp": (
        '    // return {{"delta", delta}};',
        """    const Tensor<T>&A = in.at("A"), &B = in.at("B");
    T scale = T(options.at("alpha").number / A.shape[0]);
    Tensor<T> delta({B.shape[0], A.shape[1]});
    for (size_t o = 0; o < B.shape[0]; ++o)
      for (size_t k = 0; k < A.shape[0]; ++k)
        for (size_t i = 0; i < A.shape[1]; ++i) delta(o, i) += scale * B(o, k) * A(k, i);
    return {{"delta", delta}};""",
    ),
    "rust": (
        '            // return Ok(BTreeMap::from([("delta".into(), delta)]));',
        """            let (a, b) = (get(input, "A")?, get(input, "B")?);
            let scale = T::of(options.at("alpha")?.number()? / a.shape[0] as f64);
            let mut delta = Tensor::zeros(&[b.shape[0], a.shape[1]]);
            for o in 0..b.shape[0] {
                for k in 0..a.shape[0] {
                    for i in 0..a.shape[1] {
                        *delta.to(o, i) += scale * b.at(o, k) * a.at(k, i);
                    }
                }
            }
            return Ok(BTreeMap::from([("delta".into(), delta)]));""",
    ),
}
WRONG = dict.fromkeys(RIGHT, " / A.shape[0]") | {"rust": " / a.shape[0] as f64"}
WRONG["jax"] = ' / options["lam"]'


def verify(name, file, *more):
    """Build the file and verify it as the printed command does; the report."""
    if name in PYTHON:
        target = [file]
    elif name == "js":
        target = ["--cmd", f"node {shlex.quote(str(file))}"]
    else:
        program = file.with_suffix("")
        build = {"cpp": ["g++", "-std=c++17", "-O0"], "rust": ["rustc", "--edition", "2021"]}
        done = subprocess.run(
            [*build[name], file, "-o", program], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr, "a warning"
        target = ["--cmd", shlex.quote(str(program))]
    report = file.with_suffix(".json")
    done = loko_ref("verify", *target, "--json", report, *more)
    return done, json.loads(report.read_text())


def needs(name):
    if name in ("torch", "jax"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra 'interop')")
    tool = {"cpp": "g++", "rust": "rustc", "js": "node"}.get(name, sys.executable)
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")


FOREIGN = [pytest.param(name, marks=pytest.mark.larger) for name in ("js", "cpp", "rust")]


@pytest.mark.parametrize("name", [*PYTHON, *FOREIGN])
def test_a_scaffold_runs_and_declines_everything(name, tmp_path, monkeypatch):
    needs(name)
    monkeypatch.chdir(tmp_path)
    done = loko_ref("init", name)
    file = tmp_path / LANGUAGES[name].file
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote {file.name}: ")
    printed = done.stdout.splitlines()[1]
    assert re.fullmatch(r"  .*loko-ref verify .*my_\w+(\.py|\.js'|)", printed)
    found, report = verify(name, file, "--only", ONLY.get(name, "lora.delta"))
    assert found.returncode == 2, found.stdout + found.stderr
    assert "NOTHING RAN" in found.stdout
    if name in PYTHON:
        assert "nothing is filled in yet of what 'loko-ref init' wrote" in found.stdout
    assert {check["status"] for check in report["checks"]} == {"unsupported"}
    if name in RIGHT:
        comment, body = RIGHT[name]
        empty = file.read_text()
        assert empty.count(comment) == 1
        for text, code in ((body, 0), (body.replace(WRONG[name], ""), 1)):
            file.write_text(empty.replace(comment, text))
            found, report = verify(name, file, "--only", ONLY.get(name, "lora.delta"))
            assert found.returncode == code, found.stdout + found.stderr
        assert ("TIME-NO-FORGETTING" if name == "jax" else "SCALE-ALPHA") in found.stdout


ONLY = {"torch": "loko.step/softmax", "jax": "loko.step/glm-time"}


def test_nothing_is_overwritten(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("code")
    done = loko_ref("init", "numpy", file)
    assert done.returncode == 2
    assert "nothing is overwritten" in done.stderr
    assert file.read_text() == "code"
    (tmp_path / "link.py").symlink_to(tmp_path / "nowhere.py")
    assert loko_ref("init", "numpy", tmp_path / "link.py").returncode == 2
    assert not (tmp_path / "nowhere.py").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["torhc"], "the closest known name is 'torch'"),
        (["cpp", "mine.py"], ".cpp"),
        (["numpy", "mine.py", "--only", "kalmn"], "the closest known name is 'kalman'"),
        (["torch", "mine.py", "--only", "kalman"], "its adapter makes the operations"),
    ],
)
def test_what_cannot_be_written(words, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = loko_ref("init", *words)
    assert done.returncode == 2
    assert text in done.stderr
    assert not list(tmp_path.iterdir())


def test_only_chooses_the_operations():
    text = scaffold("numpy", "optimizer.*")
    assert re.findall(r"^def (\w+)", text, re.M) == [
        name.replace(".", "_") for name in OPERATIONS if name.startswith("optimizer.")
    ]
    assert "kalman" not in text.split("import numpy")[1]


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_scaffold_is_filled_from_the_catalogue(name):
    """No place is left open, lines fit, and of what later catalogues added there is nothing."""
    text = scaffold(name, None if LANGUAGES[name].operation is None else "*")
    assert not re.search(r"@[A-Z]+@", text)
    own = text if name in PYTHON else re.split(r"what you write|// -+ conv", text)[2]
    assert max(map(len, own.splitlines())) <= 100
    assert not re.search(r"train(=.factors|: one of| \})", own)
    if name in PYTHON:
        compile(text, name, "exec")
        options = {o.name: o.choices for o in OPERATIONS["loko.step"].options}
        named = re.findall(r'^    # "(\w+)": .*?,(?:  # one of (.*))?$', text, re.M)
        assert {key for key, _ in named} == set(STATED)
        assert all(tuple(c.split(", ")) == options[key] for key, c in named if c)


TORCH = [
    ("import torch\n", "import torch\nfrom layers import Mine\n"),
    (
        '    raise NotImplementedError("not filled in")\n    # base = ',
        "    base = ",
    ),
    ("    # return MyLoRALinear(base", "    return Mine(base"),
    ("    # lora=lora_layer,", "    lora=lora_layer,"),
    ("    # names=NAMES,", "    names=NAMES,"),
]
LAYER = """
import torch

class Mine(torch.nn.Module):
    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / r
        self.lora_A = torch.nn.Parameter(torch.zeros(r, base.in_features))
        self.lora_B = torch.nn.Parameter(torch.zeros(base.out_features, r))

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.lora_A.T @ self.lora_B.T)
"""


def test_the_torch_scaffold_with_a_layer_filled_in(tmp_path):
    """From `init torch` to green, and a wrong scale by its name."""
    needs("torch")
    file = tmp_path / "mine.py"
    assert loko_ref("init", "torch", file).returncode == 0
    text = file.read_text()
    for old, new in TORCH:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file.write_text(text)
    for name, code in (("layers", 0), ("wrong_layers", 1)):
        source = LAYER if code == 0 else LAYER.replace("alpha / r", "alpha")
        (tmp_path / f"{name}.py").write_text(source)
        file.write_text(text.replace("from layers", f"from {name}"))
        found, report = verify("torch", file, "--only", "lora.delta")
        assert found.returncode == code, found.stdout + found.stderr
        assert "covered is your LoRA layer" in " ".join(report["notes"])
    assert "SCALE-ALPHA" in found.stdout
