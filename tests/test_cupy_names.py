"""What the package asks of CuPy, by the sources alone, held against the wheel and the stand-in.

Collected from the syntax trees: names of a namespace (``xp.where``, ``namespace(x).stack``,
``import_module("cupyx").errstate``) with the arguments of each call, and methods and attributes of
arrays. The wheel needs no GPU for this; without it the tests skip.
"""

import ast
import importlib
import importlib.util
import inspect
from collections import defaultdict
from pathlib import Path

import device
import numpy as np
import pytest

import loko_ref

ROOT = Path(loko_ref.__file__).parent
CHECK = Path(__file__).parent / "gpu"  # what it asks of CuPy beside the package
CORE = {"network", "kalman", "loko", "optimizers", "lte", "arrays"}  # arrays are what they hold
NAMESPACES = {"xp": "cupy", "cp": "cupy", "cupy": "cupy"}


def module_of(node, names):
    """The module of CuPy that an expression stands for; None if it is another thing."""
    match node:
        case ast.Name(id):
            return names.get(id)
        case ast.Attribute(value, attr):
            base = module_of(value, names)
            return f"{base}.{attr}" if base else "cupy" if attr == "xp" else None
        case ast.Call(ast.Name("namespace")):
            return "cupy"
        case ast.Call(ast.Attribute(attr="import_module"), [ast.Constant(str() as name)]):
            return name if name.split(".")[0] in ("cupy", "cupyx") else None
    return None


