"""The architecture: layers of packages, one module that knows the array library, no extra imports.

A package imports only packages on floors below its own. A new package is entered here, on the
lowest floor that the test accepts.
"""

import ast
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import loko_ref

ROOT = Path(loko_ref.__file__).parent

FLOORS = [
    {"errors", "interrupt"},
    {"arrays"},
    {"checks", "files"},
    {"network", "kalman", "optimizers"},
    {"loko"},
    {"lte", "fast", "textbook", "interop"},
    {"experiments", "conformance"},
    {"explain", "strategies"},
    {"properties"},
    {"cli"},
    {"__main__"},
]
# The same within the largest package: its parts, and the modules that join them.
PARTS = [
    {"oracle"},
    {"catalogue"},
    {"cases"},
    {"judge"},
    {"implementations", "mistakes"},
    {"teacher_forcing", "vectors"},
    {"engine"},
    {"recorded", "diagnose", "stated"},
    {"reports", "assessment", "recorded_runs"},
    {"user_inputs"},
    {"verification"},
    {"pytest_plugin"},
]
FLOOR = {package: k for k, packages in enumerate(FLOORS) for package in packages}
PART = {f"conformance.{part}": k for k, parts in enumerate(PARTS) for part in parts}
PART["conformance"] = len(PARTS)  # the package itself, which names what is public

# Packages of the core compute with the arrays that they are given and name no array library. A few
# of them use NumPy for types, and for random numbers drawn on the host before they are moved.
CORE = {"network", "kalman", "loko", "optimizers"}
TYPES = {"dtype", "floating", "integer", "ndarray", "random"}
HOST = {
    # the draw of A; weights before training
    "network": {"diag", "linalg", "ones", "sign", "zeros"},
    "loko": {"empty"},  # one p0 per site, filled on the host
}


SOURCES = sorted(ROOT.rglob("*.py"))


