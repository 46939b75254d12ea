"""The application: its commands, one line each."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

import loko_ref
from loko_ref import interrupt

__all__ = ["app"]


class _Commands(TyperGroup):
    """The commands; handles an interrupt of one before Typer does."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with interrupt.working():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    name="loko-ref",
    help="The correctness oracle for LoKO and LTE.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"loko-ref {loko_ref.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    """Verify implementations of LoKO and LTE, run both on real data, certify the oracle itself."""


from loko_ref.cli.commands.bench import bench  # noqa: E402
from loko_ref.cli.commands.case import case  # noqa: E402
from loko_ref.cli.commands.certify import certify  # noqa: E402
from loko_ref.cli.commands.compare import app as compare  # noqa: E402
from loko_ref.cli.commands.explain import explain_command  # noqa: E402
from loko_ref.cli.commands.lte import lte  # noqa: E402
from loko_ref.cli.commands.mutants import mutants  # noqa: E402
from loko_ref.cli.commands.operations import operations  # noqa: E402
from loko_ref.cli.commands.protocol import protocol, schema  # noqa: E402
from loko_ref.cli.commands.train import train  # noqa: E402
from loko_ref.cli.commands.vectors import app as vectors  # noqa: E402
from loko_ref.cli.commands.verify import verify  # noqa: E402
from loko_ref.cli.values import read_by_type  # noqa: E402

app.command("verify")(verify)
app.command("operations")(operations)
app.command("case")(case)
app.command("mutants")(mutants)
app.command("protocol")(protocol)
app.add_typer(vectors, name="vectors")
app.command("train")(train)
app.add_typer(compare, name="compare")
app.command("explain")(explain_command)
app.command("lte")(lte)
app.command("certify")(certify)
app.command("bench")(bench)
app.command("schema")(schema)
read_by_type(app)