def asked(tree):
    """("name", dotted name in CuPy, call or None) and ("array", method of an array, call)."""
    names = dict(NAMESPACES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found = module_of(node.value, NAMESPACES)
            if found:
                names[node.targets[0].id] = found
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        full = module_of(node, names)
        if full and "." in full:
            if id(node) not in inner:  # cupy.linalg.solve, not cupy.linalg as well
                yield "name", full, calls.get(id(node))
        elif (
            not full
            and callable(getattr(np.ndarray, node.attr, None))
            and id(node) in calls
            and ast.unparse(node.value) not in ("np", "math")
        ):
            yield "array", node.attr, calls[id(node)]


def uses():
    """(kind, name) -> its calls, as (arguments, keywords, whether starred), over all sources."""
    found = defaultdict(list)
    files = [p for p in ROOT.rglob("*.py") if p.parent.name != "balls"]  # they have their own
    for path in (*files, *CHECK.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "namespace(" not in text and not any(f"{name}." in text for name in NAMESPACES):
            continue
        core = path.relative_to(ROOT.parent).with_suffix("").parts[1] in CORE
        for kind, name, call in asked(ast.parse(text)):
            if kind == "array" and (not core or name.startswith("__")):
                continue
            calls = found[kind, name]
            if call is not None:
                starred = any(isinstance(a, ast.Starred) for a in call.args)
                keys = [k.arg for k in call.keywords if k.arg]
                starred |= len(keys) != len(call.keywords)
                calls.append((len(call.args), tuple(keys), starred, path.name, call.lineno))
    return found


USES = uses()


def resolve(name):
    """Find ``cupyx.scipy.special.erf``: attributes, and modules that are no attribute yet."""
    first, *rest = name.split(".")
    found, so_far = importlib.import_module(first), first
    for part in rest:
        so_far += f".{part}"
        if not hasattr(found, part) and inspect.ismodule(found) and hasattr(found, "__path__"):
            importlib.import_module(so_far)
        found = getattr(found, part)
    return found


def test_the_sources_ask_for_something():
    """The collector itself: known names, an alias, a method with a keyword, a nested module."""
    assert ("name", "cupy.where") in USES
    assert ("name", "cupy.linalg.cholesky") in USES
    assert ("name", "cupyx.scipy.linalg.solve_triangular") in USES
    assert ("name", "cupyx.scipy.special.erf") in USES
    assert ("name", "cupy.get_default_memory_pool") in USES
    assert any("keepdims" in call[1] for call in USES["array", "sum"])
    assert len(USES) > 60
    source = "xp = namespace(x)\nxp.max(a, initial=0)\nlib.xp.eye(3)\nb = namespace(x).stack([x])"
    found = {(kind, name) for kind, name, _ in asked(ast.parse(source))}
    assert found == {("name", "cupy.max"), ("name", "cupy.eye"), ("name", "cupy.stack")}


def test_a_namespace_has_one_of_these_names():
    """Else what it is asked for would not be collected."""
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "namespace(" in text or ".xp" in text else ():
            if isinstance(node, ast.Assign):
                pairs = [(node.targets[0], node.value)]
                if isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple):
                    pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
                for target, value in pairs:
                    if module_of(value, NAMESPACES) == "cupy":
                        assert isinstance(target, ast.Name), path
                        assert target.id in NAMESPACES, f"{path}: {target.id}"


def test_the_stand_in_has_it_all(monkeypatch):
    cupy = device.fake_cupy(monkeypatch)
    for kind, name in USES:
        if kind == "name":
            resolve(name)
        else:
            assert hasattr(cupy.ndarray, name) or name in HOST, name


HOST = {"view"}
"""Methods that are called where arrays are known to be NumPy's."""


# ------------------------------------------------------------------------------ the wheel


@pytest.fixture(scope="module")
def wheel():
    """CuPy as it is installed, with or without a GPU."""
    return pytest.importorskip("cupy", reason="needs CuPy: pip install cupy-cuda13x (or 12x)")


def parameters(name, function):
    """Its signature: Python's own, the first line of a Cython method's text, or a ufunc's."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        pass
    if hasattr(function, "nin"):
        each = [inspect.Parameter(f"x{k}", inspect.Parameter.POSITIONAL_ONLY)
                for k in range(function.nin)]  # fmt: skip
        more = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None)
                for key in ("out", "dtype", "casting")]  # fmt: skip
        return inspect.Signature(each + more)
    line = (function.__doc__ or "").split("\n")[0]
    inside = line[line.index("(") + 1 : line.rindex(")", 0, line.find("->") % (len(line) + 1))]
    words = [part.split("=")[0].split()[-1] + ("=None" if "=" in part else "")
             for part in inside.split(", ") if part]  # fmt: skip
    scope = {}
    exec(f"def f({', '.join(words)}): ...", scope)
    return inspect.signature(scope["f"])


def written(name):
    """A function of a module that does not import here, from its text: the arguments alone."""
    module, function = name.rsplit(".", 1)
    folder = Path(importlib.util.find_spec(module).origin).parent
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == function:
                scope = {}
                exec(f"def f({ast.unparse(node.args)}): ...", scope)
                return scope["f"]
    raise AttributeError(name)


@pytest.mark.parametrize("part", ["name", "array"])
def test_the_wheel_has_it_all_and_takes_these_arguments(part, wheel):
    for kind, name in USES:
        if kind != part or name in HOST:
            continue
        try:
            found = resolve(name) if kind == "name" else getattr(wheel.ndarray, name)
        except ImportError as error:  # the bare wheel brings no library of CUDA's
            found = written(name) if "libcu" in str(error) else pytest.fail(str(error))
        for count, keys, starred, file, line in USES[kind, name]:
            signature, own = parameters(name, found), [None] * (kind == "array")
            bind = signature.bind_partial if starred else signature.bind
            try:
                bind(*own, *[None] * (0 if starred else count), **dict.fromkeys(keys))
            except TypeError as error:
                pytest.fail(f"{file}, line {line}: {name}{signature}: {error}")


def test_the_stand_in_has_no_name_that_the_wheel_lacks(wheel):
    for name in (*device.FUNCTIONS, *device.CONSTANTS):
        assert hasattr(wheel, name), name
    assert not [name for name in device.LINALG if not hasattr(wheel.linalg, name)]
    assert not [name for name in device.METHODS if not hasattr(wheel.ndarray, name)]
    assert not [name for name in device.LACKING if hasattr(wheel, name)]
    assert not [name for name in device.LINALG_LACKING if hasattr(wheel.linalg, name)]
    public = {name for name in vars(device.build("d").array) if not name.startswith("_")}
    assert not [name for name in public if not hasattr(wheel.ndarray, name)]


def test_no_ufunc_of_the_wheel_knows_where(wheel):
    """What `parameters` says of a ufunc, by the wheel itself: keywords are read first."""
    with pytest.raises(TypeError, match="Wrong arguments"):
        wheel.multiply(1, 2, where=True)