def dotted(file):
    return ".".join(file.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules():
    """(dotted name, package, syntax tree) of every module."""
    found = []
    for file in SOURCES:
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        package = parts[1] if len(parts) > 1 else "__init__"
        found.append((dotted(file), package, ast.parse(file.read_text(encoding="utf-8"))))
    return found


@cache
def nodes(tree):
    """Every node of a tree, walked once for all tests."""
    return list(ast.walk(tree))


def imports(name, tree):
    """Absolute names of every module that a tree imports, inside functions too."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            if node.module == "loko_ref":
                yield from (f"loko_ref.{alias.name}" for alias in node.names)
            else:
                yield node.module


def test_imports_point_down():
    for name, package, tree in modules():
        if package == "__init__":
            continue
        assert package in FLOOR, f"package '{package}' is on no floor: enter it in FLOORS"
        for target in imports(name, tree):
            if target.split(".")[0] != "loko_ref" or target in ("loko_ref", "loko_ref.__version__"):
                continue
            other = target.split(".")[1]
            assert other == package or FLOOR[other] < FLOOR[package], (
                f"{name} imports {target}, upwards"
            )
            here, there = part_of(name), part_of(target)
            if here != there and "conformance" == package == other:
                assert PART[there] < PART[here], f"{name} imports {target}, upwards"


def test_the_map_has_these_floors():
    """The map in the documentation and FLOORS are one table."""
    page = ROOT.parent / "derivations" / "site" / "internals.md"
    table = re.findall(r"^\| (\d+) \| (.*) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    printed = {
        int(floor): set(re.findall(r"`([a-z_]+)/?`", re.sub(r"\(.*?\)", "", packages)))
        for floor, packages in table
    }
    assert printed == {k + 1: packages for k, packages in enumerate(FLOORS[:-1])}


def part_of(name):
    return ".".join(name.split(".")[1:3])


def test_no_folder_is_full():
    """At most 19 packages and modules at the top, 12 files in a folder, 400 lines in a file."""
    assert len(set(FLOOR) - {"__main__"}) <= 19
    for folder in {file.parent for file in ROOT.rglob("*.py")}:
        files = [file for file in folder.iterdir() if file.is_file()]
        assert len(files) <= 12, f"{folder.relative_to(ROOT)}: {len(files)} files"
    for file in ROOT.rglob("*.py"):
        lines = file.read_text(encoding="utf-8").count("\n")
        assert lines <= 400, f"{file.relative_to(ROOT)}: {lines} lines"


def test_no_circle_within_a_package():
    """The modules of a package import one another without a circle."""
    parsed = list(modules())
    known = {name for name, _, _ in parsed}
    graph = defaultdict(set)
    for name, package, tree in parsed:
        for node in nodes(tree):
            if isinstance(node, ast.ImportFrom):
                inside = {f"{node.module}.{a.name}" for a in node.names} & known
                inside = inside or {node.module} & known
            elif isinstance(node, ast.Import):
                inside = {a.name for a in node.names} & known
            else:
                continue
            graph[name] |= {k for k in inside if k.startswith(f"loko_ref.{package}.")} - {name}
    done, path = set(), []

    def visit(name):
        assert name not in path, f"a circle: {' -> '.join([*path, name])}"
        if name in done:
            return
        path.append(name)
        for target in sorted(graph[name]):
            if not name.startswith(target + "."):  # a package may be imported by its own modules
                visit(target)
        path.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)


def test_the_core_names_no_array_library():
    for name, package, tree in modules():
        if package not in CORE:
            continue
        for target in imports(name, tree):
            root = target.split(".")[0]
            assert root not in ("scipy", "cupy", "cupyx", "flint", "torch", "jax"), (name, target)
            assert target.startswith("loko_ref") or root in (*sys.stdlib_module_names, "numpy"), (
                name,
                target,
            )
        aliases = {
            (alias.name, alias.asname)
            for node in nodes(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name.split(".")[0] == "numpy"
        }
        assert aliases <= {("numpy", "np")}, f"{name} hides numpy under another name: {aliases}"
        parts = {t for t in imports(name, tree) if t.startswith("numpy.")}
        assert parts <= {"numpy.typing", "numpy.linalg"}, f"{name} imports {parts}"
        used = {
            node.attr
            for node in nodes(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("np", "numpy")
        }
        assert used <= TYPES | HOST.get(package, set()), (
            f"{name} computes with numpy: {sorted(used)}"
        )


def test_no_package_uses_what_another_keeps_private():
    """`_name` of a module is read in its own package alone: an unchecked core has a public name."""
    for name, package, tree in modules():
        aliases = {}
        for node in nodes(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("loko_ref"):
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    aliases[alias.asname or alias.name] = full
                    private = alias.name.startswith("_") and not alias.name.startswith("__")
                    assert not private or full.split(".")[1] == package, f"{name} imports {full}"
        for node in nodes(tree):
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
                continue
            source = aliases.get(node.value.id, "")
            if node.attr.startswith("_") and not node.attr.startswith("__") and source:
                assert source.split(".")[1] == package, f"{name} uses {source}.{node.attr}"


def test_the_seam_and_the_checks():
    """arrays/seam.py is the only module that names CuPy; errors and checks compute nothing."""
    for name, _, tree in modules():
        constants = {n.value for n in nodes(tree) if isinstance(n, ast.Constant)}
        named = {t.split(".")[0] for t in imports(name, tree)}
        if not name.startswith("loko_ref.arrays"):
            assert not named & {"cupy", "cupyx"}, name
            assert not constants & {"cupyx", "cupyx.scipy.linalg"}, name
        if name == "loko_ref.checks.values":
            assert "numpy" not in named, name
        if name != "loko_ref.lte.mpi":
            assert "mpi4py" not in named, f"{name} imports mpi4py"


# The modules that open files, and parse untrusted JSON. Others open only files that no user names.
FILES = {
    "loko_ref.files.strict_json",
    "loko_ref.files.reading",
    "loko_ref.files.writing",
    "loko_ref.files.containers.npz",
}
NOT_NAMED = {
    "loko_ref.experiments.data.bundled": {"loadtxt"},  # scikit-learn's own files
    "loko_ref.fast.bench": {"read_text", "write_text"},  # /proc
    "loko_ref.cli": {"open"},  # /dev/null
    "loko_ref.conformance.implementations.child": {"read_bytes"},  # /proc
    "loko_ref.files.derivations": {"read_text"},  # the project's own
    "loko_ref.explain.label_matrix": {"read_text"},  # the package's own sources
    "loko_ref.explain.walk.page": {"read_text"},  # the package's own template
    "loko_ref.cli.scaffolds": {"read_text"},
    "loko_ref.conformance.implementations.protocol": {
        "loads",
        "open",
    },  # messages; a harness's file, no link
    "loko_ref.files.documents": {"loads", "read_text"},  # the package's own schemas
    "loko_ref.files.pages": {"read_text"},  # the package's own styles, scripts and templates
    "loko_ref.conformance.implementations.supervisor": {"open"},  # /proc
    "loko_ref.interop.patterns": {"loads"},  # what its own process answers
    "loko_ref.interrupt": {"open"},  # /proc
    "loko_ref.lte.mpi": {"loads"},  # what its own ranks sent
    "loko_ref.lte.watch": {"open", "read_bytes", "read_text"},  # /proc, and its own lock files
}
OPENING = {
    "open", "open_code", "fdopen", "read_bytes", "read_text", "write_bytes", "write_text",
    "fromfile", "tofile", "loadtxt", "savetxt", "genfromtxt", "memmap", "savez",
    "savez_compressed", "ZipFile", "GzipFile", "TarFile", "mkstemp", "NamedTemporaryFile",
    "save_file", "load_file", "safe_open", "from_file", "FileIO", "load", "loads", "dump", "save",
    "replace", "rename",
}  # fmt: skip
# `load`, `save`, `replace` are names of many things: of these they open files or parse JSON
MODULES = {"load": {"np", "json", "pickle"}, "loads": {"json", "pickle"}, "dump": {"json"},
           "save": {"np"}, "replace": {"os"}, "rename": {"os"}}  # fmt: skip


def opening(tree):
    """Names of the calls in a tree that open a file, or parse what is in one."""
    for node in nodes(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "open":
            yield "open", node.lineno
        elif isinstance(node.func, ast.Attribute) and node.func.attr in OPENING:
            name, of = node.func.attr, node.func.value
            module = of.id if isinstance(of, ast.Name) else None
            if name in MODULES and module not in MODULES[name]:
                continue
            if module not in ("reading", "storage", "writing"):
                yield name, node.lineno


def test_files_are_opened_in_one_place():
    """Files named by a user are read by `reading` (bounded, no device) and written by `writing`."""
    used = defaultdict(set)
    for name, _, tree in modules():
        if name in FILES:
            continue
        for call, line in opening(tree):
            allowed = NOT_NAMED.get(name, set())
            assert call in allowed, (
                f"{name}, line {line}: {call}; use loko_ref.files.reading or writing"
            )
            used[name].add(call)
    assert {name: used[name] for name in NOT_NAMED} == NOT_NAMED, "an exception without its use"
    for line in ("open('x')", "p.read_text()", "np.load(f)", "gzip.open(f)", "json.loads(t)"):
        assert list(opening(ast.parse(line))), line
    for line in ("storage.load(f)", "text.replace('a', 'b')", "writing.write_bytes(p, b)"):
        assert not list(opening(ast.parse(line))), line


def fresh(code):
    """Top-level packages loaded by `code` in a clean interpreter, outside the standard library."""
    report = (
        f"import sys\n{code}\nimport json\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", report], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    return {m for m in loaded - set(sys.stdlib_module_names) if not m.startswith("_")}


HEAVY = {
    "cupy", "flint", "hypothesis", "jax", "matplotlib", "mpi4py", "peft", "pytest", "rich",
    "safetensors", "sklearn", "torch", "transformers", "typer",
}  # fmt: skip


def test_importing_the_package_loads_numpy_and_scipy_alone():
    before = fresh("")
    assert fresh("import loko_ref") - before == {"loko_ref"}
    loaded = fresh("from loko_ref import *") - before
    assert {"loko_ref", "numpy", "scipy"} <= loaded
    loaded -= {"charset_normalizer"}  # NumPy loads it for f2py, where it is installed
    assert loaded - {"cython_runtime", "loko_ref", "numpy", "scipy"} == set()


@pytest.mark.parametrize(
    "package", ["loko_ref.lte", "loko_ref.conformance", "loko_ref.experiments.data.bundled"]
)
def test_importing_a_package_loads_no_extra(package):
    assert not fresh(f"import {package}") & HEAVY


PUBLIC = [name for name in map(dotted, SOURCES) if "__main__" not in name and ".cli" not in name]


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_complete_and_sorted(name):
    """A package says what of its modules is public; a module, by names without an underscore.

    Where there is an `__all__`, it is sorted as ruff sorts it.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name}: {error}")
    if not hasattr(module, "__all__"):
        public = [k for k in vars(module) if not k.startswith("_")]
        own = [k for k in public if hasattr(vars(module)[k], "__module__")]
        assert not own or not hasattr(module, "__path__"), f"{name} has no __all__: {own}"
        return
    names = list(module.__all__)
    assert len(set(names)) == len(names)
    missing = [n for n in names if not hasattr(module, n)]
    assert not missing
    constants = sorted(n for n in names if n.isupper())
    classes = sorted(n for n in names if n[0].isupper() and not n.isupper())
    others = sorted(n for n in names if n not in (*constants, *classes))
    assert names == constants + classes + others


def test_every_module_opens_with_its_purpose():
    for name, _, tree in modules():
        assert ast.get_docstring(tree), f"{name} has no docstring"


def test_every_module_imports():
    """Every module imports, or raises MissingExtraError with the extra that it needs."""
    for info in pkgutil.walk_packages(loko_ref.__path__, "loko_ref."):
        if info.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(info.name)
        except loko_ref.errors.MissingExtraError:
            continue
