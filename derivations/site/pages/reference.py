"""Modules whose names are public, from their docstrings."""

import importlib
import re
import types
from pathlib import Path

from pages.markdown import block, page, table, text, toctree

BESIDE = (
    "conformance.implementations.frameworks",
    "conformance.user_inputs",
    "experiments.config",
    "experiments.defaults",
    "experiments.stream",
    "properties",
    "strategies",
)
"""Public modules that no package's ``__all__`` lists."""


def public() -> dict[str, types.ModuleType]:
    """Return every module with public names: those that packages list, and those beside them."""
    found: dict[str, types.ModuleType] = {}

    def take(name: str) -> None:
        module = importlib.import_module(name)
        if name in found or not getattr(module, "__all__", None):
            return
        found[name] = module
        for key in module.__all__:
            value = getattr(module, key)
            if isinstance(value, types.ModuleType) and value.__name__.startswith(f"{name}."):
                take(value.__name__)

    take("loko_ref")
    for name in BESIDE:
        take(f"loko_ref.{name}")
    return dict(sorted(found.items()))


def _summary(module: types.ModuleType) -> str:
    words = (module.__doc__ or "").split("\n\n")[0]
    return text(re.sub(r"(?::\w+:)?`+~?(.+?)`+", r"\1", words))


def write(source: Path) -> None:
    """Write a page for each module."""
    folder = source / "api"
    modules = public()
    rows = [(f"[{text(name)}]({name}.md)", _summary(module)) for name, module in modules.items()]
    words = "What a name without an underscore promises is kept; what is not listed may change.\n"
    page(
        folder / "index.md",
        "Python",
        words,
        table(("module", "what it is"), rows),
        toctree(modules),
    )
    for name in modules:
        directive = f".. automodule:: {name}\n   :members:\n"
        if name == "loko_ref":  # the two stand in loko_ref.conformance
            directive += "   :exclude-members: Report, verify\n"
        page(folder / f"{name}.md", text(name), block(directive, "{eval-rst}"))
