"""The application: its commands, one line each."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

import loko_ref
from loko_ref import interrupt
from loko_ref.cli.examples import epilog


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
from loko_ref.cli.commands.explain import explain_command  # noqa: E402
from loko_ref.cli.commands.init import init  # noqa: E402
from loko_ref.cli.commands.mutants import mutants  # noqa: E402
from loko_ref.cli.commands.operations import operations  # noqa: E402
from loko_ref.cli.commands.properties import properties  # noqa: E402
from loko_ref.cli.commands.protocol import protocol, schema  # noqa: E402
from loko_ref.cli.commands.runs.compare import app as compare  # noqa: E402
from loko_ref.cli.commands.runs.lte import lte  # noqa: E402
from loko_ref.cli.commands.runs.train import train  # noqa: E402
from loko_ref.cli.commands.vectors import app as vectors  # noqa: E402
from loko_ref.cli.commands.verify import verify  # noqa: E402
from loko_ref.cli.values import read_by_type  # noqa: E402

app.command("verify", epilog=epilog("verify"))(verify)
app.command("init", epilog=epilog("init"))(init)
app.command("operations", epilog=epilog("operations"))(operations)
app.command("case", epilog=epilog("case"))(case)
app.command("mutants", epilog=epilog("mutants"))(mutants)
app.command("properties", epilog=epilog("properties"))(properties)
app.command("protocol", epilog=epilog("protocol"))(protocol)
app.add_typer(vectors, name="vectors")
app.command("train", epilog=epilog("train"))(train)
app.add_typer(compare, name="compare")
app.command("explain", epilog=epilog("explain"))(explain_command)
app.command("lte", epilog=epilog("lte"))(lte)
app.command("certify", epilog=epilog("certify"))(certify)
app.command("bench", epilog=epilog("bench"))(bench)
app.command("schema", epilog=epilog("schema"))(schema)
read_by_type(app)
