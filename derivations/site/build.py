"""Build the documentation as HTML, warnings as errors, without the network.

    python derivations/site/build.py OUT

The pages are the derivations, the texts beside this file, and what is made from the package:
catalogues, commands, reference, examples with their output. They are put together in a temporary
folder, which Sphinx reads. Needs the extra ``[docs]``.
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path

import pages
from pages import lessons
from sphinx.cmd.build import main

from loko_ref.files.derivations import LABEL

HERE = Path(__file__).resolve().parent
DERIVATIONS = HERE.parent
HEADING = re.compile(rf"^### \[({LABEL})\]", re.MULTILINE)


def texts(source: Path) -> None:
    """Copy the written pages."""
    (source / "derivations").mkdir(parents=True)
    for file in sorted(DERIVATIONS.iterdir()):
        name = "index.md" if file.name == "README.md" else file.name
        if file.suffix == ".md":
            text = file.read_text(encoding="utf-8")
            text = HEADING.sub(lambda m: f"({m[1].lower()})=\n{m[0]}", text)
            text = re.sub(r"^(\$\$.+\$\$)$", r"\n\1\n", text, flags=re.MULTILINE)
            if name == "index.md":
                names = sorted(f.stem for f in DERIVATIONS.glob("*.md") if f.name != "README.md")
                text += "\n".join(["\n```{toctree}", ":hidden:", "", *names, "```\n"])
            (source / "derivations" / name).write_text(text, encoding="utf-8")
        elif file.is_file():
            shutil.copy(file, source / "derivations" / name)
    for file in HERE.glob("*.md"):
        text = lessons.performed(file.read_text(encoding="utf-8"))
        text = re.sub(r"\]\(\.\./(\w)", r"](derivations/\1", text)
        (source / file.name).write_text(text, encoding="utf-8")
    shutil.copy(DERIVATIONS.parent / "CHANGELOG.md", source / "changes.md")


def build(out: Path, quick: bool = False) -> int:
    """Put the pages together and build them; return Sphinx's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        texts(source)
        pages.write(source, quick)
        shutil.copy(HERE / "conf.py", source)
        shutil.copytree(HERE / "static", source / "static")
        options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(Path(folder) / "doctrees")]
        return main([*options, str(source), str(out)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the pages")
    parser.add_argument("--quick", action="store_true", help="run no example")
    given = parser.parse_args()
    raise SystemExit(build(given.out, given.quick))
