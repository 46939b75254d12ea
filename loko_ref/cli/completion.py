"""What a shell completes: names of operations and cases, options and their values, labels.

``loko-ref --install-completion`` sets it up for the shell that it is called from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import typer


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _operations(incomplete: str) -> list[str]:
    from loko_ref.conformance.catalogue.registry import OPERATIONS

    return _starting(OPERATIONS, incomplete)


def _cases(incomplete: str) -> list[str]:
    """Complete an operation first, then the cases behind its slash."""
    from loko_ref.conformance.cases.registry import all_cases

    if "/" not in incomplete:
        return [f"{name}/" for name in _operations(incomplete)]
    return _starting((case.id for case in all_cases()), incomplete)


def _chosen(incomplete: str) -> list[str]:
    """Complete ``NAME=VALUE``."""
    from loko_ref.conformance.catalogue.registry import OPERATIONS

    options = {o.name: o.choices for entry in OPERATIONS.values() for o in entry.options}
    pairs = [f"{name}={choice}" for name, choices in options.items() for choice in choices]
    if "=" in incomplete:
        return _starting(pairs, incomplete)
    return _starting(dict.fromkeys(f"{name}=" for name in options), incomplete)


def _explained(incomplete: str) -> list[str]:
    from loko_ref.explain.derivations import derivations

    return _starting(["tiny", "lte", "labels", *derivations()], incomplete)


def _languages(incomplete: str) -> list[str]:
    from loko_ref.cli.scaffolds import LANGUAGES

    return _starting(LANGUAGES, incomplete)


def _dtypes(incomplete: str) -> list[str]:
    return _starting(["float64", "float32"], incomplete)


def _names(ctx: typer.Context, incomplete: str) -> list[str]:
    from loko_ref.files.documents import WRITTEN_BY

    return (
        _starting(WRITTEN_BY, incomplete) if ctx.info_name == "schema" else _operations(incomplete)
    )


def _globs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete what the command's ids are: of mistakes, of properties, of cases."""
    if ctx.info_name == "mutants":
        from loko_ref.conformance.mistakes.registry import all_mutants

        return _starting((one.id for one in all_mutants()), incomplete)
    if ctx.info_name == "properties":
        from loko_ref.properties import select

        return _starting((one.name for one in select()), incomplete)
    return _cases(incomplete)


COMPLETERS: dict[str, Callable[..., list[str]]] = {
    "name": _names,
    "operation": _operations,
    "key": _cases,
    "only": _globs,
    "option": _chosen,
    "dtype": _dtypes,
    "language": _languages,
    "what": _explained,
}
"""Parameter of a command -> what completes it; the same name means the same everywhere."""
