"""Notebooks as pages, their cells run while the site is built."""

import json
import re
import subprocess
import sys
from pathlib import Path

from pages.markdown import block, page, text

RUN = """
import ast, contextlib, io, json, sys

space, outputs = {"__name__": "__main__"}, []
for source in json.load(sys.stdin):
    tree, value = ast.parse(source), None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(tree, "cell", "exec"), space)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), space)
        if value is not None:
            print(value)
    outputs.append(out.getvalue())
json.dump(outputs, sys.stdout)
"""
"""A program that runs cells in one namespace; it returns what each prints, and its last value."""


def write(file: Path, target: Path, folder: str, needs: str) -> str:
    """Write a notebook's page; return its title."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    outputs = [""] * len(code)
    if not needs:
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            input=json.dumps(code),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{file.name}: {done.stderr}")
        outputs = json.loads(done.stdout)
    parts = [f"Not run for this page: needs {needs}.\n"] if needs else []
    title, printed = file.stem, iter(outputs)
    for cell in cells:
        words = "".join(cell["source"])
        if cell["cell_type"] == "code":
            parts.append(block(words, "python"))
            found = next(printed)
            parts += [block(found)] if found else []
            continue
        head = re.match(r"# (.*)\n*", words)
        if head:
            title, words = head[1], words[head.end() :]
        parts.append(re.sub(r"\]\((\w+\.\w+)\)", r"](\1.md)", words) + "\n")
    page(target / f"{file.name}.md", text(title), *parts)
    return f"Notebook: {title}"
