"""Build the documentation as HTML, warnings as errors, without the network.

    python derivations/site/build.py OUT

The pages are the derivations, the texts beside this file, and what is made from the package:
catalogues, commands, reference, examples with their output. They are put together in a temporary
folder, which Sphinx reads. Needs the extra ``[docs]``.
"""

import argparse
import re
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
DERIVATIONS = HERE.parent

NEEDS = (
    *("sphinx", "myst_parser", "furo", "typer", "rich", "jinja2", "markdown_it", "docutils"),
    *("threadpoolctl", "sklearn", "matplotlib", "hypothesis"),
)
"""What is imported on the way, all of it of the extra ``[docs]``."""


def check_needs() -> None:
    """End with one line where the extra, or loko_ref itself, is not installed."""
    if find_spec("loko_ref") is None:
        print("build.py: needs loko_ref installed: pip install -e '.[docs]'", file=sys.stderr)
        raise SystemExit(2)
    from loko_ref.errors import MissingExtraError, extras

    try:
        for module in NEEDS:
            extras.load(module, "the documentation", within="docs")
    except MissingExtraError as error:
        print(f"build.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def texts(source: Path) -> None:
    """Copy the written pages."""
    from pages import lessons

    from loko_ref.files.derivations import LABEL

    heading = re.compile(rf"^### \[({LABEL})\]", re.MULTILINE)
    (source / "derivations").mkdir(parents=True)
    for file in sorted(DERIVATIONS.iterdir()):
        name = "index.md" if file.name == "README.md" else file.name
        if file.suffix == ".md":
            text = file.read_text(encoding="utf-8")
            text = heading.sub(lambda m: f"({m[1].lower()})=\n{m[0]}", text)
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
    import pages
    from sphinx.cmd.build import main

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
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run no example, and give the numbers of every fifth case",
    )
    given = parser.parse_args()
    check_needs()
    raise SystemExit(build(given.out, given.quick))
