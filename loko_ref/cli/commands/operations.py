"""``loko-ref operations [NAME]``: what an implementation may offer, described for any language."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = ["operations"]


def _literal(value: Any) -> str:
    """Return a default as JSON has it (false, not False), a name in single quotes."""
    return repr(value) if isinstance(value, str) else json.dumps(value)


def _since(version: int) -> str:
    return f" (since operations/{version})" if version > 1 else ""


def operations(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One operation, or a glob such as 'observation.*' (or 'observation' alone); by "
            "default every one."
        ),
    ] = None,
) -> None:
    """Describe the operations: inputs, options, outputs, shapes, defaults, formulas."""
    from loko_ref.conformance.cases.globs import matcher, nothing_matches
    from loko_ref.conformance.catalogue.network_text import LAYERS, SPEC
    from loko_ref.conformance.catalogue.registry import CATALOGUE, OPERATIONS

    matches = matcher("operation", name)
    chosen = [o for key, o in OPERATIONS.items() if matches(key)]
    if not chosen:
        raise nothing_matches("operation", name, OPERATIONS, "loko-ref operations")
    if name is None:
        typer.echo(
            f"catalogue {CATALOGUE}\n\n"
            "IMPLEMENTATION maps an operation's name to a function. The function gets the\n"
            "inputs and options below as keywords and returns a mapping of output name to\n"
            "array, any subset of the outputs, in the inputs' dtype (float64 or float32). It\n"
            "leaves its inputs unchanged and raises NotImplementedError for what it does not\n"
            "offer (a kind of layer that it does not know, say). An option at its default is not\n"
            "passed to a function that has no parameter for it; nor is one of which the code has\n"
            "one value alone, stated once beside IMPLEMENTATION, OPTIONS = {'noise': 'fixed'}, or\n"
            "by 'loko-ref verify --option noise=fixed'. Options are JSON values; arithmetic\n"
            "between options alone (1 - beta, alpha / r) is float64's. A batch of `batch` samples\n"
            "with C outputs is stacked sample by sample: m = batch * C. Posteriors carry\n"
            "the plain names: the output theta is the posterior mean. ' transposes, ^+ is the\n"
            "pseudo-inverse, theta+ the posterior.\n"
            "Vectors multiply elementwise where both are (n,): p (1 - diag(K H)). Outputs that do\n"
            "not belong to the options are left out. Labels in brackets name the derivation.\n"
            "What came after operations/1 says so. It is passed to a parameter of its name, or\n"
            f"into **keywords where CATALOGUE = '{CATALOGUE}' stands beside IMPLEMENTATION.\n"
        )
    else:
        typer.echo("m = batch * C; 'loko-ref operations' without a name prints the conventions\n")
    for operation in chosen:
        typer.echo(f"{operation.name}: {operation.text}")
        typer.echo("  inputs")
        for i in operation.inputs:
            only = f" (given only with {i.optional})" if i.optional else ""
            typer.echo(f"    {i.name} {i.shape}: {i.text}{only}{_since(i.since)}")
        if operation.options:
            typer.echo("  options")
        for o in operation.options:
            choices = f" one of {', '.join(o.choices)};" if o.choices else ""
            default = "no default" if o.default is None else f"default {_literal(o.default)}"
            typer.echo(f"    {o.name}:{choices} {default}; {o.text}{_since(o.since)}")
        typer.echo("  outputs, in dataflow order")
        for q in operation.outputs:
            labels = " ".join(f"[{label}]" for label in q.labels)
            typer.echo(f"    {q.name} {q.shape}: {q.formula}  {labels}  from {', '.join(q.feeds)}")
        typer.echo("")
    if any(o.text == SPEC for operation in chosen for o in operation.options):
        typer.echo(LAYERS)
